"""Weighted binary cross-entropy for sparse multi-label classifiers, fused into one pass."""

from ._config import backend, empty_cache, show_config
from ._version import __version__
from .functional import weighted_bce, weighted_bce_with_logits
from .labels import pos_weight_from_labels
from .modules import WeightBCEWithLogitsLoss, WeightedBCELoss, WeightedBCEWithLogitsLoss

__all__ = [
    "WeightBCEWithLogitsLoss",
    "WeightedBCELoss",
    "WeightedBCEWithLogitsLoss",
    "__version__",
    "backend",
    "empty_cache",
    "pos_weight_from_labels",
    "show_config",
    "weighted_bce",
    "weighted_bce_with_logits",
]
