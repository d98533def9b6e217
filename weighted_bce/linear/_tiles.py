"""The passes of a linear layer with its loss by the CPU's kernels.

One parallel region computes the whole pass: each thread computes one tile of the logits after
another, their loss and gradients, in its own caches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._checks import raise_wrong_index
from .._kernels import Kernels, kernels_for, recorded
from .._options import KERNEL_TARGET_DTYPES, NONE, Options, compute_dtype
from ._chunks import ChunkOptions, Layer, least_given
from ._gradients import Gradients


def kernels_of(layer: Layer, options: Options) -> Kernels | None:
    """Returns the kernels that compute the pass of this layer; None if they do not.

    A mode, such as a counter of FLOPs, does not see their products, but those of chunks.
    """
    is_empty = 0 in layer.shape or layer.input.shape[1] == 0
    if not layer.input.is_cpu or is_empty or options.target.dtype not in KERNEL_TARGET_DTYPES:
        return None
    if any(t is not None and t.is_neg() for t in (*layer, *options.tensors)):
        return None
    if torch._C._len_torch_dispatch_stack() > 0:
        return None
    kernels = kernels_for(layer.input)
    return None if kernels is None else recorded(kernels)


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
    input_dtype: torch.dtype,
) -> tuple[Tensor | None, Gradients]:
    """Returns the loss, unless it is one of rows, and the gradients; that of the input in the given
    dtype."""
    x, weight, bias = layer
    dtype = compute_dtype(x.dtype)
    of_input = x.new_empty(x.shape, dtype=dtype) if needs[0] else None
    of_weight = kernels.empty_grad(weight.detach()) if needs[1] else None
    of_bias = None
    if needs[2] and bias is not None:  # blocks of rows add to it
        of_bias = x.new_empty(bias.shape, dtype=dtype)
    grad_output = _as_factor(grad_output, dtype, options)
    gradients = Gradients(of_input, of_weight, of_bias)
    loss = _pass(kernels, layer, options, chunk_options, grad_output, gradients)
    if of_input is not None:
        gradients = gradients._replace(input=of_input.to(input_dtype))
    if of_bias is not None and bias is not None:
        gradients = gradients._replace(bias=of_bias.to(bias.dtype))
    return None if options.reduction == NONE else loss, gradients


class HeldCalls(NamedTuple):
    """Calls of the loss from which kernels compute the gradient of the weight."""

    kernels: Kernels
    calls: list[Tensor]
    dense: Tensor | None  # another term, with the shape of the weight
    most_labels: int | None  # that a tile may have

    def write(self, weight: Tensor, first_label: int, out: Tensor) -> None:
        """Writes the gradient of the labels from `first_label` on."""
        _, *gradient, most_labels = self
        self.kernels.linear_weight_grad_(*gradient, weight, first_label, out, most_labels)


def held_calls(calls: Sequence[Any], dense: Tensor | None) -> HeldCalls | None:
    """Returns what the kernels need of calls; None if they do not serve them.

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
    if kernels is None:
        return None
    return HeldCalls(kernels, held, dense, least_given([how for _, _, how, *_ in calls]))


def _operands(layer: Layer) -> tuple[Tensor, Tensor]:
    """Returns the input in the dtype of arithmetic, and a tensor with the shape of the logits."""
    dtype = compute_dtype(layer.input.dtype)
    x = layer.input.detach().to(dtype).contiguous()
    return x, x.new_empty(()).expand(layer.shape)


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
