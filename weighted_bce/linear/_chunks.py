"""Computes the logits of a linear layer a chunk of labels at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .._options import compute_dtype


class ChunkOptions(NamedTuple):
    """Options for computing the logits of chunks."""

    product_dtype: torch.dtype | None = None  # the dtype of autocast; None for that of the input
    chunk_labels: int | None = None  # how many labels a chunk has; None to choose


_HALF = frozenset({torch.float16, torch.bfloat16})


class Layer(NamedTuple):
    """The tensors of a linear layer; its logits are input @ weight.t() + bias."""

    input: Tensor  # (rows, features); (..., features) where users pass it
    weight: Tensor  # (labels, features)
    bias: Tensor | None  # (labels,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits."""
        return *self.input.shape[:-1], self.weight.shape[0]

    @property
    def has_numbers(self) -> bool:
        """Whether the input is more than a shape, unlike meta and fake tensors."""
        return not (self.input.is_meta or isinstance(self.input, FakeTensor))

    def logits_like(self) -> Tensor:
        """Returns a stand-in for the logits, with their shape, dtype and device."""
        like = self.input
        return torch.empty((), dtype=like.dtype, device=like.device).expand(self.shape)


class Workspace:
    """Memory for one matrix at a time, of one dtype and at most `elements` elements."""

    def __init__(self, like: Tensor, dtype: torch.dtype, elements: int) -> None:
        self._memory = torch.empty(elements, dtype=dtype, device=like.device)

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self._memory[: rows * columns].view(rows, columns)


class Chunks:
    """The chunks of a layer's labels, and the computations on each.

    Logits, sums over chunks and scale factors have the compute dtype, float32 for half
    precision. Operands of products may have half precision on CUDA, where cuBLAS returns float32
    products of them. Elsewhere they have the compute dtype, since torch would round logits to half
    precision before the loss.

    Args:
        layer: tensors whose dtypes may differ.
        options: the options for the logits.
    """

    def __init__(self, layer: Layer, options: ChunkOptions) -> None:
        x, weight, bias = layer
        self.dtype = compute_dtype(x.dtype)
        wanted = options.product_dtype or x.dtype
        self.product_dtype = wanted if wanted in _HALF and _multiplies_halves(x) else self.dtype
        # In half precision 1 / (rows * labels) would be 0, so it is multiplied into the products.
        self.scales_products = self.product_dtype != self.dtype
        self.x = x.to(self.product_dtype).contiguous()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self.rows, self.num_labels = layer.shape
        self.size = chunk_size([(layer, options)], weight)
        self._logits = self.workspace(self.dtype, self.rows)
        self._weight_workspace = self._grad_workspace = None
        if weight.dtype != self.product_dtype:
            self._weight_workspace = self.workspace(self.product_dtype, x.shape[1])
        if self.scales_products:
            self._grad_workspace = self.workspace(self.product_dtype, self.rows)

    def __iter__(self) -> Iterator[slice]:
        return slices(self.num_labels, self.size)

    def workspace(self, dtype: torch.dtype, elements: int) -> Workspace:
        """Returns memory for `elements` elements for each label of a chunk."""
        return Workspace(self.x, dtype, self.size * elements)

    def weights(self, chunk: slice) -> Tensor:
        """Returns the rows of the weight of a chunk, in the dtype of products."""
        own, workspace = self._weight[chunk], self._weight_workspace
        return own if workspace is None else workspace.matrix(*own.shape).copy_(own)

    def logits(self, chunk: slice, weights: Tensor) -> Tensor:
        logits = self._logits.matrix(self.rows, weights.shape[0])
        product(self.x, weights.t(), logits)
        return logits if self._bias is None else logits.add_(self._bias[chunk])

    def logits_grad(self, logits: Tensor) -> Tensor:
        """Returns the gradient, which has replaced the logits, in the dtype of products."""
        workspace = self._grad_workspace
        return logits if workspace is None else workspace.matrix(*logits.shape).copy_(logits)


def _multiplies_halves(like: Tensor) -> bool:
    """Tells whether torch gives float32 products of half precision."""
    return like.is_cuda


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Computes a @ b in the dtype of `out`, which on CUDA may be wider than theirs."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)


_MULTIPLE = 64  # labels: whole vectors and tiles
_BYTES, _LEAST, _MOST = 2**19, 256, 4096  # 512 KiB of logits: half of a second-level cache
_CUDA_BYTES, _CUDA_LEAST = 2**25, 1024  # 32 MiB of logits: most of an H200's second-level cache


def slices(num_labels: int, size: int) -> Iterator[slice]:
    """Cuts the labels into chunks."""
    for first in range(0, num_labels, size):
        yield slice(first, min(first + size, num_labels))


def chunk_size(calls: Sequence[tuple[Layer, ChunkOptions]], weight: Tensor, least: int = 1) -> int:
    """Returns how many labels make a chunk of several calls of the loss of the same weight.

    It is at least `least`, unless a call gives another number.
    """
    size = least_given([options for _, options in calls])
    if size is None:
        size = max(least, _chosen_labels([layer.input for layer, _ in calls], weight))
    return max(1, min(size, weight.shape[0]))


def least_given(each: Sequence[ChunkOptions]) -> int | None:
    """Returns the smallest number of labels in a chunk that calls give, if any does."""
    return min((c.chunk_labels for c in each if c.chunk_labels is not None), default=None)


def _chosen_labels(inputs: Sequence[Tensor], weight: Tensor) -> int:
    """Returns how many labels make a chunk whose logits fit in a cache, with large products."""
    bytes_per_label = sum(max(1, x.shape[0]) * compute_dtype(x.dtype).itemsize for x in inputs) or 1
    if not weight.is_cuda:
        return max(_LEAST, min(_MOST, _BYTES // bytes_per_label // _MULTIPLE * _MULTIPLE))
    most = _CUDA_BYTES
    if not torch.cuda.is_current_stream_capturing():
        most = min(most, _free_bytes(weight.device, 8 * most) // 8)
    return max(_CUDA_LEAST, most // bytes_per_label // _MULTIPLE * _MULTIPLE)


def _free_bytes(device: torch.device, enough: int) -> int:
    """Returns how much can be allocated on a GPU.

    Asking torch's allocator takes a good part of a short step, so it is asked only if the driver
    has less than `enough`.
    """
    free, _ = torch.cuda.mem_get_info(device)
    if free < enough:
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free)


def topk(layer: Layer, options: ChunkOptions, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest logits of each row, largest first, and their labels."""
    chunks = Chunks(layer, options)
    values = chunks.x.new_empty((chunks.rows, 0), dtype=chunks.dtype)
    indices = chunks.x.new_empty((chunks.rows, 0), dtype=torch.int64)
    for chunk in chunks:
        logits = chunks.logits(chunk, chunks.weights(chunk))
        best = logits.topk(min(k, logits.shape[1]))
        values = torch.cat((values, best.values), 1)
        indices = torch.cat((indices, best.indices + chunk.start), 1)
        values, places = values.topk(min(k, values.shape[1]))
        indices = indices.gather(1, places)
    return values, indices
