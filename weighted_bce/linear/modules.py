"""A classifier and its loss in one, as modules."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._checks import Target, check_layer
from .._numbers import check_count
from ..losses import Loss, check_loss
from ..modules import _WeightedLoss
from . import _ops
from ._chunks import Layer
from ._passes import Step
from .functional import (
    chunk_options_of,
    linear_multilabel_loss_with_logits,
    linear_weighted_bce_with_logits,
)


class TopK(NamedTuple):
    """The largest logits of each row, (rows, k), largest first, and their labels."""

    values: Tensor
    indices: Tensor


class _LinearLoss(_WeightedLoss):
    """What the modules share: the layer, its logits, and the largest of them."""

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool,
        weight: Tensor | None,
        pos_weight: float | Tensor | None,
        reduction: str,
        label_smoothing: float,
        chunk_labels: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(weight, pos_weight, reduction, label_smoothing, None)
        self.linear = nn.Linear(in_features, num_labels, bias, device, dtype)
        self.chunk_labels = chunk_labels
        self.fused_step: Step | None = None

    def _options(self) -> dict[str, Any]:
        return dict(
            linear_bias=self.linear.bias,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=cast(str, self.reduction),
            label_smoothing=self.label_smoothing,
            chunk_labels=self.chunk_labels,
            fused_step=self.fused_step,
        )

    def logits(self, input: Tensor) -> Tensor:
        """All logits: ``self.linear(input)``, of shape (..., labels)."""
        logits: Tensor = self.linear(input)
        return logits

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k largest logits of each row and their labels, without all logits at once.

        Args:
            input: (rows, features), as for the loss.
            k: at least 1 and at most the number of labels.

        Returns:
            (values, indices), of shape (rows, k), largest first, as from torch.topk. The values are
            of the dtype of the loss, and have no gradient. Which of equal logits come first is not
            defined.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape or value.
        """
        chunk_options = chunk_options_of(input, self.chunk_labels)
        weight, bias = self.linear.weight, self.linear.bias
        check_layer(input, weight, bias, chunk_options.product_dtype is not None)
        layer = Layer(input.detach(), weight.detach(), None if bias is None else bias.detach())
        check_count("k", k)
        if k > weight.shape[0]:
            raise ValueError(f"k must be at most {weight.shape[0]}, the number of labels, got {k}")
        return TopK(*_ops.largest(layer, k, chunk_options))


class LinearWeightedBCEWithLogitsLoss(_LinearLoss):
    """A classifier and its loss in one: `linear_weighted_bce_with_logits` as a module.

    Its layer is ``self.linear``, an nn.Linear, as in torch.nn.LinearCrossEntropyLoss.

    Args:
        in_features: size of each input row.
        num_labels: how many labels the classifier has.
        bias: whether it has a bias. Default: True.
        weight: multiplies each element's loss; a tensor that broadcasts to (rows, labels), a
            buffer.
        pos_weight: multiplies the positive term; a number >= 0 (stays a number), or a tensor that
            broadcasts to (rows, labels) (a buffer).
        reduction: "mean", "sum" or "batchmean". Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        chunk_labels: how many labels are computed at once. Default: chosen.
        device, dtype: of the layer, as for nn.Linear.

    Attributes:
        linear: the layer.
        fused_step: see `linear_weighted_bce_with_logits`; None, unless it is set. It is no part of
            the state_dict.

    Raises:
        TypeError, ValueError: when called; see `linear_weighted_bce_with_logits`.

    Example:
        >>> import torch
        >>> from weighted_bce import LinearWeightedBCEWithLogitsLoss, SparseLabels
        >>> criterion = LinearWeightedBCEWithLogitsLoss(64, 5000, pos_weight=7.0)
        >>> hidden = torch.randn(3, 64)
        >>> criterion(hidden, SparseLabels.from_lists([[1], [], [4, 4999]])).backward()
        >>> criterion.topk(hidden, 5).indices.shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool = True,
        *,
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        chunk_labels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_labels,
            bias,
            weight,
            pos_weight,
            reduction,
            label_smoothing,
            chunk_labels,
            device,
            dtype,
        )

    def forward(self, input: Tensor, target: Target) -> Tensor:
        weight = self.linear.weight
        return linear_weighted_bce_with_logits(input, weight, target, **self._options())


class LinearMultilabelLoss(_LinearLoss):
    """A classifier and its loss in one: `linear_multilabel_loss_with_logits` as a module.

    Args:
        in_features: size of each input row.
        num_labels: how many labels the classifier has.
        loss: one of those in weighted_bce.losses, such as `Focal(gamma=2.0)`.
        bias, weight, pos_weight, reduction, label_smoothing, chunk_labels, device, dtype: as for
            `LinearWeightedBCEWithLogitsLoss`, which also has the same attributes and methods.

    Raises:
        TypeError: the loss is none of these.
        TypeError, ValueError: when called; see `linear_multilabel_loss_with_logits`.

    Example:
        >>> import torch
        >>> from weighted_bce import Focal, LinearMultilabelLoss, SparseLabels
        >>> criterion = LinearMultilabelLoss(64, 5000, Focal(gamma=2.0), pos_weight=7.0)
        >>> hidden = torch.randn(3, 64)
        >>> criterion(hidden, SparseLabels.from_lists([[1], [], [4, 4999]])).backward()
        >>> criterion.topk(hidden, 5).indices.shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        loss: Loss,
        bias: bool = True,
        *,
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        chunk_labels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_loss(loss)
        super().__init__(
            in_features,
            num_labels,
            bias,
            weight,
            pos_weight,
            reduction,
            label_smoothing,
            chunk_labels,
            device,
            dtype,
        )
        self.loss = loss

    def extra_repr(self) -> str:
        return f"{self.loss}, {super().extra_repr()}"

    def forward(self, input: Tensor, target: Target) -> Tensor:
        weight = self.linear.weight
        return linear_multilabel_loss_with_logits(
            input, weight, target, self.loss, **self._options()
        )
