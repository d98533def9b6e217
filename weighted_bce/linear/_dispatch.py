"""Chooses what computes the loss of a linear layer."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .. import _dispatch, _transforms
from .._dtensor_import import is_dtensor
from .._eager import is_recorded
from .._kernels import kernels_for
from .._options import NONE, SUM, Options
from . import _eager, _ops
from ._chunks import ChunkOptions, Layer
from ._passes import Step
from ._unchunked import all_logits

_When = Callable[[Layer, Options, Step | None], bool]
_How = Callable[[Layer, Options, ChunkOptions, Step | None], Tensor]


def loss(layer: Layer, options: Options, chunk_options: ChunkOptions, step: Step | None) -> Tensor:
    """Returns the loss after the reduction, by the first implementation that serves the call."""
    if step is not None and torch.compiler.is_compiling():
        torch._dynamo.graph_break("fused_step is not compiled")
        uncompiled: Any = torch.compiler.disable(loss)  # type: ignore[no-untyped-call]
        return cast(Tensor, uncompiled(layer, options, chunk_options, step))
    kernels_for(layer.input)  # raises where the chosen backend has none
    for serves, compute in _TABLE:
        if serves(layer, options, step):
            return compute(layer, options, chunk_options, step)
    raise AssertionError("the last line of the table serves every call")


def _needs_all_logits(layer: Layer, options: Options, step: Step | None) -> bool:
    """A derivative is wanted that is not made in chunks."""
    return _transforms.is_active() or options.is_differentiated


def _is_sharded(layer: Layer, options: Options, step: Step | None) -> bool:
    """The input or the weight is a DTensor."""
    return is_dtensor(layer.input) or is_dtensor(layer.weight)


def _is_eager(layer: Layer, options: Options, step: Step | None) -> bool:
    """Gradients are needed, and the forward pass may compute them: nothing traces the call, no
    checkpoint would drop them, one number says how they are scaled, there are numbers to compare,
    and no CUDA graph is captured, in which the host may not wait for them. A step gets its
    gradients in the backward pass."""
    if step is None:
        x, is_of_rows = layer.input, options.reduction == NONE
        is_capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if is_of_rows or _dispatch.is_observed() or x.is_meta or is_capturing:
            return False
    return _is_recorded(layer)


def _is_recorded(layer: Layer) -> bool:
    return any(t is not None and is_recorded(t) for t in layer)


def _always(layer: Layer, options: Options, step: Step | None) -> bool:
    """No gradient is needed, or a compiler, a mode or a hook sees the registered ops."""
    return True


def _by_all_logits(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: Step | None
) -> Tensor:
    if step is not None and _transforms.is_active():
        raise NotImplementedError("fused_step does not work under torch.func")
    losses = _dispatch.loss(all_logits(layer), options)
    return losses.sum(1) if options.reduction == NONE else losses


def _by_shards(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: Step | None
) -> Tensor:
    from . import _dtensor

    shard = _dtensor.shard_of(layer, options, step is not None)
    own = shard.options._replace(reduction=NONE if options.reduction == NONE else SUM)
    return shard.reduced(loss(shard.layer, own, chunk_options, step), options)


def _by_pass(
    layer: Layer, options: Options, chunk_options: ChunkOptions, step: Step | None
) -> Tensor:
    return _eager.apply(*layer, options.savable(), chunk_options, step)


def _by_ops(layer: Layer, options: Options, chunk_options: ChunkOptions, *_: object) -> Tensor:
    is_saved = not torch.compiler.is_compiling() and _is_recorded(layer)
    return _ops.loss(layer, options.savable() if is_saved else options, chunk_options)


# The first line that serves a call computes it. Why is in the docstring of its condition.
_TABLE: tuple[tuple[_When, _How], ...] = (
    (_needs_all_logits, _by_all_logits),
    (_is_sharded, _by_shards),
    (_is_eager, _by_pass),
    (_always, _by_ops),
)
