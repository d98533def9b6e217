"""Loads the compiled extension, which registers torch.ops.weighted_bce."""

import warnings
from importlib import import_module
from types import ModuleType

from ._version import __version__

HOW_TO_BUILD = (
    "install a C++ compiler, ninja and pybind11, then run "
    "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps weighted_bce"
)


def _load() -> tuple[ModuleType | None, str]:
    """The extension, or None and why there is none."""
    try:
        module = import_module("._C", __package__)
    except ImportError as error:
        return None, f"it cannot be imported ({error})"
    if module.version != __version__:
        return None, f"it is of version {module.version}, the package of {__version__}"
    return module, ""


extension, why_missing = _load()
if extension is None:
    warnings.warn(
        f"weighted_bce runs without its compiled extension: {why_missing}. The pure-PyTorch "
        f"reference is used, which is slower. To build it, {HOW_TO_BUILD}",
        RuntimeWarning,
        stacklevel=2,
    )
