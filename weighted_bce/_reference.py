"""The definition of the loss in plain torch: any device, differentiable to any order.

It is what runs where no kernel does, and what the kernels are tested against.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._csr import rows_of
from ._dtensor_import import is_dtensor
from ._options import BATCHMEAN, NONE, SUM, Options, compute_dtype


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
    return each_element(_dense_unreduced, input, options)[0]


def _dense_unreduced(input: Tensor, options: Options) -> tuple[Tensor]:
    x, options, skip = without_ignored(input, options)
    positive, negative = coefficients(options, x.dtype)
    loss = -(
        positive * logsigmoid(_finite_where_unused(x, positive))
        + negative * logsigmoid(-_finite_where_unused(x, negative))
    )
    return (loss if skip is None else loss.masked_fill(skip, 0),)


def each_element(
    compute: Callable[[Tensor, Options], tuple[Tensor, ...]], input: Tensor, options: Options
) -> tuple[Tensor, ...]:
    """Results of a function of logits and dense targets, element by element.

    With sparse labels it is computed for negatives everywhere, and again for the positives alone,
    whose results then take the place of the others: no dense target is made.
    """
    if not options.is_sparse:
        return compute(input, options)
    if is_dtensor(input):
        from ._dtensor import locally

        return locally(partial(each_element, compute), input, options)
    dtype = compute_dtype(input.dtype)
    row, column = _positives(input, options)

    def there(factor: Tensor | None) -> Tensor | None:
        """Its elements that belong to the positives; it is not expanded."""
        if factor is None:
            return None
        rows, labels = (1,) * (2 - factor.dim()) + factor.shape
        places = (row * labels if rows > 1 else 0 * row) + (column if labels > 1 else 0)
        return factor.flatten().gather(0, places)

    def replaced(matrix: Tensor, values: Tensor) -> Tensor:
        # Not index_put: Inductor writes that over all of an expanded tensor, such as the gradient
        # of a sum (github.com/pytorch/pytorch/issues/183986).
        return matrix.flatten().scatter(0, row * matrix.shape[1] + column, values).view_as(matrix)

    weight, pos_weight = there(options.weight), there(options.pos_weight)
    ones = options.with_target(1, dtype)._replace(weight=weight, pos_weight=pos_weight)
    positives = compute(cast(Tensor, there(input)), ones)
    # Without the positives' logits: NaN among them is nothing that a derivative of 0 could mend.
    others = replaced(input, torch.zeros_like(row, dtype=input.dtype))
    negatives = compute(others, options.with_target(0, dtype))
    return tuple(replaced(n, p) for n, p in zip(negatives, positives, strict=True))


def _positives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The rows and columns of the positives of sparse labels."""
    crow, label = cast(Tensor, options.crow_indices), options.target.long()
    row = rows_of(crow, label)
    column = label - (options.first_label or 0)
    inside = (row >= 0) & (row < input.shape[0]) & (column >= 0) & (column < input.shape[1])
    if options.first_label is None:  # wrong indices are an error of gather: beyond the last row
        return torch.where(inside, row, input.shape[0]), torch.where(inside, column, 0)
    return row[inside], column[inside]


def divisor(reduction: int, input: Tensor, options: Options, first: int = 0) -> float | Tensor:
    """What a sum is divided by; for each sample, where `first` dimensions number the samples."""
    shape = input.shape[first:]
    if reduction == SUM:
        return 1
    if reduction == BATCHMEAN:
        return shape[0]
    size = math.prod(shape)
    if options.is_sparse:
        return size if size == 0 else _counted(size, input, options)
    skip = ignored(options)
    if skip is None or size == 0:
        return size
    # No dimensions at all would stand for every one.
    counted = (~skip).sum(tuple(range(first, skip.dim()))) if shape else (~skip).long()
    return counted.clamp(min=1)


def _counted(size: int, input: Tensor, options: Options) -> int:
    """How many targets of sparse labels count; of each sample, all of which list as many."""
    if options.ignore_index not in (0, 1):
        return size
    if options.first_label is None:
        positives = options.target.shape[-1]
    else:
        positives = len(_positives(input, options)[0])
    return max(1, positives if options.ignore_index == 0 else size - positives)


def divided(total: Tensor, reduction: int, input: Tensor, options: Options) -> Tensor:
    """A sum, or what it is linear in, after the reduction."""
    return total if reduction == SUM else total / divisor(reduction, input, options)


def loss(input: Tensor, options: Options, reduction: int) -> Tensor:
    """The loss after a reduction; of each element in the dtype of `input`."""
    losses = unreduced(input, options)
    if reduction == NONE:
        return losses.to(input.dtype)
    return divided(losses.sum(), reduction, input, options)


def _derivatives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The first and the second derivative of each element's loss, in the compute dtype."""
    slope, curvature = each_element(_dense_derivatives, input, options)
    return slope, curvature


def _dense_derivatives(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
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
    return (divided(grad_output.to(slope.dtype), reduction, input, options) * slope).to(input.dtype)


def grad_vjp(
    upstream: Tensor, grad_output: Tensor, input: Tensor, options: Options, reduction: int
) -> tuple[Tensor, Tensor]:
    """The gradients of `grad` with respect to grad_output and `input`."""
    slope, curvature = _derivatives(input, options)
    share = divided(upstream.to(slope.dtype), reduction, input, options)
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
    return divided(change, reduction, input, options).to(input.dtype)
