"""The loss of probabilities, in plain torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._options import NONE, Options
from ._reference import coefficients, divided, each_element, without_ignored


def loss(input: Tensor, options: Options) -> Tensor:
    """Returns the loss after the reduction; that of each element in the dtype of `input`.

    Raises:
        ValueError: if an element that counts is outside [0, 1]; on the CPU only.
    """
    (losses,) = each_element(_unreduced, input, options)
    if options.reduction == NONE:
        return losses.to(input.dtype)
    return divided(losses.sum(), input, options)


def _unreduced(input: Tensor, options: Options) -> tuple[Tensor]:
    x, options, skip = without_ignored(input, options)
    _check_range(x)
    positive, negative = coefficients(options, x.dtype)
    of_positive, of_negative = _terms(x)
    loss = of_positive * positive + of_negative * negative
    return (loss if skip is None else loss.masked_fill(skip, 0),)


def _check_range(x: Tensor) -> None:
    """Reads the values only if that needs no synchronization and nothing traces."""
    if (
        x.device.type != "cpu"
        or x.numel() == 0
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or type(x.detach()) is not Tensor
    ):
        return
    low, high = (bound.item() for bound in torch.aminmax(x.detach()))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"input must be in [0, 1], got values from {low} to {high}")


class _LimitedLog(Function):
    """log(x) or log(1 - x), at least -100, with a derivative of at most 1e12, as in nn.BCELoss."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, complement: bool) -> Tensor:
        return (torch.log1p(-x) if complement else torch.log(x)).clamp(min=-100)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.complement = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return _LimitedLog.jvp(ctx, grad_output, None), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        x: Tensor
        (x,) = ctx.saved_tensors
        slope = -1 / (1 - x).clamp(min=1e-12) if ctx.complement else 1 / x.clamp(min=1e-12)
        return tangent * slope


def _terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns -log(x) and -log(1 - x), the values of the two terms."""
    log: Callable[[Tensor, bool], Tensor] = _LimitedLog.apply
    return -log(x, False), -log(x, True)
