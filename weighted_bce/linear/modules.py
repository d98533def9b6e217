"""Modules that hold a linear classifier and compute its loss."""

import torch
from torch import Tensor

from .._checks import Target
from .._types import ReductionName
from ..losses import BCE, Loss, check_loss
from ._layer import is_plain, own_loss
from ._linear_loss import LinearLoss, TopK
from .functional import linear_multilabel_loss_with_logits, linear_weighted_bce_with_logits

# Pickles of version 0.6 find TopK here.
__all__ = ["LinearMultilabelLoss", "LinearWeightedBCEWithLogitsLoss", "TopK"]


class LinearWeightedBCEWithLogitsLoss(LinearLoss):
    """Holds a linear classifier and computes `linear_weighted_bce_with_logits` with it.

    It is called as ``criterion(input, target)`` or ``criterion(input, target, weight)``, with an
    input of shape (..., features). The classifier is ``criterion.linear``, as in
    torch.nn.LinearCrossEntropyLoss.

    Args:
        in_features: the number of features of a row.
        num_labels: the number of labels.
        bias: whether the classifier has a bias. Default: True.
        weight: multiplies each element's loss; a tensor of finite numbers >= 0 that broadcasts to
            (..., labels). It becomes a buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor of such numbers
            that broadcasts to (..., labels) and becomes a buffer. Default: None, which means 1.
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
        TypeError, ValueError: if an argument has the wrong type, dtype or value. Shapes and devices
            are checked in each call.

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
        reduction: ReductionName = "mean",
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

    def forward(
        self,
        input: Tensor,
        target: Target,
        weight: Tensor | None = None,
        *,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Computes the loss of a batch.

        Args:
            input: the features, shape (..., in_features); float16, bfloat16, float32 or float64.
            target: the labels, with values in [0, 1]. A dense target has shape (..., num_labels)
                and any real dtype. A sparse one has one row for each row of `input`, in order.
            weight: multiplies each element's loss; a tensor that broadcasts to (..., num_labels),
                such as one of shape (rows, 1) with a weight for each row. Only if the module has no
                weight of its own. Default: None.
            normalizer: what the sum of the losses is divided by, in place of the number of
                elements; a finite number >= 0 or a 0-d tensor. Default: None.

        Returns:
            The loss; float64 for float64 input and float32 for all others. It is 0-d, or with
            reduction "none" of shape (...), that of `input` without features.

        Raises:
            TypeError, ValueError, NotImplementedError, RuntimeError: as
                `linear_weighted_bce_with_logits` does.
            ValueError: if the module has a weight, too.
        """
        weight = self.weight if weight is None else self._weight_of_call(weight)
        if not is_plain(self.linear):
            return own_loss(self, input, target, weight, normalizer, BCE())
        return linear_weighted_bce_with_logits(
            input, self.linear.weight, target, normalizer=normalizer, **self._options(weight)
        )


class LinearMultilabelLoss(LinearLoss):
    """Holds a linear classifier and computes `linear_multilabel_loss_with_logits` with it.

    It is called as ``criterion(input, target)`` or ``criterion(input, target, weight)``, with an
    input of shape (..., features). The classifier is ``criterion.linear``.

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
        TypeError, ValueError: as for `LinearWeightedBCEWithLogitsLoss`.

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
        reduction: ReductionName = "mean",
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

    def forward(
        self,
        input: Tensor,
        target: Target,
        weight: Tensor | None = None,
        *,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Computes the loss of a batch.

        Args:
            input: the features, shape (..., in_features); float16, bfloat16, float32 or float64.
            target: the labels, with values in [0, 1]. A dense target has shape (..., num_labels)
                and any real dtype. A sparse one has one row for each row of `input`, in order.
            weight: multiplies each element's loss; a tensor that broadcasts to (..., num_labels),
                such as one of shape (rows, 1) with a weight for each row. Only if the module has no
                weight of its own. Default: None.
            normalizer: what the sum of the losses is divided by, in place of the number of
                elements; a finite number >= 0 or a 0-d tensor. Default: None.

        Returns:
            The loss; float64 for float64 input and float32 for all others. It is 0-d, or with
            reduction "none" of shape (...), that of `input` without features.

        Raises:
            TypeError, ValueError, NotImplementedError, RuntimeError: as
                `linear_multilabel_loss_with_logits` does.
            ValueError: if the module has a weight, too.
        """
        weight = self.weight if weight is None else self._weight_of_call(weight)
        if not is_plain(self.linear):
            return own_loss(self, input, target, weight, normalizer, self.loss)
        return linear_multilabel_loss_with_logits(
            input,
            self.linear.weight,
            target,
            self.loss,
            normalizer=normalizer,
            **self._options(weight),
        )
