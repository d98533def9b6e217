"""The loss of chunks of logits, and its gradient."""

from typing import cast

import torch
from torch import Tensor

from .. import _reference
from .._checks import check_csr_indices
from .._kernels import kernels_for, recorded
from .._options import MEAN, NONE, SUM, Options
from ._chunks import Chunks, Layer


class ChunkLoss:
    """Computes the loss of chunks of logits, by a kernel if one serves them."""

    def __init__(self, chunks: Chunks, layer: Layer, options: Options) -> None:
        if options.first_label is None:
            check_csr_indices(layer.shape, options)
        tensors = (None if t is None else t.detach().resolve_neg() for t in options.tensors)
        self._all_options = options.with_tensors(*tensors)
        self._options = self._all_options.undivided(SUM)
        self._is_of_rows, self._dtype = options.reduction == NONE, chunks.dtype
        self._scales_products = chunks.scales_products
        self._logits_like, self._num_labels = layer.logits_like(), chunks.num_labels
        self._count = self._counted(chunks)
        kernels = kernels_for(chunks.x)
        self.kernels = None if kernels is None else recorded(kernels)

    def _counted(self, chunks: Chunks) -> Tensor | None:
        """Returns how many dense targets "mean" counts; None if it counts without reading them.

        A mask of all targets would be large, so each chunk has its own.
        """
        options = self._all_options
        ignores = options.ignore_index is not None and not options.is_sparse
        is_given = options.normalizer is not None
        if options.reduction != MEAN or is_given or not ignores or self._logits_like.numel() == 0:
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

    def write_gradient(self, logits: Tensor, chunk: slice, factor: Tensor) -> None:
        """Writes the gradient times a factor over the logits; each row has a factor if it has a
        loss."""
        options = self._of_chunk(chunk)
        if self._is_of_rows:
            factor = factor[:, None].expand_as(logits)
        if self.kernels is None:
            logits.copy_(_reference.grad(factor, logits, options))
        else:
            self.kernels.grad_(factor, logits, *options)

    def sum_and_gradient(self, logits: Tensor, chunk: slice, factor: Tensor) -> Tensor:
        """Returns the sum of the losses; writes its gradient times a factor over the logits."""
        options = self._of_chunk(chunk)
        if self.kernels is None:
            loss = _reference.loss(logits, options)
            logits.copy_(_reference.grad(factor, logits, options))
            return loss
        return cast(Tensor, self.kernels.loss_and_grad_(factor, logits, *options))

    def factors(self, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the gradient of the logits is multiplied by, and what products of it are.

        In half precision a gradient times 1 / (rows * labels) would be 0. So the first factor is
        then at most 1, and the second, which is 0-d, has the rest. Otherwise the second is unused.
        """
        grad_output = self.divided(grad_output.to(self._dtype))
        if 0 in self._logits_like.shape:  # a mean of nothing is not finite
            grad_output = torch.zeros_like(grad_output)
        if not self._scales_products:
            return grad_output, grad_output
        if grad_output.dim() == 0:
            return torch.ones_like(grad_output), grad_output
        largest = torch.cat((grad_output.new_zeros(1), grad_output.abs())).amax()
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1)
        return grad_output / scale, scale
