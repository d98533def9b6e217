"""The one place of the version."""

__version__ = "0.6.0"
