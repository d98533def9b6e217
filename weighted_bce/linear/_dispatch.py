"""Chooses what computes the loss of a linear layer."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _dispatch, _transforms
from .._dtensor_import import is_dtensor
from .._eager import is_recorded
from .._kernels import kernels_for
from .._options import NONE, SUM, Options
from . import _eager, _ops, _stepped
from ._chunks import ChunkOptions, Layer
from ._stepped import BoundStep
from ._unchunked import all_logits, loss_of_all_logits

_When = Callable[[Layer, Options, BoundStep | None], bool]
_How = Callable[[Layer, Options, ChunkOptions, BoundStep | None], Tensor]


def loss(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: BoundStep | None
) -> Tensor:
    """Returns the loss after the reduction, by the first implementation that serves the call."""
    kernels_for(layer.input)  # raises where the chosen backend has none
    for serves, compute in _TABLE:
        if serves(layer, options, step):
            return compute(layer, options, chunk_options, step)
    raise AssertionError("the last line of the table serves every call")


def _needs_all_logits(layer: Layer, options: Options, step: BoundStep | None) -> bool:
    """A derivative is wanted that is not made in chunks."""
    return _transforms.is_active() or options.is_differentiated


def _is_sharded(layer: Layer, options: Options, step: BoundStep | None) -> bool:
    """The input or the weight is a DTensor."""
    return is_dtensor(layer.input) or is_dtensor(layer.weight)


def _is_stepped(layer: Layer, options: Options, step: BoundStep | None) -> bool:
    """Gradients are needed, and there is a fused step."""
    return step is not None and _is_recorded(layer)


def _is_eager(layer: Layer, options: Options, step: BoundStep | None) -> bool:
    """Gradients are needed, and the forward pass may compute them: nothing traces the call, no
    checkpoint would drop them, one number says how they are scaled, there are numbers to compare,
    and no CUDA graph is captured, in which the host may not wait for them."""
    is_of_rows = options.reduction == NONE
    is_capturing = layer.input.is_cuda and torch.cuda.is_current_stream_capturing()
    if is_of_rows or _dispatch.is_observed() or not layer.has_numbers or is_capturing:
        return False
    return _is_recorded(layer)


def _is_recorded(layer: Layer) -> bool:
    return any(t is not None and is_recorded(t) for t in layer)


def _always(layer: Layer, options: Options, step: BoundStep | None) -> bool:
    """No gradient is needed, or a compiler, a mode or a hook sees the registered ops."""
    return True


def _by_all_logits(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: BoundStep | None
) -> Tensor:
    if step is not None and not _transforms.is_active():
        step.check_is_optimizer()
    return loss_of_all_logits(all_logits(layer), options)


def _by_shards(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: BoundStep | None
) -> Tensor:
    from . import _dtensor

    shard = _dtensor.shard_of(layer, options, step is not None)
    own = shard.options.undivided(NONE if options.reduction == NONE else SUM)
    return shard.reduced(loss(shard.layer, own, chunk_options, step), options)


def _by_stepped_pass(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: BoundStep | None
) -> Tensor:
    return _stepped.apply(*layer, options.savable(), chunk_options, step)


def _by_pass(layer: Layer, options: Options, chunk_options: ChunkOptions, *_: object) -> Tensor:
    return _eager.apply(*layer, options.savable(), chunk_options)


def _by_ops(layer: Layer, options: Options, chunk_options: ChunkOptions, *_: object) -> Tensor:
    is_saved = not torch.compiler.is_compiling() and _is_recorded(layer)
    return _ops.loss(layer, options.savable() if is_saved else options, chunk_options)


# The first line that serves a call computes it. Why is in the docstring of its condition.
_TABLE: tuple[tuple[_When, _How], ...] = (
    (_needs_all_logits, _by_all_logits),
    (_is_sharded, _by_shards),
    (_is_stepped, _by_stepped_pass),
    (_is_eager, _by_pass),
    (_always, _by_ops),
)
