"""Rules of the ops for torch.vmap: one call computes the whole batch of samples."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import _ops, _reference
from ._extension import extension
from ._options import NONE, SUM, Options, compute_dtype

_Dims = Sequence[int | None]


def _stacked(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Puts the samples along the first dimension."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _stacked_factor(tensor: Tensor | None, dim: int | None, sample_dims: int) -> Tensor | None:
    """Makes a factor that broadcasts to stacked logits, samples of which have `sample_dims`
    dimensions."""
    if tensor is None or dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    missing = sample_dims - (tensor.dim() - 1)
    return tensor.reshape(len(tensor), *(1,) * missing, *tensor.shape[1:])


def _batch(size: int, in_dims: _Dims, input: Tensor, options: Options) -> tuple[Tensor, Options]:
    """Returns the logits and options of the whole batch.

    With sparse labels, the rows of all samples become one matrix of rows.
    """
    input_dim, *dims = in_dims
    x, dims_of = _stacked(input, input_dim, size), Options.of(dims)
    options = options._replace(
        target=_stacked(options.target, cast(Any, dims_of.target), size),
        weight=_stacked_factor(options.weight, cast(Any, dims_of.weight), x.dim() - 1),
        pos_weight=_stacked_factor(options.pos_weight, cast(Any, dims_of.pos_weight), x.dim() - 1),
    )
    if options.crow_indices is None:
        return x, options
    crow = _stacked(options.crow_indices, cast(Any, dims_of.crow_indices), size)
    return x.flatten(0, 1), _joined(x, options._replace(crow_indices=crow))


def _joined(x: Tensor, options: Options) -> Options:
    """Makes one CSR of (samples, rows + 1) crow_indices and (samples, positives) col_indices.

    x is (samples, rows, labels).
    """
    if options.first_label is not None:
        raise NotImplementedError("first_label must be None under torch.vmap")
    crow, col = cast(Tensor, options.crow_indices).long(), options.target.long()
    samples, num_positives = col.shape
    # The joined CSR drops where a sample's own begins and ends, so that is checked here: the
    # kernels refuse -1.
    is_complete = (crow[:, 0] == 0) & (crow[:, -1] == num_positives)
    crow = crow[:, :-1] + num_positives * torch.arange(samples, device=crow.device)[:, None]
    crow = crow.where(is_complete[:, None], -1)
    return options._replace(
        target=col.flatten(),
        crow_indices=torch.nn.functional.pad(crow.flatten(), (0, 1), value=samples * num_positives),
        weight=_joined_factor(options.weight, x),
        pos_weight=_joined_factor(options.pos_weight, x),
    )


def _joined_factor(factor: Tensor | None, x: Tensor) -> Tensor | None:
    """Makes a factor that broadcasts to x.flatten(0, 1)."""
    if factor is None or factor.dim() < 2 or (factor.dim() == 2 and len(factor) == 1):
        return factor
    return factor.expand(*x.shape[:2], factor.shape[-1]).flatten(0, 1)


def _samples(result: Tensor, info: Any, options: Options) -> Tensor:
    """Separates the samples of a result for the whole batch."""
    if not options.is_sparse:
        return result
    return result.view(info.batch_size, -1, *result.shape[1:])


def _divisor(x: Tensor, info: Any, options: Options) -> float | Tensor:
    """Returns the divisor of each sample; x is stacked."""
    if options.is_sparse:  # each sample has as many positives
        options = options._replace(target=options.target.view(info.batch_size, -1))
    return _reference.divisor(x, options, batch_dims=1)


def _unreduced(info: Any, in_dims: _Dims, input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    x, options = _batch(info.batch_size, in_dims, input, Options.of(rest))
    return _samples(_ops.loss(x, options), info, options), 0


def _loss(info: Any, in_dims: _Dims, input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    x, options = _batch(info.batch_size, in_dims, input, Options.of(rest))
    # In the compute dtype elements are not rounded before they are added.
    losses = _ops.loss(x.to(compute_dtype(x.dtype)), options.undivided(NONE))
    losses = _samples(losses, info, options)
    totals = losses.sum(tuple(range(1, losses.dim()))) if losses.dim() > 1 else losses
    return totals / _divisor(losses, info, options), 0


def _grad(
    info: Any, in_dims: _Dims, grad_output: Tensor, input: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    output_dim, *dims = in_dims
    input_dim, *_ = dims
    sample_dims = grad_output.dim() - (output_dim is not None)  # none, or those of input
    stacked = _stacked(input, input_dim, info.batch_size)
    x, options = _batch(info.batch_size, dims, input, Options.of(rest))
    grad_output = _stacked(grad_output, output_dim, info.batch_size)
    one_a_sample = (len(stacked), *(1,) * (stacked.dim() - 1))
    if sample_dims == 0:
        grad_output = grad_output.reshape(one_a_sample)
    if options.reduction != SUM:
        divisor = _divisor(stacked, info, options)
        if isinstance(divisor, Tensor) and divisor.dim() > 0:
            divisor = divisor.reshape(one_a_sample)
        grad_output = grad_output.to(compute_dtype(x.dtype)) / divisor
    if options.is_sparse:
        grad_output = cast(Tensor, _joined_factor(grad_output, stacked))
    grad = _ops.grad(grad_output.expand(x.shape), x, options.undivided(SUM))
    return _samples(grad, info, options), 0


if extension is not None:
    for _name, _rule in {"loss": _loss, "grad": _grad, "unreduced": _unreduced}.items():
        torch.library.register_vmap(f"weighted_bce::{_name}", _rule)  # type: ignore[arg-type]
