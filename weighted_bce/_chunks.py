"""A linear layer and its loss, a chunk of labels at a time: the logits of one chunk exist, no more.

For each chunk: its logits by a product, their loss and its gradient in place by a kernel, and from
that gradient the products that the layer's own gradients are made of. All chunks use the same
memory.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import _choice, reference
from ._ops import TARGET_DTYPES, Kernels
from .reference import SUM, Options, compute_dtype, divided

# Called with the labels of a chunk and the gradients of their rows of the weight and the bias.
Step = Callable[[slice, Tensor, Tensor | None], None]

_HALF = frozenset({torch.float16, torch.bfloat16})


class Layer(NamedTuple):
    """What logits are made of: input @ weight.t() + bias."""

    input: Tensor  # (rows, features)
    weight: Tensor  # (labels, features)
    bias: Tensor | None  # (labels,)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the logits."""
        return self.input.shape[0], self.weight.shape[0]

    def logits_like(self) -> Tensor:
        """In place of the logits where only their shape, dtype and device are asked for."""
        like = self.input
        return torch.empty((), dtype=like.dtype, device=like.device).expand(self.shape)


class Gradients(NamedTuple):
    """Of the layer's tensors; None where it is not needed."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _Buffer:
    """Memory for matrices of one dtype, one after the other."""

    def __init__(self, like: Tensor, dtype: torch.dtype, elements: int) -> None:
        self._memory = torch.empty(elements, dtype=dtype, device=like.device)

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self._memory[: rows * columns].view(rows, columns)


class Chunks:
    """The chunks of a layer and of its loss.

    Logits, sums over chunks and scale factors have the dtype of arithmetic, float32 for half
    precision. Products take `operands`, which on CUDA may be half precision, since cuBLAS gives
    float32 products of it. Elsewhere they take the dtype of arithmetic: torch would round logits of
    half precision before the loss.

    Args:
        layer: of dtypes that may differ.
        product_dtype: in which autocast would multiply; None for the dtype of the input.
        chunk_labels: how many labels a chunk has; None to choose.
    """

    def __init__(
        self, layer: Layer, product_dtype: torch.dtype | None, chunk_labels: int | None
    ) -> None:
        x, weight, bias = layer
        self.dtype = compute_dtype(x.dtype)
        self.operands = product_dtype or x.dtype
        if not (self.operands in _HALF and x.is_cuda):
            self.operands = self.dtype
        self.x = x.to(self.operands).contiguous()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.rows, self.labels = layer.shape
        self.features = x.shape[1]
        most = chunk_labels or _chosen_labels(self.rows, x, self.dtype)
        self.size = max(1, min(most, self.labels))
        self._logits = self._buffer(self.dtype, self.rows)
        self._weights = self._slopes = self._logits
        if weight.dtype != self.operands:
            self._weights = self._buffer(self.operands, self.features)
        if self.operands != self.dtype:
            self._slopes = self._buffer(self.operands, self.rows)

    def _buffer(self, dtype: torch.dtype, each: int) -> _Buffer:
        return _Buffer(self.x, dtype, self.size * each)

    def __iter__(self) -> Iterator[slice]:
        for first in range(0, self.labels, self.size):
            yield slice(first, min(first + self.size, self.labels))

    def weights(self, labels: slice) -> Tensor:
        """The rows of the weight as products take them."""
        own = self.weight[labels]
        if own.dtype == self.operands:
            return own
        return self._weights.matrix(*own.shape).copy_(own)

    def logits(self, labels: slice, weights: Tensor) -> Tensor:
        logits = self._logits.matrix(self.rows, len(weights))
        product(self.x, weights.t(), logits)
        return logits if self.bias is None else logits.add_(self.bias[labels])

    def slopes(self, logits: Tensor) -> Tensor:
        """The gradient that stands where the logits were, as products take it."""
        if self.operands == self.dtype:
            return logits
        return self._slopes.matrix(*logits.shape).copy_(logits)


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b, summed and written in the dtype of `out`, which on CUDA may be wider than theirs."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)


def _chosen_labels(rows: int, x: Tensor, dtype: torch.dtype) -> int:
    """So many that the logits of a chunk stay in a cache, and its products are worth a call."""
    if x.is_cuda:
        memory = min(_CUDA_BYTES, _free_bytes(x.device) // 8)
        return max(_CUDA_LEAST, _whole_steps(memory // (max(1, rows) * dtype.itemsize)))
    return max(_LEAST, min(_MOST, _whole_steps(_BYTES // (max(1, rows) * dtype.itemsize))))


_STEP = 64  # of labels: whole vectors and tiles
_BYTES, _LEAST, _MOST = 2**19, 256, 4096  # 512 KiB of logits: half of a second-level cache
_CUDA_BYTES, _CUDA_LEAST = 2**25, 1024  # 32 MiB of logits: most of an H200's second-level cache


def _whole_steps(labels: int) -> int:
    return labels // _STEP * _STEP


def _free_bytes(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


class Loss:
    """The loss of chunks of logits, by a kernel where one serves them."""

    def __init__(self, chunks: Chunks, options: Options) -> None:
        target, crow_indices, weight, pos_weight, *rest = options
        tensors = (target, crow_indices, weight, pos_weight)
        found = (None if t is None else t.detach().resolve_neg() for t in tensors)
        self._options = Options(*cast(Any, found), *rest)
        self._labels = chunks.labels
        self.kernels = _choice.kernels_for(chunks.x)

    def _of(self, labels: slice) -> Options:
        """The part of the options that belongs to a chunk. Sparse labels are not cut."""
        options = self._options

        def part(factor: Tensor | None) -> Tensor | None:
            if factor is None or factor.dim() == 0 or factor.shape[-1] != self._labels:
                return factor
            return factor[..., labels]

        options = options._replace(weight=part(options.weight), pos_weight=part(options.pos_weight))
        if options.is_sparse:
            return options._replace(first_label=(options.first_label or 0) + labels.start)
        target = options.target[:, labels]
        if target.dtype not in TARGET_DTYPES:
            target = target.float()
        return options._replace(target=target)

    def of(self, logits: Tensor, labels: slice) -> Tensor:
        """The sum of the losses."""
        if self.kernels is None:
            return reference.loss(logits, self._of(labels), SUM)
        return cast(Tensor, self.kernels.loss(logits, *self._of(labels), SUM))

    def and_slopes(self, logits: Tensor, labels: slice, upstream: Tensor) -> Tensor:
        """The sum of the losses; its gradient, times `upstream`, is written over the logits."""
        options = self._of(labels)
        if self.kernels is None:
            loss = reference.loss(logits, options, SUM)
            logits.copy_(reference.grad(upstream, logits, options, SUM))
            return loss
        return cast(Tensor, self.kernels.loss_and_grad_(logits, *options, SUM, upstream))


class _Sums:
    """The layer's gradients, as they come together."""

    def __init__(
        self,
        layer: Layer,
        chunks: Chunks,
        kernels: Kernels | None,
        needs: tuple[bool, ...],
        upstream: Tensor,
        step: Step | None,
    ) -> None:
        self._chunks, self._step, self._upstream = chunks, step, upstream
        self._empty = torch.empty_like if kernels is None else kernels.empty_grad
        # In half precision 1 / (rows * labels) would vanish: it is multiplied into the products.
        self.is_late = chunks.operands != chunks.dtype
        x, weight, bias = layer
        self.input = self.weight = self.bias = None
        self._product = chunks._logits
        if needs[0]:
            self.input = torch.zeros(x.shape, dtype=chunks.dtype, device=x.device)
        if needs[1]:
            self.weight = self._room(weight)
            if weight.dtype != chunks.dtype:
                self._product = chunks._buffer(chunks.dtype, chunks.features)
        if needs[2] and bias is not None:
            self.bias = self._room(bias)
        self._to_input = None
        if self.is_late and self.input is not None:
            self._to_input = torch.empty_like(self.input)

    def _room(self, parameter: Tensor) -> Tensor:
        """For a whole gradient, or where each chunk's is given away at once, for the largest."""
        if self._step is None:
            return cast(Tensor, self._empty(parameter.detach()))
        return parameter.new_empty((self._chunks.size, *parameter.shape[1:]))

    def _part(self, room: Tensor, labels: slice) -> Tensor:
        return room[labels] if self._step is None else room[: labels.stop - labels.start]

    def add(self, logits: Tensor, weights: Tensor, labels: slice) -> None:
        """From the gradient of a chunk's logits, which has taken their place."""
        slopes = self._chunks.slopes(logits)
        if self.input is not None:
            if self._to_input is None:
                self.input.addmm_(slopes, weights)
            else:
                product(slopes, weights, self._to_input)
                self.input.add_(self._to_input)
        weight_grad = bias_grad = None
        if self.weight is not None:
            weight_grad = self._part(self.weight, labels)
            out = weight_grad
            if out.dtype != self._chunks.dtype:
                out = self._product.matrix(*out.shape)
            product(slopes.t(), self._chunks.x, out)
            self._finish(out, weight_grad)
        if self.bias is not None:
            bias_grad = self._part(self.bias, labels)
            self._finish(logits.sum(0), bias_grad)
        if self._step is not None and weight_grad is not None:
            self._step(labels, weight_grad, bias_grad)

    def _finish(self, sums: Tensor, out: Tensor) -> None:
        if self.is_late:
            sums.mul_(self._upstream)
        if out is not sums:
            out.copy_(sums)

    def gradients(self, layer: Layer) -> Gradients:
        x = self.input
        if x is not None:
            if self.is_late:
                x.mul_(self._upstream)
            x = x.to(layer.input.dtype)
        if self._step is not None:
            return Gradients(x, None, None)
        return Gradients(x, self.weight, self.bias)


