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
    """Computes `weighted_bce_with_logits` as a module; a drop-in for torch.nn.BCEWithLogitsLoss.

    It is called as ``criterion(input, target)``.

    Args:
        weight: multiplies each element's loss; a tensor that broadcasts to the input. It becomes a
            buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to the input and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        inplace_backward: whether backward writes the gradient over the logits, as for
            `weighted_bce_with_logits`. Default: False.

    Raises:
        TypeError: if `weight` is not a tensor or None. Other arguments are checked in each call.
        TypeError, ValueError: in a call, as `weighted_bce_with_logits` does.

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
    """Computes `multilabel_loss_with_logits` as a module.

    It is called as ``criterion(input, target)``.

    Args:
        loss: `BCE()`, `Focal()`, `Asymmetric()`, `Hill()`, `Poly1()` or `SquaredHinge()`, with
            their parameters.
        weight: multiplies each element's loss; a tensor that broadcasts to the input. It becomes a
            buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to the input and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        inplace_backward: whether backward writes the gradient over the logits, as for
            `weighted_bce_with_logits`. Default: False.

    Raises:
        TypeError: if `loss` is not one of the losses above, or `weight` is not a tensor or None.
            Other arguments are checked in each call.
        TypeError, ValueError: in a call, as `multilabel_loss_with_logits` does.

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
    """Computes `weighted_bce` as a module; a drop-in for torch.nn.BCELoss.

    It is called as ``criterion(input, target)`` with probabilities as the input. Prefer
    `WeightedBCEWithLogitsLoss`, which is more accurate and runs fused kernels.

    Args:
        weight: multiplies each element's loss; a tensor that broadcasts to the input. It becomes a
            buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to the input and becomes a buffer. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.

    Raises:
        TypeError: if `weight` is not a tensor or None. Other arguments are checked in each call.
        TypeError, ValueError: in a call, as `weighted_bce` does.

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
    """Multiplies the losses of the positives by a number, then reduces.

    For targets of 0 and 1, of any real dtype, it is equivalent to::

        loss = F.binary_cross_entropy_with_logits(
            input, target.to(input.dtype), reduction="none")
        loss[target.bool()] *= weight
        loss = reduction(loss)

    It has only the two arguments of that code. `WeightedBCEWithLogitsLoss` has all options.

    Args:
        weight: the factor of the positives; a finite number >= 0.
        reduction: a callable that receives the unreduced loss, or "none", "mean", "sum" or
            "batchmean". Default: None, which means "mean". The callables torch.mean and torch.sum
            are computed as "mean" and "sum".

    Raises:
        TypeError, ValueError: in a call, as `weighted_bce_with_logits` does.

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
