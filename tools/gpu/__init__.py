"""One command that proves the package on this machine's GPU: python -m tools.gpu --help.

Nothing here imports torch or the package: they run in the processes that a course starts.
"""
