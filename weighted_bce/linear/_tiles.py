"""The passes of a linear layer with its loss by the CPU's kernels.

One parallel region computes the whole pass: each thread computes one tile of the logits after
another, their loss and gradients, in its own caches.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .._checks import raise_wrong_index
from .._kernels import Kernels, kernels_for
from .._options import KERNEL_TARGET_DTYPES, NONE, Options, compute_dtype
from ._chunks import ChunkOptions, Layer
from ._gradients import Gradients


def kernels_of(layer: Layer, options: Options) -> Kernels | None:
    """Returns the kernels that compute the pass of this layer; None if they do not."""
    is_empty = 0 in layer.shape or layer.input.shape[1] == 0
    if not layer.input.is_cpu or is_empty or options.target.dtype not in KERNEL_TARGET_DTYPES:
        return None
    if any(t is not None and t.is_neg() for t in (*layer, *options.tensors)):
        return None
    return kernels_for(layer.input)


def loss(kernels: Kernels, layer: Layer, options: Options, chunk_options: ChunkOptions) -> Tensor:
    """Returns the loss after the reduction; that of each row without one."""
    return _pass(kernels, layer, options, chunk_options, None, Gradients(None, None, None))


def loss_and_gradients(
    kernels: Kernels,
    layer: Layer,
    options: Options,
    chunk_options: ChunkOptions,
    grad_output: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    """Returns the loss, unless it is one of rows, and the gradients, of which that of the input has
    the dtype of the loss."""
    x, weight, bias = layer
    dtype = compute_dtype(x.dtype)
    gradients = Gradients(
        torch.empty(x.shape, dtype=dtype) if needs[0] else None,
        kernels.empty_grad(weight.detach()) if needs[1] else None,
        torch.empty_like(bias) if needs[2] and bias is not None else None,
    )
    grad_output = _as_factor(grad_output, dtype, options)
    return _pass(kernels, layer, options, chunk_options, grad_output, gradients), gradients


def held_calls(calls: Sequence[Any]) -> tuple[Kernels, list[Tensor]] | None:
    """Returns the kernels that compute the gradient of the weight from calls of the loss, and what
    they need of each; None if they do not.

    A call begins with a layer, its options, the chunk options and grad_output.
    """
    kernels = None
    held = []
    for layer, options, _, grad_output, *_ in calls:
        kernels = kernels_of(layer, options)
        if kernels is None:
            return None
        x, like = _operands(layer)
        grad_output = _as_factor(grad_output, x.dtype, options)
        held.append(kernels.linear_call(grad_output, x, layer.bias, like, *options))
    return None if kernels is None else (kernels, held)


def _operands(layer: Layer) -> tuple[Tensor, Tensor]:
    """Returns the input in the dtype of arithmetic, and a tensor with the shape of the logits."""
    dtype = compute_dtype(layer.input.dtype)
    x = layer.input.detach().to(dtype).contiguous()
    return x, torch.empty((), dtype=dtype).expand(layer.shape)


def _as_factor(grad_output: Tensor, dtype: torch.dtype, options: Options) -> Tensor:
    """Returns grad_output so that it broadcasts to the logits."""
    grad_output = grad_output.detach().to(dtype)
    return grad_output[:, None] if options.reduction == NONE else grad_output


def _pass(
    kernels: Kernels,
    layer: Layer,
    options: Options,
    chunk_options: ChunkOptions,
    grad_output: Tensor | None,
    gradients: Gradients,
) -> Tensor:
    x, like = _operands(layer)
    arguments: Any = (grad_output, x, layer.weight, layer.bias, *gradients)
    most_labels = chunk_options.chunk_labels
    try:
        return cast(Tensor, kernels.linear_pass_(*arguments, most_labels, like, *options))
    except RuntimeError:
        if options.first_label is None:
            raise_wrong_index(layer.shape, options)
        raise
