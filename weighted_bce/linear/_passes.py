"""The loss of a linear layer and its gradients, in one pass over chunks of labels.

For each chunk: its logits by a product, their loss and its gradient in place by a kernel, and from
that gradient the products that the layer's own gradients are made of. All chunks use the same
memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import _dispatch, _reference
from .._checks import check_listed
from .._kernels import TARGET_DTYPES
from .._options import SUM, Options
from ._chunks import Chunks, Layer, product

# Called with the labels of a chunk and the gradients of their rows of the weight and the bias.
Step = Callable[[slice, Tensor, Tensor | None], None]


class Gradients(NamedTuple):
    """Of the layer's tensors; None where it is not needed."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _Loss:
    """The loss of chunks of logits, by a kernel where one serves them."""

    def __init__(self, chunks: Chunks, layer: Layer, options: Options) -> None:
        if options.first_label is None:
            check_listed(layer.logits_like(), options)
        target, crow_indices, weight, pos_weight, *rest = options
        tensors = (target, crow_indices, weight, pos_weight)
        found = (None if t is None else t.detach().resolve_neg() for t in tensors)
        self._options = Options(*cast(Any, found), *rest)
        self._labels = chunks.labels
        self.kernels = _dispatch.kernels_for(chunks.x)

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
            return _reference.loss(logits, self._of(labels), SUM)
        return cast(Tensor, self.kernels.loss(logits, *self._of(labels), SUM))

    def and_slopes(self, logits: Tensor, labels: slice, upstream: Tensor) -> Tensor:
        """The sum of the losses; its gradient, times `upstream`, is written over the logits."""
        options = self._of(labels)
        if self.kernels is None:
            loss = _reference.loss(logits, options, SUM)
            logits.copy_(_reference.grad(upstream, logits, options, SUM))
            return loss
        return cast(Tensor, self.kernels.loss_and_grad_(upstream, logits, *options, SUM))


class _Gradients:
    """The layer's gradients, as they come together."""

    def __init__(
        self,
        layer: Layer,
        chunks: Chunks,
        empty: Callable[[Tensor], Tensor],
        needs: tuple[bool, ...],
        upstream: Tensor,
        step: Step | None,
    ) -> None:
        self._chunks, self._upstream, self._step = chunks, upstream, step
        # In half precision 1 / (rows * labels) would vanish: it is multiplied into the products.
        self.is_late = chunks.operands != chunks.dtype

        def room(parameter: Tensor | None, needed: bool) -> Tensor | None:
            """For all of a gradient; where each chunk's is given away at once, for the largest."""
            if parameter is None or not needed:
                return None
            if step is None:
                return empty(parameter.detach())
            return parameter.new_empty((chunks.size, *parameter.shape[1:]))

        x, weight, bias = layer
        self._weight, self._bias = room(weight, needs[1]), room(bias, needs[2])
        self._input = self._to_input = None
        if needs[0]:
            self._input = torch.zeros(x.shape, dtype=chunks.dtype, device=x.device)
            self._to_input = torch.empty_like(self._input) if self.is_late else None
        self._products = None
        if needs[1] and weight.dtype != chunks.dtype:
            self._products = chunks.room(chunks.dtype, x.shape[1])

    def add(self, logits: Tensor, weights: Tensor, labels: slice) -> None:
        """From the gradient of a chunk's logits, which has taken their place."""
        slopes = self._chunks.slopes(logits)
        self._add_to_input(slopes, weights)
        weight_grad = bias_grad = None
        if self._weight is not None:
            weight_grad = self._part(self._weight, labels)
            products = weight_grad
            if self._products is not None:
                products = self._products.matrix(*weight_grad.shape)
            product(slopes.t(), self._chunks.x, products)
            self._finish(products, weight_grad)
        if self._bias is not None:
            bias_grad = self._part(self._bias, labels)
            self._finish(logits.sum(0), bias_grad)
        if self._step is not None and weight_grad is not None:
            self._step(labels, weight_grad, bias_grad)

    def _add_to_input(self, slopes: Tensor, weights: Tensor) -> None:
        if self._input is None:
            return
        if self._to_input is None:
            self._input.addmm_(slopes, weights)
        else:
            product(slopes, weights, self._to_input)
            self._input.add_(self._to_input)

    def _part(self, room: Tensor, labels: slice) -> Tensor:
        return room[labels] if self._step is None else room[: labels.stop - labels.start]

    def _finish(self, sums: Tensor, out: Tensor) -> None:
        if self.is_late:
            sums.mul_(self._upstream)
        if out is not sums:
            out.copy_(sums)

    def found(self, dtype: torch.dtype) -> Gradients:
        """All of them; that of the input in its dtype."""
        x = self._input
        if x is not None:
            self._finish(x, x)
            x = x.to(dtype)
        given_away = self._step is not None
        return Gradients(x, *((None, None) if given_away else (self._weight, self._bias)))


def loss(chunks: Chunks, layer: Layer, options: Options, reduction: int) -> Tensor:
    """The loss of all logits after a reduction."""
    of_chunk = _Loss(chunks, layer, options)
    parts = [of_chunk.of(chunks.logits(s, chunks.weights(s)), s) for s in chunks]
    return _reduced(parts, chunks, layer, options, reduction)


def _reduced(
    parts: list[Tensor], chunks: Chunks, layer: Layer, options: Options, reduction: int
) -> Tensor:
    total = torch.stack(parts).sum() if parts else chunks.x.new_zeros((), dtype=chunks.dtype)
    return _reference.divided(total, reduction, layer.logits_like(), options)


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
    of_chunk = _Loss(chunks, layer, options)
    upstream = _reference.divided(
        grad_output.to(chunks.dtype), reduction, layer.logits_like(), options
    )
    kernels = of_chunk.kernels
    empty = torch.empty_like if kernels is None else kernels.empty_grad
    gradients = _Gradients(layer, chunks, empty, needs, upstream, step)
    factor = torch.ones_like(upstream) if gradients.is_late else upstream
    parts = []
    for labels in chunks:
        weights = chunks.weights(labels)
        logits = chunks.logits(labels, weights)
        parts.append(of_chunk.and_slopes(logits, labels, factor))
        gradients.add(logits, weights, labels)
    loss = _reduced(parts, chunks, layer, options, reduction)
    return loss, gradients.found(layer.input.dtype)
