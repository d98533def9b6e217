"""Weighted losses for classifiers with many labels, fused into one pass over the logits."""

from ._config import backend, empty_cache, show_config
from ._version import __version__
from .chained_optimizer import ChainedOptimizer
from .collation import collate
from .drop_ins import AsymmetricLoss, sigmoid_focal_loss
from .functional import multilabel_loss_with_logits, weighted_bce, weighted_bce_with_logits
from .linear import (
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    linear_multilabel_loss_with_logits,
    linear_weighted_bce_with_logits,
)
from .losses import BCE, Asymmetric, Focal, Hill, Poly1, SquaredHinge
from .modules import (
    MultilabelLoss,
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
)
from .optim import FusedAdam, FusedSGD
from .sparse import SparseLabels
from .weighting import pos_weight_from_labels, prior_logits, propensity_from_labels

__all__ = [
    "BCE",
    "Asymmetric",
    "AsymmetricLoss",
    "ChainedOptimizer",
    "Focal",
    "FusedAdam",
    "FusedSGD",
    "Hill",
    "LinearMultilabelLoss",
    "LinearWeightedBCEWithLogitsLoss",
    "MultilabelLoss",
    "Poly1",
    "SparseLabels",
    "SquaredHinge",
    "WeightBCEWithLogitsLoss",
    "WeightedBCELoss",
    "WeightedBCEWithLogitsLoss",
    "__version__",
    "backend",
    "collate",
    "empty_cache",
    "linear_multilabel_loss_with_logits",
    "linear_weighted_bce_with_logits",
    "multilabel_loss_with_logits",
    "pos_weight_from_labels",
    "prior_logits",
    "propensity_from_labels",
    "show_config",
    "sigmoid_focal_loss",
    "weighted_bce",
    "weighted_bce_with_logits",
]
