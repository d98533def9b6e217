"""The definition of the loss in plain torch: any device, differentiable to any order.

It is what runs where no kernel does, and what the kernels are tested against.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# The reductions as the ops number them: torch's own numbers, and one more.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3}
NONE, MEAN, SUM, BATCHMEAN = REDUCTIONS.values()


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


def divisor(reduction: int, options: Options, first: int = 0) -> float | Tensor:
    """What a sum is divided by; for each sample, where `first` dimensions number the samples."""
    shape = options.target.shape[first:]
    if reduction == SUM:
        return 1
    if reduction == BATCHMEAN:
        return shape[0]
    skip, size = ignored(options), math.prod(shape)
    if skip is None or size == 0:
        return size
    # No dimensions at all would stand for every one.
    counted = (~skip).sum(tuple(range(first, skip.dim()))) if shape else (~skip).long()
    return counted.clamp(min=1)


def divided(total: Tensor, reduction: int, options: Options) -> Tensor:
    """A sum, or what it is linear in, after the reduction."""
    return total if reduction == SUM else total / divisor(reduction, options)


def loss(input: Tensor, options: Options, reduction: int) -> Tensor:
    """The loss after a reduction; of each element in the dtype of `input`."""
    losses = unreduced(input, options)
    if reduction == NONE:
        return losses.to(input.dtype)
    return divided(losses.sum(), reduction, options)


def _derivatives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The first and the second derivative of each element's loss, in the compute dtype."""
    x, options, skip = without_ignored(input, options)
    positive, negative = coefficients(options, x.dtype)
    up, down = torch.sigmoid(x), torch.sigmoid(-x)
    slope, curvature = negative * up - positive * down, (positive + negative) * up * down
    if skip is None:
        return slope, curvature
    return slope.masked_fill(skip, 0), curvature.masked_fill(skip, 0)


def grad(grad_output: Tensor, input: Tensor, options: Options, reduction: int) -> Tensor:
    """The gradient with respect to `input`, itself differentiable.

    grad_output is 0-d, or has the shape of `input`, as in the two functions that follow.
    """
    slope, _ = _derivatives(input, options)
    return (divided(grad_output.to(slope.dtype), reduction, options) * slope).to(input.dtype)


def grad_vjp(
    upstream: Tensor, grad_output: Tensor, input: Tensor, options: Options, reduction: int
) -> tuple[Tensor, Tensor]:
    """The gradients of `grad` with respect to grad_output and `input`."""
    slope, curvature = _derivatives(input, options)
    share = divided(upstream.to(slope.dtype), reduction, options)
    to_output = share * slope
    if grad_output.dim() == 0:
        to_output = to_output.sum()
    return to_output.to(grad_output.dtype), (share * grad_output * curvature).to(input.dtype)


def grad_jvp(
    tangents: tuple[Tensor, Tensor],
    grad_output: Tensor,
    input: Tensor,
    options: Options,
    reduction: int,
) -> Tensor:
    """The derivative of `grad` along the tangents of grad_output and `input`."""
    slope, curvature = _derivatives(input, options)
    change = tangents[0] * slope + grad_output * curvature * tangents[1]
    return divided(change, reduction, options).to(input.dtype)
