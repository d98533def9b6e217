"""The definition of the losses in plain torch: any device, differentiable to any order.

It runs where no kernel does, and the kernels are tested against it. The terms of each
loss are in _terms.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ._csr import rows_of
from ._options import BATCHMEAN, NONE, SUM, Options, compute_dtype
from ._terms import terms_of

Compute = Callable[[Tensor, Options], tuple[Tensor, ...]]

# For each type of sharded logits, the function that computes on each shard; see `each_element`.
# _dtensor.py adds DTensor when it is imported.
compute_on_shards: dict[type, Callable[[Compute, Any, Options], tuple[Tensor, ...]]] = {}


def ignored(options: Options) -> Tensor | None:
    """Returns the mask of the elements that do not count, or None if all count."""
    if options.ignore_index is None:
        return None
    if math.isnan(options.ignore_index):
        return options.target != options.target
    return options.target == options.ignore_index


def without_ignored(input: Tensor, options: Options) -> tuple[Tensor, Options, Tensor | None]:
    """Returns logits and targets in the compute dtype, 0 where ignored, and the mask of these."""
    x = input.to(compute_dtype(input.dtype))
    skip = ignored(options)
    if skip is None:
        return x, options, None
    target = options.target.to(x.dtype).masked_fill(skip, 0)
    return x.masked_fill(skip, 0), options._replace(target=target), skip


def coefficients(options: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns what the positive and the negative term are multiplied by."""
    y = options.target.to(dtype)
    p = options.pos_weight_value if options.pos_weight is None else options.pos_weight.to(dtype)
    smoothed = options.smoothed(y)
    positive = smoothed * p
    if isinstance(p, Tensor):  # which may be infinite, but 0 stays 0; a number is finite
        positive = torch.where((smoothed == 0) & ~torch.isfinite(p), 0, positive)
    negative = options.smoothed(1 - y)
    if options.weight is not None:
        weight = options.weight.to(dtype)
        positive, negative = weight * positive, weight * negative
    return positive, negative


def _limited_where_unused(x: Tensor, coefficient: Tensor) -> Tensor:
    """Limits x where its term has a coefficient of 0: 0 times infinity would be NaN.

    The square of the bound is finite.
    """
    most = math.sqrt(torch.finfo(x.dtype).max) / 4
    unused = (coefficient == 0) & ~x.isnan()  # a clamped NaN would have no derivative
    return torch.where(unused, x.clamp(-most, most), x)


def unreduced(input: Tensor, options: Options) -> Tensor:
    """Returns the loss of each element, in the compute dtype."""
    return each_element(_dense_unreduced, input, options)[0]


def _dense_unreduced(input: Tensor, options: Options) -> tuple[Tensor]:
    x, options, skip = without_ignored(input, options)
    positive, negative = coefficients(options, x.dtype)
    of_positive, of_negative = terms_of(options.loss, options.parameters)
    loss = positive * of_positive.value(_limited_where_unused(x, positive))
    loss = loss + negative * of_negative.value(_limited_where_unused(x, negative))
    return (loss if skip is None else loss.masked_fill(skip, 0),)


def each_element(compute: Compute, input: Tensor, options: Options) -> tuple[Tensor, ...]:
    """Computes a function of logits and dense targets for each element.

    With sparse labels it is computed for negatives everywhere, and again for the positives alone,
    whose results then take the place of the others: no dense target is made.
    """
    if not options.is_sparse:
        return compute(input, options)
    on_shards = compute_on_shards.get(type(input))
    if on_shards is not None:
        return on_shards(partial(each_element, compute), input, options)
    dtype = compute_dtype(input.dtype)
    row, column = _positives(input, options)

    def at_positives(factor: Tensor | None) -> Tensor | None:
        """The elements that belong to the positives; a factor is not expanded."""
        if factor is None:
            return None
        rows, labels = (1,) * (2 - factor.dim()) + factor.shape
        places = (row * labels if rows > 1 else 0 * row) + (column if labels > 1 else 0)
        return factor.flatten().gather(0, places)

    def replaced(matrix: Tensor, values: Tensor) -> Tensor:
        # Not index_put: Inductor writes that over all of an expanded tensor, such as the gradient
        # of a sum (github.com/pytorch/pytorch/issues/183986).
        return matrix.flatten().scatter(0, row * matrix.shape[1] + column, values).view_as(matrix)

    weight, pos_weight = at_positives(options.weight), at_positives(options.pos_weight)
    ones = options.with_constant_target(1, dtype)._replace(weight=weight, pos_weight=pos_weight)
    positives = compute(cast(Tensor, at_positives(input)), ones)
    # The positives' logits are replaced first: a NaN among them would make NaN of a derivative 0.
    others = replaced(input, torch.zeros_like(row, dtype=input.dtype))
    negatives = compute(others, options.with_constant_target(0, dtype))
    return tuple(replaced(n, p) for n, p in zip(negatives, positives, strict=True))


