"""The losses as modules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import Target
from .functional import (
    Reduction,
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)
from .losses import Loss, check_loss


class _WeightedLoss(nn.Module):
    """What the modules share: a weight that is a tensor is a buffer, a number stays a number."""

    weight: Tensor | None
    pos_weight: Tensor | float | None

    def __init__(
        self,
        weight: Tensor | None,
        pos_weight: float | Tensor | None,
        reduction: Reduction,
        label_smoothing: float,
        ignore_index: float | None,
    ) -> None:
        super().__init__()
        if not (weight is None or isinstance(weight, Tensor)):
            raise TypeError(f"weight must be a torch.Tensor or None, got {type(weight).__name__}")
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight if isinstance(pos_weight, Tensor) else None)
        if not isinstance(pos_weight, Tensor):
            self.pos_weight = pos_weight
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pos_weight":  # may become a tensor or a number, whichever it was before
            if not (value is None or isinstance(value, Tensor)):
                self._buffers.pop(name, None)
                self._parameters.pop(name, None)
            elif name in self.__dict__:
                del self.__dict__[name]
                self.register_buffer(name, None)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        shown = f"reduction={self.reduction!r}"
        if self.pos_weight is not None:
            value = self.pos_weight
            text = f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
            shown = f"pos_weight={text}, {shown}"
        if self.label_smoothing:
            shown += f", label_smoothing={self.label_smoothing}"
        if self.ignore_index is not None:
            shown += f", ignore_index={self.ignore_index}"
        return shown


class WeightedBCEWithLogitsLoss(_WeightedLoss):
    """`weighted_bce_with_logits` as a module; a drop-in for nn.BCEWithLogitsLoss.

    Args:
        weight: multiplies each element's loss; a tensor that broadcasts to the input. A buffer.
        pos_weight: multiplies the positive term; a number >= 0 (stays a number), or a tensor that
            broadcasts to the input (a buffer).
        reduction: "none", "mean", "sum", "batchmean" or a callable. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: targets equal to it do not count. Default: None.
        inplace_backward: backward writes the gradient over the logits. Default: False.

    Raises:
        TypeError, ValueError: when called; see `weighted_bce_with_logits`.

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
        self.inplace_backward = inplace_backward

    def forward(self, input: Tensor, target: Target) -> Tensor:
        return weighted_bce_with_logits(
            input,
            target,
            self.weight,
            self.pos_weight,
            self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            inplace_backward=self.inplace_backward,
        )


class MultilabelLoss(_WeightedLoss):
    """`multilabel_loss_with_logits` as a module.

    Args:
        loss: one of those in weighted_bce.losses, such as `Focal(gamma=2.0)`.
        weight: multiplies each element's loss; a tensor that broadcasts to the input. A buffer.
        pos_weight: multiplies the positive term; a number >= 0 (stays a number), or a tensor that
            broadcasts to the input (a buffer).
        reduction: "none", "mean", "sum", "batchmean" or a callable. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: targets equal to it do not count. Default: None.
        inplace_backward: backward writes the gradient over the logits. Default: False.

    Raises:
        TypeError: the loss is none of these.
        TypeError, ValueError: when called; see `multilabel_loss_with_logits`.

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
        self.inplace_backward = inplace_backward

    def extra_repr(self) -> str:
        return f"{self.loss}, {super().extra_repr()}"

    def forward(self, input: Tensor, target: Target) -> Tensor:
        return multilabel_loss_with_logits(
            input,
            target,
            self.loss,
            self.weight,
            self.pos_weight,
            self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            inplace_backward=self.inplace_backward,
        )


class WeightedBCELoss(_WeightedLoss):
    """`weighted_bce` as a module; a drop-in for nn.BCELoss.

    Args:
        weight: multiplies each element's loss; a tensor that broadcasts to the input. A buffer.
        pos_weight: multiplies the positive term; a number or a tensor that broadcasts.
        reduction: "none", "mean", "sum", "batchmean" or a callable. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: targets equal to it do not count. Default: None.

    Raises:
        TypeError, ValueError: when called; see `weighted_bce`.

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

    def forward(self, input: Tensor, target: Target) -> Tensor:
        return weighted_bce(
            input,
            target,
            self.weight,
            self.pos_weight,
            self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )


class WeightBCEWithLogitsLoss(nn.Module):
    """Multiplies the loss of the positives by `weight`, then reduces.

    Equivalent to::

        loss = F.binary_cross_entropy_with_logits(
            input, target.to(input.dtype), reduction="none")
        loss[target.bool()] *= weight
        loss = reduction(loss)

    for 0/1 targets of any dtype: the masked multiply as it is usually written, with the two
    arguments that it has. `WeightedBCEWithLogitsLoss` has all options.

    Args:
        weight: the factor of the positives, a number >= 0.
        reduction: any callable on the matrix of losses, or a reduction by name as in
            `WeightedBCEWithLogitsLoss`; None means "mean", and so does torch.mean.

    Raises:
        TypeError, ValueError: when called; see `weighted_bce_with_logits`.

    Example:
        >>> import torch
        >>> from weighted_bce import WeightBCEWithLogitsLoss
        >>> criterion = WeightBCEWithLogitsLoss(7.0, torch.sum)
        >>> print(f"{criterion(torch.zeros(2), torch.tensor([True, False])).item():.4f}")
        5.5452
    """

    def __init__(
        self, weight: float, reduction: str | Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"weight={self.weight}, reduction={self.reduction!r}"

    def forward(self, input: Tensor, target: Target) -> Tensor:
        reduction = self.reduction
        if reduction is None or reduction is torch.mean:
            reduction = "mean"
        elif reduction is torch.sum:
            reduction = "sum"
        return weighted_bce_with_logits(input, target, pos_weight=self.weight, reduction=reduction)
