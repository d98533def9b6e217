"""Compares weighted_bce with the usual ways to compute the same loss: python -m bench --quick."""
