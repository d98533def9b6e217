"""What 0.6 pickled names this module for weighting.py."""

from .weighting import pos_weight_from_labels, propensity_from_labels

__all__ = ["pos_weight_from_labels", "propensity_from_labels"]
