"""Derivatives of the ops, for torch.library and for torch.func.

torch.library has no forward-mode derivatives, and its backward does not work under torch.func; an
autograd.Function has both, but is not traced by torch.compile. So each derivative is written once
and registered twice. `loss` and `unreduced` are differentiable in `input`, `grad` in `grad_output`
as well; derivatives of `grad` are plain torch, and so are all that follow. The other ops have none:
`loss_and_grad` is the forward pass of _eager.py, and an autograd kernel in Python would double the
cost of the call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops, _reference, _transforms
from ._extension import extension
from ._options import NONE, SUM, Options, compute_dtype


def differentiable_grad(grad_output: Tensor, input: Tensor, options: Options) -> Tensor:
    """Returns the gradient with respect to `input`, which may itself be differentiated."""
    if options.reduction == NONE:  # the sum has the same gradient
        options = options.undivided(SUM)
    if torch.compiler.is_compiling():  # it does not trace what follows
        return _ops.grad(grad_output, input, options)
    if any(map(_transforms.is_legacy_batched, (grad_output, input))):
        return _reference.grad(grad_output, input, options)
    if not _transforms.is_active():
        return _ops.grad(grad_output, input, options)
    if _transforms.is_unsupported_transform():
        return _reference.grad(grad_output, input, options)
    return _apply(_Grad, grad_output, input, *_packed(options))


def refuse_others(needs_input_grad: Sequence[bool], function: str) -> None:
    """Raises NotImplementedError if another argument of an op requires a gradient.

    Args:
        needs_input_grad: whether each argument without a derivative requires a gradient.
        function: the function of the package that has these derivatives.
    """
    if any(needs_input_grad):
        raise NotImplementedError(
            "torch.ops.weighted_bce has no gradient with respect to target, weight, pos_weight or "
            f"normalizer; use weighted_bce.{function}, which has one"
        )


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, *options = inputs
    _, *others = ctx.needs_input_grad
    refuse_others(others, "weighted_bce_with_logits")
    Options.of(options).save(ctx, input)


def _loss_backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    options, (input,) = Options.saved(ctx)
    _, *others = ctx.needs_input_grad
    return differentiable_grad(grad_output, input, options), *(None for _ in others)


def _loss_jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
    options, (input,) = Options.saved(ctx)
    if options.reduction == NONE:
        return differentiable_grad(tangent, input, options)
    dtype = compute_dtype(input.dtype)  # products are not rounded before they are added
    return differentiable_grad(tangent.to(dtype), input.to(dtype), options).sum()


def _save_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, input, *options = inputs
    _, _, *others = ctx.needs_input_grad
    refuse_others(others, "weighted_bce_with_logits")
    Options.of(options).save(ctx, grad_output, input)


def _grad_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    options, (grad_output, input) = Options.saved(ctx)
    _, _, *others = ctx.needs_input_grad
    both = _reference.grad_vjp(cotangent, grad_output, input, options)
    return *both, *(None for _ in others)


def _grad_jvp(ctx: Any, tangent_output: Tensor, tangent_input: Tensor, *_: Any) -> Tensor:
    options, (grad_output, input) = Options.saved(ctx)
    return _reference.grad_jvp((tangent_output, tangent_input), grad_output, input, options)


class _NonTensors:
    """Hides the options that are not tensors from torch.func, which counts the items of a tuple."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values


def _packed(options: Options) -> tuple[Any, ...]:
    return *options.tensors, _NonTensors(options.non_tensors)


def _unpacked(packed: Sequence[Any]) -> Options:
    *tensors, others = packed
    return Options.of_parts(tensors, others.values)


class _Loss(Function):
    """Computes the loss for torch.func; of each element without a reduction."""

    generate_vmap_rule = True
    backward = staticmethod(_loss_backward)
    jvp = staticmethod(_loss_jvp)

    @staticmethod
    def forward(input: Tensor, *options: Any) -> Tensor:
        return _ops.loss(input, _unpacked(options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, *options = inputs
        _unpacked(options).save(ctx, input, with_jvp=True)


class _Grad(Function):
    """Computes the gradient for torch.func."""

    generate_vmap_rule = True
    backward = staticmethod(_grad_backward)
    jvp = staticmethod(_grad_jvp)

    @staticmethod
    def forward(grad_output: Tensor, input: Tensor, *options: Any) -> Tensor:
        return _ops.grad(grad_output, input, _unpacked(options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, input, *options = inputs
        _unpacked(options).save(ctx, grad_output, input, with_jvp=True)


def loss_under_transforms(input: Tensor, options: Options) -> Tensor:
    """Returns the loss, differentiable with respect to the logits only."""
    return _apply(_Loss, input, *_packed(options))


def _apply(function: type[Function], *args: Any) -> Tensor:
    apply: Callable[..., Tensor] = function.apply
    return apply(*args)


def _register() -> None:
    for name, backward, save in (
        ("loss", _loss_backward, _save_loss),
        ("unreduced", _loss_backward, _save_loss),
        ("grad", _grad_backward, _save_grad),
    ):
        torch.library.register_autograd(f"weighted_bce::{name}", backward, setup_context=save)


if extension is not None:
    _register()
