"""The losses as modules."""

from torch import Tensor

from ._checks import Target
from ._numbers import check_bool
from ._types import Reduction
from ._weighted_loss import WeightedLoss
from .functional import (
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)
from .losses import Loss, check_loss
from .weight_bce import WeightBCEWithLogitsLoss

# Pickles of version 0.6 find WeightBCEWithLogitsLoss here.
__all__ = [
    "MultilabelLoss",
    "WeightBCEWithLogitsLoss",
    "WeightedBCELoss",
    "WeightedBCEWithLogitsLoss",
]


class WeightedBCEWithLogitsLoss(WeightedLoss):
    """Computes `weighted_bce_with_logits` as a module; a drop-in for torch.nn.BCEWithLogitsLoss.

    It is called as ``criterion(input, target)`` or ``criterion(input, target, weight)``.

    Args:
        weight: multiplies each element's loss; a tensor of finite numbers >= 0 that broadcasts to
            the input. It becomes a buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor of such numbers
            that broadcasts to the input and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        inplace_backward: whether backward writes the gradient over the logits, as for
            `weighted_bce_with_logits`. Default: False.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype or value. Shapes and devices
            are checked in each call.

    Note:
        A conversion of the module, such as ``.half()`` or ``.to(torch.bfloat16)``, leaves the dtype
        of `weight` and `pos_weight` as it is, because half precision would round them.

    Example:
        >>> import torch
        >>> from weighted_bce import WeightedBCEWithLogitsLoss
        >>> criterion = WeightedBCEWithLogitsLoss(pos_weight=7.0)
        >>> loss = criterion(torch.zeros(4, 10), torch.zeros(4, 10, dtype=torch.bool))
        >>> print(f"{loss.item():.4f}")
        0.6931
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        reduction: Reduction = "mean",
        *,
        label_smoothing: float = 0.0,
        ignore_index: float | None = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(weight, pos_weight, reduction, label_smoothing, ignore_index)
        check_bool("inplace_backward", inplace_backward)
        self.inplace_backward = inplace_backward

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
            input: the logits, of any shape; float16, bfloat16, float32 or float64.
            target: the labels, with values in [0, 1]. A dense target has the shape of `input` and
                any real dtype. If `input` has shape (rows, labels), it may also be sparse.
            weight: multiplies each element's loss; a tensor that broadcasts to `input`, such as one
                of shape (rows, 1) with a weight for each row. Only if the module has no weight of
                its own. Default: None.
            normalizer: what the sum of the losses is divided by, in place of the number of
                elements; a finite number >= 0 or a 0-d tensor. Default: None.

        Returns:
            The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is
            0-d, float64 for float64 logits and float32 for all others. A callable's result is
            returned as it is.

        Raises:
            TypeError, ValueError: as `weighted_bce_with_logits` does.
            ValueError: if the module has a weight, too.
        """
        return weighted_bce_with_logits(
            input,
            target,
            self.weight if weight is None else self._weight_of_call(weight),
            self.pos_weight,
            self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            inplace_backward=self.inplace_backward,
            normalizer=normalizer,
        )


