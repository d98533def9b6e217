"""The loss of a linear layer and its gradients, in one pass over chunks of labels.

For each chunk, a product computes the logits, a kernel computes their loss and writes its gradient
over them, and products of that gradient give the gradients of the layer. All chunks use the same
memory.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import _reference
from .._checks import check_csr_indices
from .._kernels import kernels_for
from .._options import MEAN, NONE, SUM, Options
from ._chunks import ChunkOptions, Chunks, Layer, product

# Called with the labels of a chunk and the gradients of their rows of the weight and the bias.
Step = Callable[[slice, Tensor, Tensor | None], None]


class Gradients(NamedTuple):
    """The gradients of a layer's tensors; None for those that are not needed."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _Loss:
    """Computes the loss of chunks of logits, by a kernel if one serves them."""

    def __init__(self, chunks: Chunks, layer: Layer, options: Options) -> None:
        if options.first_label is None:
            check_csr_indices(layer.shape, options)
        tensors = (None if t is None else t.detach().resolve_neg() for t in options.tensors)
        self._all_options = options.with_tensors(*tensors)
        self._options = self._all_options._replace(reduction=SUM)
        self._is_of_rows, self._dtype = options.reduction == NONE, chunks.dtype
        self._logits_like, self._num_labels = layer.logits_like(), chunks.num_labels
        self._count = self._counted(chunks)
        self.kernels = kernels_for(chunks.x)

    def _counted(self, chunks: Chunks) -> Tensor | None:
        """Returns how many dense targets "mean" counts; None if it counts without reading them.

        A mask of all targets would be large, so each chunk has its own.
        """
        options = self._all_options
        ignores = options.ignore_index is not None and not options.is_sparse
        if options.reduction != MEAN or not ignores or self._logits_like.numel() == 0:
            return None
        masks = (cast(Tensor, _reference.ignored(self._of_chunk(chunk))) for chunk in chunks)
        return torch.stack([(~mask).sum() for mask in masks]).sum().clamp(min=1)

    def divided(self, total: Tensor) -> Tensor:
        """Returns a sum over all chunks, or something linear in it, after the reduction."""
        if self._count is None:
            return _reference.divided(total, self._logits_like, self._all_options)
        return total / self._count

    def reduced(self, sums: list[Tensor]) -> Tensor:
        """Returns the loss from the sums of all chunks."""
        if not sums:
            shape = self._logits_like.shape[:1] if self._is_of_rows else ()
            sums = [self._logits_like.new_zeros(shape, dtype=self._dtype)]
        return self.divided(torch.stack(sums).sum(0))

    def _of_chunk(self, chunk: slice) -> Options:
        """Returns the options of a chunk. Sparse labels are not cut."""
        options = self._options

        def part(factor: Tensor | None) -> Tensor | None:
            if factor is None or factor.dim() == 0 or factor.shape[-1] != self._num_labels:
                return factor
            return factor[..., chunk]

        options = options._replace(weight=part(options.weight), pos_weight=part(options.pos_weight))
        if options.is_sparse:
            return options._replace(first_label=(options.first_label or 0) + chunk.start)
        return options._replace(target=options.target[:, chunk]).with_readable_target()

    def sum(self, logits: Tensor, chunk: slice) -> Tensor:
        """Returns the sum of the losses; that of each row without a reduction."""
        options = self._of_chunk(chunk)
        if self._is_of_rows:
            options = options._replace(reduction=NONE)
        if self.kernels is None:
            losses = _reference.loss(logits, options)
        else:
            kernel = self.kernels.unreduced if self._is_of_rows else self.kernels.loss
            losses = cast(Tensor, kernel(logits, *options))
        return losses.sum(1) if self._is_of_rows else losses

    def gradient_of_rows(self, logits: Tensor, chunk: slice, grad_output: Tensor) -> None:
        """Writes the gradient over the logits, whose rows have one grad_output each."""
        options, grad_output = self._of_chunk(chunk), grad_output[:, None].expand_as(logits)
        if self.kernels is None:
            logits.copy_(_reference.grad(grad_output, logits, options))
        else:
            self.kernels.grad_(grad_output, logits, *options)

    def sum_and_gradient(self, logits: Tensor, chunk: slice, grad_output: Tensor) -> Tensor:
        """Returns the sum of the losses; writes its gradient times grad_output over the logits."""
        options = self._of_chunk(chunk)
        if self.kernels is None:
            loss = _reference.loss(logits, options)
            logits.copy_(_reference.grad(grad_output, logits, options))
            return loss
        return cast(Tensor, self.kernels.loss_and_grad_(grad_output, logits, *options))