def _positives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Returns the rows and columns of the positives of sparse labels."""
    crow, label = cast(Tensor, options.crow_indices), options.target.long()
    row = rows_of(crow, label)
    column = label - (options.first_label or 0)
    inside = (row >= 0) & (row < input.shape[0]) & (column >= 0) & (column < input.shape[1])
    if options.first_label is None:  # wrong indices are an error of gather: beyond the last row
        return torch.where(inside, row, input.shape[0]), torch.where(inside, column, 0)
    return row[inside], column[inside]


def divisor(input: Tensor, options: Options, batch_dims: int = 0) -> float | Tensor:
    """Returns what a sum is divided by; for each sample, if the first `batch_dims` dimensions
    number samples."""
    if options.reduction in (NONE, SUM):
        return 1
    if options.normalizer is not None:  # 0, where nothing counts, makes the result 0
        given = options.normalizer.to(compute_dtype(input.dtype))
        return torch.where(given == 0, torch.inf, given)
    shape = input.shape[batch_dims:]
    if options.reduction == BATCHMEAN:
        return shape[0]
    size = math.prod(shape)
    if options.is_sparse:
        return size if size == 0 else _counted(size, input, options)
    skip = ignored(options)
    if skip is None or size == 0:
        return size
    # Without dimensions, sum() would add up all elements.
    counted = (~skip).sum(tuple(range(batch_dims, skip.dim()))) if shape else (~skip).long()
    return counted.clamp(min=1)


def _counted(size: int, input: Tensor, options: Options) -> int:
    """Returns how many targets of sparse labels count. All samples of a batch have as many
    positives."""
    if options.ignore_index not in (0, 1):
        return size
    if options.first_label is None:
        positives = options.target.shape[-1]
    else:
        positives = len(_positives(input, options)[0])
    return max(1, positives if options.ignore_index == 0 else size - positives)


def divided(total: Tensor, input: Tensor, options: Options) -> Tensor:
    """Returns a sum, or something linear in it, after the reduction."""
    if options.reduction in (NONE, SUM):
        return total
    return total / divisor(input, options)


def loss(input: Tensor, options: Options) -> Tensor:
    """Returns the loss after the reduction; that of each element in the dtype of `input`."""
    losses = unreduced(input, options)
    if options.reduction == NONE:
        return losses.to(input.dtype)
    return divided(losses.sum(), input, options)


def _derivatives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Returns the first and the second derivative of each element's loss, in the compute dtype."""
    slope, curvature = each_element(_dense_derivatives, input, options)
    return slope, curvature


def _dense_derivatives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    x, options, skip = without_ignored(input, options)
    positive, negative = coefficients(options, x.dtype)
    of_positive, of_negative = terms_of(options.loss, options.parameters)
    at_positive, at_negative = (_limited_where_unused(x, c) for c in (positive, negative))
    slope = positive * of_positive.slope(at_positive)
    slope = slope + negative * of_negative.slope(at_negative)
    curvature = positive * of_positive.curvature(at_positive)
    curvature = curvature + negative * of_negative.curvature(at_negative)
    if skip is None:
        return slope, curvature
    return slope.masked_fill(skip, 0), curvature.masked_fill(skip, 0)


def grad(grad_output: Tensor, input: Tensor, options: Options) -> Tensor:
    """Returns the gradient with respect to `input`, itself differentiable.

    grad_output is 0-d, or has the shape of `input`, as in the two functions that follow.
    """
    slope, _ = _derivatives(input, options)
    return (divided(grad_output.to(slope.dtype), input, options) * slope).to(input.dtype)


def grad_vjp(
    cotangent: Tensor, grad_output: Tensor, input: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `grad` with respect to grad_output and `input`."""
    slope, curvature = _derivatives(input, options)
    scaled_cotangent = divided(cotangent.to(slope.dtype), input, options)
    of_output = scaled_cotangent * slope
    if grad_output.dim() == 0:
        of_output = of_output.sum()
    return of_output.to(grad_output.dtype), (scaled_cotangent * grad_output * curvature).to(
        input.dtype
    )


def grad_jvp(
    tangents: tuple[Tensor, Tensor], grad_output: Tensor, input: Tensor, options: Options
) -> Tensor:
    """Returns the derivative of `grad` along the tangents of grad_output and `input`."""
    slope, curvature = _derivatives(input, options)
    change = tangents[0] * slope + grad_output * curvature * tangents[1]
    return divided(change, input, options).to(input.dtype)
