"""How the ops act on a batch of samples under torch.vmap: each as one call over the whole batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .reference import Options, compute_dtype

ops = torch.ops.weighted_bce
_Dims = Sequence[int | None]


def _stacked(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """With the samples along the first dimension."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _factor(tensor: Tensor | None, dim: int | None, dims: int) -> Tensor | None:
    """As it broadcasts to stacked logits, samples of which have `dims` dimensions."""
    if tensor is None or dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    missing = dims - (tensor.dim() - 1)
    return tensor.reshape(len(tensor), *(1,) * missing, *tensor.shape[1:])


def _all_stacked(
    size: int, in_dims: _Dims, input: Tensor, options: Options
) -> tuple[Tensor, Options]:
    x = _stacked(input, in_dims[0], size)
    target = _stacked(options.target, in_dims[1], size)
    weight = _factor(options.weight, in_dims[2], x.dim() - 1)
    pos_weight = _factor(options.pos_weight, in_dims[3], x.dim() - 1)
    return x, options._replace(target=target, weight=weight, pos_weight=pos_weight)


def _unreduced(info: Any, in_dims: _Dims, input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    x, options = _all_stacked(info.batch_size, in_dims, input, Options(*rest))
    return ops.unreduced(x, *options), 0


def _loss(info: Any, in_dims: _Dims, input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    *others, reduction = rest
    x, options = _all_stacked(info.batch_size, in_dims, input, Options(*others))
    # In the dtype of arithmetic: elements are not rounded before they are added.
    losses = ops.unreduced(x.to(compute_dtype(x.dtype)), *options)
    totals = losses.sum(tuple(range(1, x.dim()))) if x.dim() > 1 else losses
    return totals / reference.divisor(reduction, options, first=1), 0


def _grad(
    info: Any, in_dims: _Dims, grad_output: Tensor, input: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    *others, reduction = rest
    of_sample = grad_output.dim() - (in_dims[0] is not None)  # its dimensions: none, or input's
    x, options = _all_stacked(info.batch_size, in_dims[1:], input, Options(*others))
    factor = _stacked(grad_output, in_dims[0], info.batch_size)
    each = (len(x), *(1,) * (x.dim() - 1))  # a number for each sample
    if of_sample == 0:
        factor = factor.reshape(each)
    if reduction != reference.SUM:
        by = reference.divisor(reduction, options, first=1)
        if isinstance(by, Tensor):
            by = by.reshape(each)
        factor = factor.to(compute_dtype(x.dtype)) / by
    return ops.grad(factor.expand(x.shape), x, *options, reference.SUM), 0


RULES = {"loss": _loss, "grad": _grad, "unreduced": _unreduced}
