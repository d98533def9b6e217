"""Finds the line of the user's code, and warns there: users cannot change those of this package."""

import sys
import warnings
from types import FrameType

# Modules whose frames lie between the user's line and the code that asks for it.
_INNER = (f"{__package__}.", "torch.", "importlib.", "_frozen_importlib")


def warn(message: str, category: type[Warning]) -> None:
    frame = users_frame() or sys._getframe()
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def users_frame() -> FrameType | None:
    """Returns the first frame that is not of this package, of torch or of the import system."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and _is_inner(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return frame


def _is_inner(module: str) -> bool:
    return f"{module}.".startswith(_INNER)
