"""The definition of the loss in plain torch: any device, differentiable to any order.

It is what runs where no kernel does, and what the kernels are tested against.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Options(NamedTuple):
    """What the loss is made of besides the logits, in the order in which the ops take it."""

    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    pos_weight_value: float
    label_smoothing: float
    ignore_index: float | None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of a reduced loss: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ignored(options: Options) -> Tensor | None:
    """The mask of the elements that do not count, or None where all do."""
    if options.ignore_index is None:
        return None
    if math.isnan(options.ignore_index):
        return options.target != options.target
    return options.target == options.ignore_index


def without_ignored(input: Tensor, options: Options) -> tuple[Tensor, Options, Tensor | None]:
    """Logits and targets in the compute dtype, 0 where ignored, and the mask of these."""
    x = input.to(compute_dtype(input.dtype))
    skip = ignored(options)
    if skip is None:
        return x, options, None
    target = options.target.to(x.dtype).masked_fill(skip, 0)
    return x.masked_fill(skip, 0), options._replace(target=target), skip


def coefficients(options: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The coefficients of softplus(-x) and of softplus(x)."""
    y = options.target.to(dtype)
    keep, shift = 1 - options.label_smoothing, options.label_smoothing / 2
    p = options.pos_weight_value if options.pos_weight is None else options.pos_weight.to(dtype)
    smoothed = y * keep + shift
    positive = torch.where(smoothed == 0, 0, smoothed * p)  # an infinite p, too
    negative = (1 - y) * keep + shift
    if options.weight is not None:
        weight = options.weight.to(dtype)
        positive, negative = weight * positive, weight * negative
    return positive, negative


def _finite_where_unused(x: Tensor, coefficient: Tensor) -> Tensor:
    """An infinite logit under a coefficient of 0 adds nothing; 0 times infinity would be NaN."""
    return torch.where((coefficient == 0) & torch.isinf(x), 0, x)


def unreduced(input: Tensor, options: Options) -> Tensor:
    """The loss of each element, in the compute dtype."""
    x, options, skip = without_ignored(input, options)
    positive, negative = coefficients(options, x.dtype)
    loss = -(
        positive * logsigmoid(_finite_where_unused(x, positive))
        + negative * logsigmoid(-_finite_where_unused(x, negative))
    )
    return loss if skip is None else loss.masked_fill(skip, 0)


def divided(total: Tensor, divisor: float | None, options: Options) -> Tensor:
    """total / divisor, where None stands for the number of elements that count."""
    if divisor is not None:
        return total / divisor
    skip = ignored(options)
    if skip is None or skip.numel() == 0:
        return total / options.target.numel()
    return total / (~skip).sum().clamp(min=1)


def loss(input: Tensor, options: Options, divisor: float | None) -> Tensor:
    """The sum of the losses over the divisor, 0-d."""
    return divided(unreduced(input, options).sum(), divisor, options)


def grad(grad_output: Tensor, input: Tensor, options: Options, divisor: float | None) -> Tensor:
    """The gradient with respect to `input`, itself differentiable."""
    x, options, skip = without_ignored(input, options)
    positive, negative = coefficients(options, x.dtype)
    slope = negative * torch.sigmoid(x) - positive * torch.sigmoid(-x)
    if skip is not None:
        slope = slope.masked_fill(skip, 0)
    return (divided(grad_output.to(x.dtype), divisor, options) * slope).to(input.dtype)
