"""Modules that hold a linear classifier and compute its loss."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._checks import Target, check_layer
from .._numbers import checked_count
from .._options import compute_dtype
from ..losses import BCE, Loss, check_loss
from ..modules import _WeightedLoss
from . import _ops, _rows
from ._chunks import Layer
from ._layer import is_plain, own_logits, own_loss
from ._stepped import Step
from .functional import (
    chunk_options_of,
    linear_multilabel_loss_with_logits,
    linear_weighted_bce_with_logits,
)


class TopK(NamedTuple):
    """The largest logits of each row and their labels, both of shape (..., k), largest first."""

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
        ignore_index: float | None,
        chunk_labels: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(weight, pos_weight, reduction, label_smoothing, ignore_index)
        self.linear = nn.Linear(in_features, num_labels, bias, device, dtype)
        self.chunk_labels = chunk_labels
        self.fused_step: Step | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the fused step out of copies, as a module does not copy its optimizer."""
        return {**self.__dict__, "fused_step": None}

    def _options(self) -> dict[str, Any]:
        return dict(
            linear_bias=self.linear.bias,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=cast(str, self.reduction),
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


class LinearWeightedBCEWithLogitsLoss(_LinearLoss):
    """Holds a linear classifier and computes `linear_weighted_bce_with_logits` with it.

    It is called as ``criterion(input, target)`` with an input of shape (..., features). The
    classifier is ``criterion.linear``, as in torch.nn.LinearCrossEntropyLoss.

    Args:
        in_features: the number of features of a row.
        num_labels: the number of labels.
        bias: whether the classifier has a bias. Default: True.
        weight: multiplies each element's loss; a tensor that broadcasts to (..., labels). It
            becomes a buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to (..., labels) and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum" or "batchmean", as for `linear_weighted_bce_with_logits`.
            Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        chunk_labels: the number of labels in a chunk. By default it is chosen.
        device, dtype: of the classifier, as for torch.nn.Linear.

    Attributes:
        linear: the classifier, a torch.nn.Linear; it may be parametrized. If hooks or another
            forward change what it computes, as an adapter does, it is called and all logits are
            held. A warning says so once.
        fused_step: None, or the optimizer that takes the steps of the classifier in chunks, or a
            function, as for `linear_weighted_bce_with_logits`. It is not part of the state_dict,
            and copies of the module do not have it. It raises TypeError with a layer that has to be
            called.

    Raises:
        TypeError: if `weight` is not a tensor or None. Other arguments are checked in each call.
        TypeError, ValueError: in a call, as `linear_weighted_bce_with_logits` does.

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
        ignore_index: float | None = None,
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
            ignore_index,
            chunk_labels,
            device,
            dtype,
        )

    def forward(self, input: Tensor, target: Target) -> Tensor:
        if not is_plain(self.linear):
            return own_loss(self, input, target, BCE())
        weight = self.linear.weight
        return linear_weighted_bce_with_logits(input, weight, target, **self._options())


class LinearMultilabelLoss(_LinearLoss):
    """Holds a linear classifier and computes `linear_multilabel_loss_with_logits` with it.

    It is called as ``criterion(input, target)`` with an input of shape (..., features). The
    classifier is ``criterion.linear``.

    Args:
        in_features: the number of features of a row.
        num_labels: the number of labels.
        loss: `BCE()`, `Focal()`, `Asymmetric()`, `Hill()`, `Poly1()` or `SquaredHinge()`, with
            their parameters.
        bias: whether the classifier has a bias. Default: True.
        weight, pos_weight, reduction, label_smoothing, ignore_index, chunk_labels, device, dtype:
            as for `LinearWeightedBCEWithLogitsLoss`.

    Attributes:
        linear, fused_step: as for `LinearWeightedBCEWithLogitsLoss`.

    Raises:
        TypeError: if `loss` is not one of the losses above, or `weight` is not a tensor or None.
            Other arguments are checked in each call.
        TypeError, ValueError: in a call, as `linear_multilabel_loss_with_logits` does.

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
        ignore_index: float | None = None,
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
            ignore_index,
            chunk_labels,
            device,
            dtype,
        )
        self.loss = loss

    def extra_repr(self) -> str:
        return f"{self.loss}, {super().extra_repr()}"

    def forward(self, input: Tensor, target: Target) -> Tensor:
        if not is_plain(self.linear):
            return own_loss(self, input, target, self.loss)
        weight = self.linear.weight
        return linear_multilabel_loss_with_logits(
            input, weight, target, self.loss, **self._options()
        )
