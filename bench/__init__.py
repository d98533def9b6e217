"""Compares the fused loss with the usual ways to write it: python -m bench --quick."""
