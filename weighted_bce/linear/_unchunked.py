"""Computes all logits of a linear layer at once, and derivatives of its gradients."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import _dispatch
from .._checks import raise_wrong_index
from .._derivatives import differentiable_grad
from .._dtensor_import import is_dtensor
from .._options import NONE, Options, compute_dtype
from ._chunks import ChunkOptions, Layer
from ._gradients import Gradients

_SMALL_BYTES = 2**22
_WIDE = frozenset({torch.float32, torch.float64})
_DEFAULT = ChunkOptions()

_DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla")
_WITH_AUTOCAST = frozenset(
    device_type for device_type in _DEVICE_TYPES if torch.amp.is_autocast_available(device_type)
)
_IS_TRACEABLE = torch.__version__ >= "2.13"  # is_autocast_available; it is not in torch 2.11


def is_autocast_enabled(device_type: str) -> bool:
    """Tells whether autocast is enabled on devices of this type; torch does not have it on all."""
    if torch.compiler.is_compiling() and not _IS_TRACEABLE:
        is_available = device_type in _WITH_AUTOCAST
    else:
        is_available = torch.amp.is_autocast_available(device_type)
    return is_available and torch.is_autocast_enabled(device_type)


def _no_autocast(like: Tensor) -> Any:
    device_type = like.device.type
    if is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _widened(layer: Layer) -> Layer:
    """Converts the layer to the compute dtype."""
    dtype = compute_dtype(layer.input.dtype)
    return Layer(*(None if t is None else t.to(dtype) for t in layer))  # type: ignore[arg-type]


def all_logits(layer: Layer) -> Tensor:
    """Returns the logits, (rows, labels), in the compute dtype."""
    with _no_autocast(layer.input):
        return functional.linear(*_widened(layer))


def loss_of_all_logits(logits: Tensor, options: Options) -> Tensor:
    """Returns the loss after the reduction; that of each row without one."""
    try:
        losses = _dispatch.loss(logits, options)
    except RuntimeError:
        raise_wrong_index(logits.shape, options)
        raise
    return losses.sum(1) if options.reduction == NONE else losses


def is_small(layer: Layer, chunk_options: ChunkOptions) -> bool:
    """Tells whether chunks would save neither memory nor time: all logits with their gradient are
    small, and so is the weight; and no operand of the products is converted."""
    x, weight, _ = layer
    if chunk_options != _DEFAULT or x.dtype not in _WIDE or weight.dtype != x.dtype:
        return False
    size = x.itemsize * weight.shape[0]
    is_large = 2 * size * x.shape[0] > _SMALL_BYTES or size * weight.shape[1] > _SMALL_BYTES
    return not (is_large or is_dtensor(x) or is_dtensor(weight))


def differentiable_gradients(
    grad_output: Tensor, layer: Layer, options: Options, needs: tuple[bool, ...]
) -> Gradients:
    """Returns the gradients of the layer's tensors, which may be differentiated again."""
    x, weight, _ = _widened(layer)
    logits = all_logits(layer)
    if options.reduction == NONE:
        grad_output = grad_output[:, None].expand_as(logits)
    of_logits = differentiable_grad(grad_output, logits, options.with_readable_target())
    with _no_autocast(x):
        all_three = of_logits @ weight, of_logits.t() @ x, of_logits.sum(0)
    each = zip(all_three, layer, needs, strict=True)
    return Gradients(*(g.to(t.dtype) if n and t is not None else None for g, t, n in each))
