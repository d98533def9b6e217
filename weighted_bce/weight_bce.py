"""The loss of the code that this package replaces, with the two arguments of that code."""

import torch
from torch import Tensor, nn

from ._checks import Target, checked_reduction
from ._types import Reduction
from ._weighted_loss import check_pos_weight
from .functional import weighted_bce_with_logits


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
        TypeError, ValueError: if an argument is wrong.

    Example:
        >>> import torch
        >>> from weighted_bce import WeightBCEWithLogitsLoss
        >>> criterion = WeightBCEWithLogitsLoss(7.0, torch.sum)
        >>> print(f"{criterion(torch.zeros(2), torch.tensor([True, False])).item():.4f}")
        5.5452
    """

    def __init__(self, weight: float, reduction: Reduction | None = None) -> None:
        super().__init__()
        check_pos_weight("weight", weight)
        if reduction is not None:
            checked_reduction(reduction)
        self.weight = weight
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"weight={self.weight}, reduction={self.reduction!r}"

    def forward(self, input: Tensor, target: Target) -> Tensor:
        """Computes the loss of a batch.

        Args:
            input: the logits, of any shape; float16, bfloat16, float32 or float64.
            target: the labels, with values in [0, 1]; a tensor of the shape of `input` and any real
                dtype, or sparse labels as for `weighted_bce_with_logits`.

        Returns:
            The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is
            0-d, float64 for float64 logits and float32 for all others. A callable's result is
            returned as it is.

        Raises:
            TypeError, ValueError: as `weighted_bce_with_logits` does.
        """
        reduction = self.reduction
        if reduction is None or reduction is torch.mean:
            reduction = "mean"
        elif reduction is torch.sum:
            reduction = "sum"
        return weighted_bce_with_logits(input, target, pos_weight=self.weight, reduction=reduction)
