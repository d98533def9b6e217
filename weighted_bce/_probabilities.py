"""The loss of probabilities, in plain torch."""

import torch
from torch import Tensor

from ._options import NONE, Options
from ._reference import coefficients, divided, each_element, without_ignored
from ._terms import probability_terms


def loss(input: Tensor, options: Options) -> Tensor:
    """Returns the loss after the reduction; that of each element in the dtype of `input`.

    Raises:
        ValueError: on the CPU, where an element that counts is outside [0, 1].
    """
    (losses,) = each_element(_unreduced, input, options)
    if options.reduction == NONE:
        return losses.to(input.dtype)
    return divided(losses.sum(), input, options)


def _unreduced(input: Tensor, options: Options) -> tuple[Tensor]:
    x, options, skip = without_ignored(input, options)
    _check_range(x)
    positive, negative = coefficients(options, x.dtype)
    of_positive, of_negative = probability_terms(x)
    loss = of_positive * positive + of_negative * negative
    return (loss if skip is None else loss.masked_fill(skip, 0),)


def _check_range(x: Tensor) -> None:
    """Looks at the values only where that costs no synchronisation and nothing traces."""
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