def loss(chunks: Chunks, layer: Layer, options: Options, reduction: int) -> Tensor:
    """The loss of all logits after a reduction."""
    of_chunk = Loss(chunks, options)
    parts = [of_chunk.of(chunks.logits(s, chunks.weights(s)), s) for s in chunks]
    return _reduced(parts, chunks, layer, options, reduction)


def _reduced(
    parts: list[Tensor], chunks: Chunks, layer: Layer, options: Options, reduction: int
) -> Tensor:
    total = torch.stack(parts).sum() if parts else chunks.x.new_zeros((), dtype=chunks.dtype)
    return divided(total, reduction, layer.logits_like(), options)


def loss_and_gradients(
    chunks: Chunks,
    layer: Layer,
    options: Options,
    reduction: int,
    grad_output: Tensor,
    needs: tuple[bool, ...],
    step: Step | None = None,
) -> tuple[Tensor, Gradients]:
    """The loss, and what the layer's tensors receive for an upstream gradient `grad_output`.

    With `step`, the gradients of weight and bias go to it chunk by chunk, and are not returned.
    """
    of_chunk = Loss(chunks, options)
    # Plain: it may be a subclass of zero strides that an engine made.
    upstream = divided(
        grad_output.to(chunks.dtype), reduction, layer.logits_like(), options
    ).contiguous()
    sums = _Sums(layer, chunks, of_chunk.kernels, needs, upstream, step)
    factor = torch.ones_like(upstream) if sums.is_late else upstream
    parts = []
    for labels in chunks:
        weights = chunks.weights(labels)
        logits = chunks.logits(labels, weights)
        parts.append(of_chunk.and_slopes(logits, labels, factor))
        sums.add(logits, weights, labels)
    return _reduced(parts, chunks, layer, options, reduction), sums.gradients(layer)


def topk(chunks: Chunks, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row, largest first, and their labels."""
    values = chunks.x.new_empty((chunks.rows, 0), dtype=chunks.dtype)
    indices = chunks.x.new_empty((chunks.rows, 0), dtype=torch.int64)
    for labels in chunks:
        logits = chunks.logits(labels, chunks.weights(labels))
        best = logits.topk(min(k, logits.shape[1]))
        values = torch.cat((values, best.values), 1)
        indices = torch.cat((indices, best.indices + labels.start), 1)
        values, places = values.topk(min(k, values.shape[1]))
        indices = indices.gather(1, places)
    return values, indices
