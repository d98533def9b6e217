"""The losses that are measured. A new one is an entry here, and a name in names.LOSSES."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from weighted_bce import linear_weighted_bce_with_logits, weighted_bce_with_logits

from .names import BCE


class Loss(NamedTuple):
    """A loss: ours, and the usual way to write it."""

    ours: Callable[..., Tensor]  # of logits and a target
    of_layer: Callable[..., Tensor]  # of the input and the weight of a linear layer, and a target
    ours_name: str
    usual: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of a target in the logits' dtype
    usual_name: str
    matrices: int = 4  # as large as the logits, that a step of the usual way holds at its peak
    gamma: float = 0.0  # torchvision's focal loss with it is this loss


def bce(logits: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)


LOSSES = {
    BCE: Loss(
        ours=weighted_bce_with_logits,
        of_layer=linear_weighted_bce_with_logits,
        ours_name="weighted_bce_with_logits",
        usual=bce,
        usual_name="F.bce_with_logits",
    ),
}
