"""The loss of a linear layer and its gradients, in one pass over chunks of labels.

For each chunk, a product computes the logits, a kernel computes their loss and writes its gradient
over them, and products of that gradient give the gradients of the layer. All chunks use the same
memory.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .._options import NONE, Options, compute_dtype
from . import _tiles
from ._chunk_loss import ChunkLoss
from ._chunks import ChunkOptions, Chunks, Layer, chunk_size, product, slices
from ._gradients import Gradients
from ._tiles import HeldCalls

_LARGE_CHUNK = 2**21  # bytes of the gradient of a chunk that threads share


class _Gradients:
    """The gradients of the layer, to which each chunk adds."""

    def __init__(
        self,
        layer: Layer,
        chunks: Chunks,
        empty: Callable[[Tensor], Tensor],
        needs: tuple[bool, ...],
        grad_output: Tensor,
    ) -> None:
        self._chunks, self._grad_output = chunks, grad_output
        x, weight, bias = layer
        self._weight = empty(weight.detach()) if needs[1] else None
        self._bias = None if bias is None or not needs[2] else empty(bias.detach())
        self._input = self._input_part = None
        if needs[0]:
            self._input = torch.zeros(x.shape, dtype=chunks.dtype, device=x.device)
            self._input_part = torch.empty_like(self._input) if chunks.scales_products else None
        self._products = None
        if needs[1] and weight.dtype != chunks.dtype:
            self._products = chunks.workspace(chunks.dtype, x.shape[1])

    def add(self, logits: Tensor, weights: Tensor, chunk: slice) -> None:
        """Adds the part of a chunk, whose logits have been replaced by their gradient."""
        logits_grad = self._chunks.logits_grad(logits)
        self._add_to_input(logits_grad, weights)
        if self._weight is not None:
            products = weight_grad = self._weight[chunk]
            if self._products is not None:
                products = self._products.matrix(*weight_grad.shape)
            product(logits_grad.t(), self._chunks.x, products)
            self._finish(products, weight_grad)
        if self._bias is not None:
            self._finish(logits.sum(0), self._bias[chunk])

    def _add_to_input(self, logits_grad: Tensor, weights: Tensor) -> None:
        if self._input is None:
            return
        if self._input_part is None:
            torch.addmm(self._input, logits_grad, weights, out=self._input)
        else:
            product(logits_grad, weights, self._input_part)
            self._input.add_(self._input_part)

    def _finish(self, sums: Tensor, out: Tensor) -> None:
        if self._chunks.scales_products:
            sums.mul_(self._grad_output)
        if out is not sums:
            out.copy_(sums)

    def finished(self, dtype: torch.dtype) -> Gradients:
        """Returns all gradients; that of the input in the given dtype."""
        x = self._input
        if x is not None:
            self._finish(x, x)
            x = x.to(dtype)
        return Gradients(x, self._weight, self._bias)


def loss(layer: Layer, options: Options, chunk_options: ChunkOptions) -> Tensor:
    """Returns the loss of all logits after the reduction; that of each row without one."""
    kernels = _tiles.kernels_of(layer, options)
    if kernels is not None:
        return _tiles.loss(kernels, layer, options, chunk_options)
    chunks = Chunks(layer, chunk_options)
    losses = ChunkLoss(chunks, layer, options)
    sums: list[Tensor] = []
    for number, chunk in enumerate(chunks):
        new = losses.sum(chunks.logits(chunk, chunks.weights(chunk)), chunk)
        _append(sums, new, number)
    return losses.reduced(sums)


def _append(sums: list[Tensor], new: Tensor, number: int) -> None:
    """Adds sums of as many chunks, so that few are kept and a total is not rounded once a chunk.

    Args:
        sums: the sums so far, each of more chunks than the next.
        new: the sum of one more chunk.
        number: how many chunks came before it.
    """
    while number % 2:
        new = sums.pop() + new
        number //= 2
    sums.append(new)


def loss_and_gradients(
    layer: Layer,
    options: Options,
    chunk_options: ChunkOptions,
    grad_output: Tensor,
    needs: tuple[bool, ...],
    input_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Gradients]:
    """Returns the loss, and the gradients of the layer's tensors for a grad_output.

    The losses of rows are not computed: who asks for their gradients has them.

    Args:
        layer: the layer.
        options: the options of all logits.
        chunk_options: how to compute the logits of chunks.
        grad_output: the gradient of the loss, of the same shape.
        needs: whether the gradients of the input, the weight and the bias are needed.
        input_dtype: the dtype of the input's gradient; None for that of the input.
    """
    input_dtype = input_dtype or layer.input.dtype
    tiles = _tiles.kernels_of(layer, options)
    if tiles is not None:
        call = layer, options, chunk_options
        return _tiles.loss_and_gradients(tiles, *call, grad_output, needs, input_dtype)
    chunks = Chunks(layer, chunk_options)
    losses = ChunkLoss(chunks, layer, options)
    kernels = losses.kernels
    empty = torch.empty_like if kernels is None else kernels.empty_grad
    factor, scale = losses.factors(grad_output)
    gradients = _Gradients(layer, chunks, empty, needs, scale)
    sums: list[Tensor] = []
    for number, chunk in enumerate(chunks):
        weights = chunks.weights(chunk)
        logits = chunks.logits(chunk, weights)
        if options.reduction == NONE:
            losses.write_gradient(logits, chunk, factor)
        else:
            _append(sums, losses.sum_and_gradient(logits, chunk, factor), number)
        gradients.add(logits, weights, chunk)
    loss = None if options.reduction == NONE else losses.reduced(sums)
    return loss, gradients.finished(input_dtype)


class _WeightGradient:
    """The gradient of the weight from one call of the loss."""

    def __init__(
        self,
        layer: Layer,
        options: Options,
        chunk_options: ChunkOptions,
        grad_output: Tensor,
    ) -> None:
        self._chunks = chunks = Chunks(layer, chunk_options)
        self._losses = ChunkLoss(chunks, layer, options)
        self._factor, self._scale = self._losses.factors(grad_output)
        self._part = None
        if chunks.scales_products:
            self._part = chunks.workspace(chunks.dtype, layer.input.shape[1])

    def add_to(self, sums: Tensor | None, out: Tensor, chunk: slice) -> None:
        """Writes the gradient of a chunk, plus `sums`, to `out`, which may be the same memory."""
        chunks = self._chunks
        logits = chunks.logits(chunk, chunks.weights(chunk))
        self._losses.write_gradient(logits, chunk, self._factor)
        logits_grad = chunks.logits_grad(logits).t()
        if self._part is None and sums is not None:
            torch.addmm(sums, logits_grad, chunks.x, out=out)
            return
        part = out if self._part is None else self._part.matrix(*out.shape)
        product(logits_grad, chunks.x, part)
        if self._part is not None:
            part.mul_(self._scale)
        if sums is not None:
            torch.add(sums, part, out=out)
        elif part is not out:
            out.copy_(part)


class WeightGradients:
    """The gradient of the weight as the sum of those from several calls of the loss.

    Args:
        calls: for each call the layer, the options, the chunk options and grad_output.
        weight: the weight.
        dense: another term, with the shape of the weight.

    Attributes:
        size: how many labels a chunk should have.
    """

    def __init__(
        self,
        calls: Sequence[tuple[Layer, Options, ChunkOptions, Tensor]],
        weight: Tensor,
        dense: Tensor | None,
    ) -> None:
        self._calls, self._weight, self._dense = calls, weight, dense
        self._held = _tiles.held_calls(calls, dense)
        layers = [(layer, chunk_options) for layer, _, chunk_options, _ in calls]
        least = 1 if self._held is None else _LARGE_CHUNK // (weight.shape[1] * weight.itemsize)
        self.size = chunk_size(layers, weight, least)

    def chunks(self, size: int, buffers: int) -> Iterator[tuple[slice, Tensor]]:
        """Computes the gradient of one chunk of `size` labels after another.

        A gradient is valid while fewer than `buffers` others have been asked for.
        """
        shape = (size, self._weight.shape[1])
        results = [self._weight.new_empty(shape) for _ in range(buffers)]
        write = self._by_passes(size) if self._held is None else self._by_kernels(self._held)
        for i, chunk in enumerate(slices(self._weight.shape[0], size)):
            result = results[i % buffers][: chunk.stop - chunk.start]
            write(result, chunk)
            yield chunk, result

    def _by_kernels(self, held: HeldCalls) -> Callable[[Tensor, slice], None]:
        return lambda result, chunk: held.write(self._weight, chunk.start, result)

    def _by_passes(self, size: int) -> Callable[[Tensor, slice], None]:
        weight, dtype = self._weight, compute_dtype(self._weight.dtype)
        wide = None
        if dtype != weight.dtype:
            wide = weight.new_empty((size, weight.shape[1]), dtype=dtype)
        each = [
            _WeightGradient(layer, options, how._replace(chunk_labels=size), grad_output)
            for layer, options, how, grad_output in self._calls
        ]

        def write(result: Tensor, chunk: slice) -> None:
            out = result if wide is None else wide[: len(result)]
            sums = self._dense
            if sums is not None:
                sums = out.copy_(sums[chunk])
            for one in each:
                one.add_to(sums, out, chunk)
                sums = out
            if sums is None:
                out.zero_()
            if out is not result:
                result.copy_(out)

        return write
