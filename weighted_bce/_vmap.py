"""How the ops act on a batch of samples under torch.vmap: each as one call over the whole batch."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import _reference
from ._options import SUM, Options, compute_dtype, unpacked

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
    """Of sparse labels, the rows of all samples in one list of rows."""
    x = _stacked(input, in_dims[0], size)
    target = _stacked(options.target, in_dims[1], size)
    weight = _factor(options.weight, in_dims[3], x.dim() - 1)
    pos_weight = _factor(options.pos_weight, in_dims[4], x.dim() - 1)
    options = options._replace(target=target, weight=weight, pos_weight=pos_weight)
    if options.crow_indices is None:
        return x, options
    crow = _stacked(options.crow_indices, in_dims[2], size)
    return x.flatten(0, 1), _listed(x, options._replace(crow_indices=crow))


def _listed(x: Tensor, options: Options) -> Options:
    """x is (samples, rows, labels); crow_indices (samples, rows + 1), col_indices likewise."""
    if options.first_label is not None:
        raise NotImplementedError("torch.vmap does not take a first_label, a part of sparse labels")
    crow, col = cast(Tensor, options.crow_indices).long(), options.target.long()
    samples, each = col.shape
    # The joined list has no place for where a sample's own begins and ends: wrong ones become -1,
    # which the kernels refuse.
    whole = (crow[:, 0] == 0) & (crow[:, -1] == each)
    crow = crow[:, :-1] + each * torch.arange(samples, device=crow.device)[:, None]
    crow = crow.where(whole[:, None], -1)
    return options._replace(
        target=col.flatten(),
        crow_indices=torch.nn.functional.pad(crow.flatten(), (0, 1), value=samples * each),
        weight=_of_rows(options.weight, x),
        pos_weight=_of_rows(options.pos_weight, x),
    )


def _of_rows(factor: Tensor | None, x: Tensor) -> Tensor | None:
    """As it broadcasts to x.flatten(0, 1)."""
    if factor is None or factor.dim() < 2 or (factor.dim() == 2 and len(factor) == 1):
        return factor
    return factor.expand(*x.shape[:2], factor.shape[-1]).flatten(0, 1)


def _unreduced(info: Any, in_dims: _Dims, input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    x, options = _all_stacked(info.batch_size, in_dims, input, unpacked(rest)[0])
    return _samples(ops.unreduced(x, *options), info, options), 0


def _samples(result: Tensor, info: Any, options: Options) -> Tensor:
    """Of all samples, one by one."""
    if not options.is_sparse:
        return result
    return result.view(info.batch_size, -1, *result.shape[1:])


def _loss(info: Any, in_dims: _Dims, input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    options, reduction = unpacked(rest)
    x, options = _all_stacked(info.batch_size, in_dims, input, options)
    # In the dtype of arithmetic: elements are not rounded before they are added.
    losses = ops.unreduced(x.to(compute_dtype(x.dtype)), *options)
    losses = _samples(losses, info, options)
    totals = losses.sum(tuple(range(1, losses.dim()))) if losses.dim() > 1 else losses
    return totals / _divisor(reduction, losses, info, options), 0


def _divisor(reduction: int, x: Tensor, info: Any, options: Options) -> float | Tensor:
    """Of each sample; x is stacked."""
    if options.is_sparse:  # each lists as many positives
        options = options._replace(target=options.target.view(info.batch_size, -1))
    return _reference.divisor(reduction, x, options, first=1)


def _grad(
    info: Any, in_dims: _Dims, grad_output: Tensor, input: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    options, reduction = unpacked(rest)
    of_sample = grad_output.dim() - (in_dims[0] is not None)  # its dimensions: none, or input's
    stacked = _stacked(input, in_dims[1], info.batch_size)
    x, options = _all_stacked(info.batch_size, in_dims[1:], input, options)
    factor = _stacked(grad_output, in_dims[0], info.batch_size)
    each = (len(stacked), *(1,) * (stacked.dim() - 1))  # a number for each sample
    if of_sample == 0:
        factor = factor.reshape(each)
    if reduction != SUM:
        by = _divisor(reduction, stacked, info, options)
        if isinstance(by, Tensor):
            by = by.reshape(each)
        factor = factor.to(compute_dtype(x.dtype)) / by
    if options.is_sparse:
        factor = cast(Tensor, _of_rows(factor, stacked))
    grad = ops.grad(factor.expand(x.shape), x, *options, SUM)
    return _samples(grad, info, options), 0


RULES = {"loss": _loss, "grad": _grad, "unreduced": _unreduced}