class _Gradients:
    """The gradients of the layer, to which each chunk adds."""

    def __init__(
        self,
        layer: Layer,
        chunks: Chunks,
        empty: Callable[[Tensor], Tensor],
        needs: tuple[bool, ...],
        grad_output: Tensor,
        step: Step | None,
    ) -> None:
        self._chunks, self._grad_output, self._step = chunks, grad_output, step
        # In half precision 1 / (rows * labels) would be 0, so it is multiplied into the products.
        self.scales_products = chunks.product_dtype != chunks.dtype

        def memory(parameter: Tensor | None, needed: bool) -> Tensor | None:
            """Returns memory for a whole gradient, or with a step for that of the largest chunk."""
            if parameter is None or not needed:
                return None
            if step is None:
                return empty(parameter.detach())
            return parameter.new_empty((chunks.size, *parameter.shape[1:]))

        x, weight, bias = layer
        self._weight, self._bias = memory(weight, needs[1]), memory(bias, needs[2])
        self._input = self._input_part = None
        if needs[0]:
            self._input = torch.zeros(x.shape, dtype=chunks.dtype, device=x.device)
            self._input_part = torch.empty_like(self._input) if self.scales_products else None
        self._products = None
        if needs[1] and weight.dtype != chunks.dtype:
            self._products = chunks.workspace(chunks.dtype, x.shape[1])

    def add(self, logits: Tensor, weights: Tensor, chunk: slice) -> None:
        """Adds the part of a chunk, whose logits have been replaced by their gradient."""
        logits_grad = self._chunks.logits_grad(logits)
        self._add_to_input(logits_grad, weights)
        weight_grad = bias_grad = None
        if self._weight is not None:
            weight_grad = self._part(self._weight, chunk)
            products = weight_grad
            if self._products is not None:
                products = self._products.matrix(*weight_grad.shape)
            product(logits_grad.t(), self._chunks.x, products)
            self._finish(products, weight_grad)
        if self._bias is not None:
            bias_grad = self._part(self._bias, chunk)
            self._finish(logits.sum(0), bias_grad)
        if self._step is not None and weight_grad is not None:
            self._step(chunk, weight_grad, bias_grad)

    def _add_to_input(self, logits_grad: Tensor, weights: Tensor) -> None:
        if self._input is None:
            return
        if self._input_part is None:
            self._input.addmm_(logits_grad, weights)
        else:
            product(logits_grad, weights, self._input_part)
            self._input.add_(self._input_part)

    def _part(self, gradient: Tensor, chunk: slice) -> Tensor:
        return gradient[chunk if self._step is None else slice(chunk.stop - chunk.start)]

    def _finish(self, sums: Tensor, out: Tensor) -> None:
        if self.scales_products:
            sums.mul_(self._grad_output)
        if out is not sums:
            out.copy_(sums)

    def finished(self, dtype: torch.dtype) -> Gradients:
        """Returns all gradients; that of the input in its dtype."""
        x = self._input
        if x is not None:
            self._finish(x, x)
            x = x.to(dtype)
        given_away = self._step is not None
        return Gradients(x, *((None, None) if given_away else (self._weight, self._bias)))


def loss(layer: Layer, options: Options, chunk_options: ChunkOptions) -> Tensor:
    """Returns the loss of all logits after the reduction; that of each row without one."""
    chunks = Chunks(layer, chunk_options)
    losses = _Loss(chunks, layer, options)
    sums: list[Tensor] = []
    for chunk in chunks:
        sums.append(losses.sum(chunks.logits(chunk, chunks.weights(chunk)), chunk))
        if len(sums) == _MOST_SUMS:  # those of rows would need more and more memory
            sums = [torch.stack(sums).sum(0)]
    return losses.reduced(sums)


_MOST_SUMS = 64  # many are added at once, since each addition to a running total is rounded


def _factored(grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Returns factors for the gradient of the logits, at most 1, and a 0-d one for its products.

    A gradient of logits in half precision times 1 / (rows * labels) would be 0.
    """
    if grad_output.dim() == 0:
        return torch.ones_like(grad_output), grad_output
    largest = torch.cat((grad_output.new_zeros(1), grad_output.abs())).amax()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    return grad_output / scale, scale


def loss_and_gradients(
    layer: Layer,
    options: Options,
    chunk_options: ChunkOptions,
    grad_output: Tensor,
    needs: tuple[bool, ...],
    step: Step | None = None,
) -> tuple[Tensor | None, Gradients]:
    """Returns the loss, and the gradients of the layer's tensors for a grad_output.

    The losses of rows are not computed: who asks for their gradients has them.

    Args:
        layer: the layer.
        options: the options of all logits.
        chunk_options: how to compute the logits of chunks.
        grad_output: the gradient of the loss, of the same shape.
        needs: whether the gradients of the input, the weight and the bias are needed.
        step: gets the gradients of weight and bias chunk by chunk; they are then not returned.
    """
    chunks = Chunks(layer, chunk_options)
    losses = _Loss(chunks, layer, options)
    grad_output = losses.divided(grad_output.to(chunks.dtype))
    if 0 in layer.shape:  # a mean of nothing has made it infinite, and NaN of products with zeros
        grad_output = torch.zeros_like(grad_output)
    kernels = losses.kernels
    empty = torch.empty_like if kernels is None else kernels.empty_grad
    factor = scale = grad_output
    if chunks.product_dtype != chunks.dtype:
        factor, scale = _factored(grad_output)
    gradients = _Gradients(layer, chunks, empty, needs, scale, step)
    sums = []
    for chunk in chunks:
        weights = chunks.weights(chunk)
        logits = chunks.logits(chunk, weights)
        if options.reduction == NONE:
            losses.gradient_of_rows(logits, chunk, factor)
        else:
            sums.append(losses.sum_and_gradient(logits, chunk, factor))
        gradients.add(logits, weights, chunk)
    loss = None if options.reduction == NONE else losses.reduced(sums)
    return loss, gradients.finished(layer.input.dtype)
