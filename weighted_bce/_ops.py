"""Calls the registered ops with options, and gives them rules of shapes for tracing.

Kernels and schemas are in csrc/, derivatives in _derivatives.py, the rules for torch.vmap in
_vmap.py.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ._extension import extension
from ._options import NONE, Options, compute_dtype

ops = torch.ops.weighted_bce


def loss(input: Tensor, options: Options) -> Tensor:
    """Returns the loss after the reduction; of each element without one."""
    op = ops.unreduced if options.reduction == NONE else ops.loss
    return cast(Tensor, op.default(input, *pos_weight_as_tensor(options)))


def grad(grad_output: Tensor, input: Tensor, options: Options) -> Tensor:
    """Returns the gradient of `loss` with respect to `input`; a reduction is needed."""
    return cast(Tensor, ops.grad.default(grad_output, input, *options))


def pos_weight_as_tensor(options: Options) -> Options:
    """Puts a pos_weight that the compiler has seen change into a tensor.

    As an argument of an op, each value would need another compilation; a tensor is an input.
    """
    if not torch.compiler.is_compiling() or _is_static(options.pos_weight_value):
        return options
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return options._replace(pos_weight=one * options.pos_weight_value, pos_weight_value=1.0)


def _is_static(number: float) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(number)


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

if extension is not None:
    for _name, _fake in _FAKES.items():
        torch.library.register_fake(f"weighted_bce::{_name}", _fake)
