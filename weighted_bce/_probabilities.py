"""The loss of probabilities, in plain torch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _reference
from ._options import Options


class _LimitedLog(Function):
    """log(x), or log(1 - x) with `complement`; at least -100, its derivative at most 1e12."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, complement: bool) -> Tensor:
        return (torch.log1p(-x) if complement else torch.log(x)).clamp(min=-100)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.complement = inputs[1]

    @staticmethod
    def slope(x: Tensor, complement: bool) -> Tensor:
        return -1 / (1 - x).clamp(min=1e-12) if complement else 1 / x.clamp(min=1e-12)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return grad_output * _LimitedLog.slope(ctx.saved_tensors[0], ctx.complement), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent * _LimitedLog.slope(ctx.saved_tensors[0], ctx.complement)


def unreduced_from_probabilities(input: Tensor, options: Options) -> Tensor:
    """The loss of each element, in the compute dtype.

    Raises:
        ValueError: on the CPU, where an element that counts is outside [0, 1].
    """
    return _reference.each_element(_unreduced, input, options)[0]


def _unreduced(input: Tensor, options: Options) -> tuple[Tensor]:
    x, options, skip = _reference.without_ignored(input, options)
    _check_range(x)
    positive, negative = _reference.coefficients(options, x.dtype)
    loss: Tensor = -(
        positive * _LimitedLog.apply(x, False)  # type: ignore[no-untyped-call]
        + negative * _LimitedLog.apply(x, True)  # type: ignore[no-untyped-call]
    )
    return (loss if skip is None else loss.masked_fill(skip, 0),)


def _check_range(x: Tensor) -> None:
    """A look at the values: only where it costs no synchronisation and nothing traces."""
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
