"""The losses that are measured. A new one is an entry here, and a name in names.LOSSES."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

import weighted_bce
from weighted_bce import Focal
from weighted_bce._terms import Term, terms_of

from .names import BCE, FOCAL


class Loss(NamedTuple):
    """A loss: ours, and the usual way to write it."""

    kind: weighted_bce.BCE | Focal
    ours: Callable[..., Tensor]  # takes logits and a target
    of_layer: Callable[..., Tensor]  # takes the input and the weight of a linear layer, a target
    ours_name: str
    usual: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # takes a target in the logits' dtype
    usual_name: str
    matrices: int  # as large as the logits, that a step of the usual way holds at its peak
    cancels: bool = False  # the usual way takes differences, of numbers near 1

    @property
    def terms(self) -> tuple[Term, Term]:
        """The positive and the negative term."""
        return terms_of(self.kind._loss_id, self.kind._parameters)


def bce(logits: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)


def focal(logits: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    """The formula of torchvision.ops.sigmoid_focal_loss, with a pos_weight and without alpha."""
    p = logits.sigmoid()
    matrix = F.binary_cross_entropy_with_logits(
        logits, target, reduction="none", pos_weight=pos_weight
    )
    right = p * target + (1 - p) * (1 - target)
    return (matrix * (1 - right) ** Focal().gamma).mean()


LOSSES = {
    BCE: Loss(
        kind=weighted_bce.BCE(),
        ours=weighted_bce.weighted_bce_with_logits,
        of_layer=weighted_bce.linear_weighted_bce_with_logits,
        ours_name="weighted_bce_with_logits",
        usual=bce,
        usual_name="F.bce_with_logits",
        matrices=4,
    ),
    FOCAL: Loss(
        kind=Focal(),
        ours=partial(weighted_bce.multilabel_loss_with_logits, loss=Focal()),
        of_layer=partial(weighted_bce.linear_multilabel_loss_with_logits, loss=Focal()),
        ours_name="multilabel_loss_with_logits",
        usual=focal,
        usual_name="focal loss formula",
        matrices=12,
        cancels=True,
    ),
}
