"""The losses, and the usual way to write each in plain PyTorch, with a mean at the end."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import weighted_bce as own
from weighted_bce._terms import Term, terms_of

from .names import ASYMMETRIC, BCE, FOCAL, HILL, POLY1, SQUARED_HINGE


class Loss(NamedTuple):
    """A loss, and the usual way to write it."""

    kind: own.losses.Loss
    usual: Callable[..., Tensor]  # takes a target in the logits' dtype, and a pos_weight by name
    usual_name: str
    # How many matrices as large as the logits a step holds: in the usual way, and in the reference.
    matrices: int
    in_torch: int
    cancels: bool = False  # the usual way takes differences, of numbers near 1

    @property
    def terms(self) -> tuple[Term, Term]:
        """The positive and the negative term."""
        return terms_of(self.kind._loss_id, self.kind._parameters)


_ASYMMETRIC, _HILL = own.Asymmetric(), own.Hill()


def focal(logits: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Computes torchvision's focal loss formula, with a pos_weight and without alpha."""
    p, options = logits.sigmoid(), {"reduction": "none", "pos_weight": pos_weight}
    matrix = F.binary_cross_entropy_with_logits(logits, target, **options)
    right = p * target + (1 - p) * (1 - target)
    return (matrix * (1 - right) ** own.Focal().gamma).mean()


def asymmetric(logits: Tensor, target: Tensor, pos_weight: Tensor) -> Tensor:
    """Computes the authors' formula with a pos_weight; half precision in float32, as in timm."""
    dtype = torch.promote_types(logits.dtype, torch.float32)  # a half's 1 - p is too coarse
    x, y = logits.to(dtype), target.to(dtype)
    p = torch.sigmoid(x)
    not_p = (1 - p + _ASYMMETRIC.clip).clamp(max=1)
    of_positives = y * torch.log(p.clamp(min=1e-8)) * pos_weight
    matrix = of_positives + (1 - y) * torch.log(not_p.clamp(min=1e-8))
    right = p * y + not_p * (1 - y)
    gamma = _ASYMMETRIC.gamma_pos * y + _ASYMMETRIC.gamma_neg * (1 - y)
    return -(matrix * torch.pow(1 - right, gamma)).mean()


def hill(logits: Tensor, target: Tensor, pos_weight: Tensor) -> Tensor:
    p, of_margin = torch.sigmoid(logits), logits - _HILL.margin
    power = (1 - torch.sigmoid(of_margin)) ** _HILL.gamma
    of_positives = -target * power * F.logsigmoid(of_margin) * pos_weight
    return (of_positives + (1 - target) * (_HILL.lam - p) * p**2).mean()


def poly1(logits: Tensor, target: Tensor, pos_weight: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    matrix = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    matrix = matrix + own.Poly1().epsilon * (1 - right)
    return (matrix * torch.where(target > 0, pos_weight, 1)).mean()


def squared_hinge(logits: Tensor, target: Tensor, pos_weight: Tensor) -> Tensor:
    matrix = (1 - (2 * target - 1) * logits).clamp(min=0) ** 2
    return (matrix * torch.where(target > 0, pos_weight, 1)).mean()


# A new loss is an entry here, and a name in names.LOSSES.
LOSSES = {
    BCE: Loss(own.BCE(), F.binary_cross_entropy_with_logits, "F.bce_with_logits", 4, 12),
    FOCAL: Loss(own.Focal(), focal, "focal loss formula", 12, 38, cancels=True),
    ASYMMETRIC: Loss(_ASYMMETRIC, asymmetric, "asymmetric loss formula", 19, 70, cancels=True),
    HILL: Loss(_HILL, hill, "Hill loss formula", 17, 39, cancels=True),
    POLY1: Loss(own.Poly1(), poly1, "Poly1 formula", 8, 25, cancels=True),
    SQUARED_HINGE: Loss(own.SquaredHinge(), squared_hinge, "squared hinge formula", 8, 10),
}
