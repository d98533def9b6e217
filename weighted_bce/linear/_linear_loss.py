"""What the modules of a linear layer share: the layer, its logits, and the largest of them."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._checks import checked_named_reduction
from .._numbers import check_bool, checked_count
from .._options import compute_dtype
from .._types import ReductionName
from .._weighted_loss import WeightedLoss
from . import _ops, _rows
from ._checks import check_layer
from ._chunks import Layer
from ._layer import is_plain, own_logits
from ._stepped import Step
from .functional import chunk_options_of


class TopK(NamedTuple):
    """The largest logits of each row and their labels, both of shape (..., k), largest first."""

    values: Tensor
    indices: Tensor


class LinearLoss(WeightedLoss):
    """The base class of the modules: the layer, its logits, and the largest of them."""

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool,
        weight: Tensor | None,
        pos_weight: float | Tensor | None,
        reduction: ReductionName,
        label_smoothing: float,
        ignore_index: float | None,
        chunk_labels: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        checked_named_reduction(reduction)
        super().__init__(weight, pos_weight, reduction, label_smoothing, ignore_index)
        in_features = checked_count("in_features", in_features, least=0)
        num_labels = checked_count("num_labels", num_labels, least=0)
        check_bool("bias", bias)
        if chunk_labels is not None:
            checked_count("chunk_labels", chunk_labels)
        self.linear = nn.Linear(in_features, num_labels, bias, device, dtype)
        self.chunk_labels = chunk_labels
        self.fused_step: Step | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the fused step out of copies, as a module does not copy its optimizer."""
        return {**self.__dict__, "fused_step": None}

    def _options(self, weight: Tensor | None) -> dict[str, Any]:
        return dict(
            linear_bias=self.linear.bias,
            weight=weight,
            pos_weight=self.pos_weight,
            reduction=cast(ReductionName, self.reduction),
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            chunk_labels=self.chunk_labels,
            fused_step=self.fused_step,
        )

    def logits(self, input: Tensor) -> Tensor:
        """Computes all logits.

        Args:
            input: shape (..., features).

        Returns:
            ``self.linear(input)``, a tensor of shape (..., labels).
        """
        logits: Tensor = self.linear(input)
        return logits

    def topk(self, input: Tensor, k: int) -> TopK:
        """Finds the k largest logits of each row and their labels, without holding all logits.

        Args:
            input: the features, shape (..., features), as for the loss.
            k: how many to find; at least 1 and at most the number of labels.

        Returns:
            A named tuple (values, indices) of tensors of shape (..., k), largest first, as
            torch.topk returns. The values have the dtype of the loss and no gradient. The order of
            equal logits is not defined.

        Raises:
            TypeError, ValueError: if an argument has the wrong type, shape or value.
        """
        if not is_plain(self.linear):
            with torch.no_grad():
                logits = own_logits(self.linear, input)
                k = _checked_k(k, logits.shape[-1])
                values, indices = logits.topk(k)
            return TopK(values.to(compute_dtype(values.dtype)), indices)
        chunk_options = chunk_options_of(input, self.chunk_labels)
        weight, bias = self.linear.weight, self.linear.bias
        check_layer(input, weight, bias, chunk_options.product_dtype is not None)
        layer = Layer(input.detach(), weight.detach(), None if bias is None else bias.detach())
        k = _checked_k(k, weight.shape[0])
        largest = _ops.largest(_rows.of_layer(layer), k, chunk_options)
        return TopK(*(tensor.reshape(*input.shape[:-1], k) for tensor in largest))


def _checked_k(k: int, num_labels: int) -> int:
    k = checked_count("k", k)
    if k > num_labels:
        raise ValueError(f"k must be at most {num_labels}, the number of labels, got {k}")
    return k