class MultilabelLoss(WeightedLoss):
    """Computes `multilabel_loss_with_logits` as a module.

    It is called as ``criterion(input, target)`` or ``criterion(input, target, weight)``.

    Args:
        loss: `BCE()`, `Focal()`, `Asymmetric()`, `Hill()`, `Poly1()` or `SquaredHinge()`, with
            their parameters.
        weight: multiplies each element's loss; a tensor of finite numbers >= 0 that broadcasts to
            the input. It becomes a buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor of such numbers
            that broadcasts to the input and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        inplace_backward: whether backward writes the gradient over the logits, as for
            `weighted_bce_with_logits`. Default: False.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype or value. Shapes and devices
            are checked in each call.

    Example:
        >>> import torch
        >>> from weighted_bce import Focal, MultilabelLoss
        >>> criterion = MultilabelLoss(Focal(gamma=2.0), pos_weight=7.0)
        >>> loss = criterion(torch.zeros(4, 10), torch.zeros(4, 10, dtype=torch.bool))
        >>> print(f"{loss.item():.4f}")
        0.1733
    """

    def __init__(
        self,
        loss: Loss,
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        reduction: Reduction = "mean",
        *,
        label_smoothing: float = 0.0,
        ignore_index: float | None = None,
        inplace_backward: bool = False,
    ) -> None:
        check_loss(loss)
        super().__init__(weight, pos_weight, reduction, label_smoothing, ignore_index)
        self.loss = loss
        check_bool("inplace_backward", inplace_backward)
        self.inplace_backward = inplace_backward

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
            input: the logits, of any shape; float16, bfloat16, float32 or float64.
            target: the labels, with values in [0, 1]. A dense target has the shape of `input` and
                any real dtype. If `input` has shape (rows, labels), it may also be sparse.
            weight: multiplies each element's loss; a tensor that broadcasts to `input`, such as one
                of shape (rows, 1) with a weight for each row. Only if the module has no weight of
                its own. Default: None.
            normalizer: what the sum of the losses is divided by, in place of the number of
                elements; a finite number >= 0 or a 0-d tensor. Default: None.

        Returns:
            The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is
            0-d, float64 for float64 logits and float32 for all others. A callable's result is
            returned as it is.

        Raises:
            TypeError, ValueError: as `multilabel_loss_with_logits` does.
            ValueError: if the module has a weight, too.
        """
        return multilabel_loss_with_logits(
            input,
            target,
            self.loss,
            self.weight if weight is None else self._weight_of_call(weight),
            self.pos_weight,
            self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            inplace_backward=self.inplace_backward,
            normalizer=normalizer,
        )


class WeightedBCELoss(WeightedLoss):
    """Computes `weighted_bce` as a module; a drop-in for torch.nn.BCELoss.

    It is called as ``criterion(input, target)`` or ``criterion(input, target, weight)``, with
    probabilities as the input. Prefer `WeightedBCEWithLogitsLoss`, which is more accurate and runs
    fused kernels.

    Args:
        weight: multiplies each element's loss; a tensor of finite numbers >= 0 that broadcasts to
            the input. It becomes a buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor of such numbers
            that broadcasts to the input and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype or value. Shapes and devices
            are checked in each call.

    Example:
        >>> import torch
        >>> from weighted_bce import WeightedBCELoss
        >>> print(f"{WeightedBCELoss()(torch.tensor([0.5]), torch.tensor([1])).item():.4f}")
        0.6931
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        reduction: Reduction = "mean",
        *,
        label_smoothing: float = 0.0,
        ignore_index: float | None = None,
    ) -> None:
        super().__init__(weight, pos_weight, reduction, label_smoothing, ignore_index)

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
            input: the probabilities, in [0, 1] and of any shape; float16, bfloat16, float32 or
                float64.
            target: the labels, with values in [0, 1]. A dense target has the shape of `input` and
                any real dtype. If `input` has shape (rows, labels), it may also be sparse.
            weight: multiplies each element's loss; a tensor that broadcasts to `input`, such as one
                of shape (rows, 1) with a weight for each row. Only if the module has no weight of
                its own. Default: None.
            normalizer: what the sum of the losses is divided by, in place of the number of
                elements; a finite number >= 0 or a 0-d tensor. Default: None.

        Returns:
            The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is
            0-d, float64 for float64 input and float32 for all others. A callable's result is
            returned as it is.

        Raises:
            TypeError, ValueError: as `weighted_bce` does.
            ValueError: if the module has a weight, too.
        """
        return weighted_bce(
            input,
            target,
            self.weight if weight is None else self._weight_of_call(weight),
            self.pos_weight,
            self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            normalizer=normalizer,
        )
