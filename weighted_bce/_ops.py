"""The registered ops: their shapes for tracing, and their derivatives.

The kernels and schemas are in csrc/. `loss` and `unreduced` are differentiable in `input`, `grad`
in `grad_output` as well, so that torch.compile, torch.export and those who call
torch.ops.weighted_bce directly get gradients. `loss_and_grad` is not: it is the forward pass of
the eager path in _eager.py, and an autograd kernel in Python would double the cost of the call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _reference, _vmap
from ._extension import extension
from ._options import SUM, TENSORS, Options, compute_dtype, unpacked

REDUCTION = len(Options._fields) - TENSORS  # its place among the arguments that are no tensors

ops = torch.ops.weighted_bce


def refuse_gradients(ctx: Any, others: slice, function: str = "weighted_bce_with_logits") -> None:
    """Of these arguments, which that function gives."""
    if any(ctx.needs_input_grad[others]):
        raise NotImplementedError(
            "torch.ops.weighted_bce has no gradient with respect to target, weight or pos_weight; "
            f"weighted_bce.{function} has"
        )


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    refuse_gradients(ctx, slice(1, 1 + TENSORS))
    ctx.save_for_backward(*inputs[: 1 + TENSORS])
    ctx.rest = inputs[1 + TENSORS :]


def _gradient(*args: Any) -> Any:
    from . import _func  # which is made of the ops

    return _func.gradient(*args) if _func.active() else ops.grad(*args)


def _loss_backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    gradient = _gradient(grad_output, *ctx.saved_tensors, *ctx.rest)
    return gradient, *(None,) * (len(ctx.needs_input_grad) - 1)


def _unreduced_backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    # The reduction, which is none, becomes the sum that has this gradient.
    before, after = ctx.rest[:REDUCTION], ctx.rest[REDUCTION + 1 :]
    gradient = _gradient(grad_output, *ctx.saved_tensors, *before, SUM, *after)
    return gradient, *(None,) * (len(ctx.needs_input_grad) - 1)


def _save_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    refuse_gradients(ctx, slice(2, 2 + TENSORS))
    ctx.save_for_backward(*inputs[: 2 + TENSORS])
    ctx.rest = inputs[2 + TENSORS :]


def grad_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    grad_output, input, *tensors = ctx.saved_tensors
    options, reduction = unpacked((*tensors, *ctx.rest))
    both = _reference.grad_vjp(upstream, grad_output, input, options, reduction)
    return *both, *(None,) * (len(ctx.needs_input_grad) - 2)


def fake_loss(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty((), dtype=compute_dtype(input.dtype))


def _fake_loss_and_grad(expected: Tensor, input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_loss(input), torch.empty_like(input), fake_loss(input)


def _fake_loss_and_grad_in_place(expected: Tensor, input: Tensor, *_: Any) -> Tensor:
    return fake_loss(input)


def _fake_grad(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _fake_in_place(*_: Any) -> None:
    return None


def _fake_unreduced(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


_FAKES: dict[str, Callable[..., Any]] = {
    "loss": fake_loss,
    "loss_and_grad": _fake_loss_and_grad,
    "loss_and_grad_": _fake_loss_and_grad_in_place,
    "update_grad_": _fake_in_place,
    "grad": _fake_grad,
    "grad_": _fake_in_place,
    "unreduced": _fake_unreduced,
    "empty_grad": torch.empty_like,
}


def _register() -> None:
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"weighted_bce::{name}", fake)
    for name, backward, save in (
        ("loss", _loss_backward, _save_loss),
        ("unreduced", _unreduced_backward, _save_loss),
        ("grad", grad_backward, _save_grad),
    ):
        torch.library.register_autograd(f"weighted_bce::{name}", backward, setup_context=save)
    for name, rule in _vmap.RULES.items():
        torch.library.register_vmap(f"weighted_bce::{name}", rule)  # type: ignore[arg-type]


if extension is not None:
    _register()
