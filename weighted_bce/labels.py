"""The old name of weighting.py, kept so that pickles of version 0.6 load."""

from .weighting import pos_weight_from_labels, propensity_from_labels

__all__ = ["pos_weight_from_labels", "propensity_from_labels"]
