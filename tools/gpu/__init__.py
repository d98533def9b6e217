"""Builds, checks and measures the package on this machine's GPU: python -m tools.gpu --help.

Nothing here imports torch or the package. They run in the processes that a course starts.
"""
