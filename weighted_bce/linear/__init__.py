"""A linear layer fused with its loss, for so many labels that all logits should not be held."""

from .functional import linear_multilabel_loss_with_logits, linear_weighted_bce_with_logits
from .modules import LinearMultilabelLoss, LinearWeightedBCEWithLogitsLoss, TopK

__all__ = [
    "LinearMultilabelLoss",
    "LinearWeightedBCEWithLogitsLoss",
    "TopK",
    "linear_multilabel_loss_with_logits",
    "linear_weighted_bce_with_logits",
]
