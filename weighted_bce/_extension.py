"""Loads the compiled extension, which registers torch.ops.weighted_bce."""

from importlib import import_module
from types import ModuleType

import torch

from . import _installation
from ._version import __version__
from ._warning import warn

OLDEST_TORCH = (2, 11)


def _load() -> tuple[ModuleType | None, str, str]:
    """Returns the extension; or None, a clause that says why it is missing, and what helps."""
    try:
        module = import_module("._C", __package__)
    except ModuleNotFoundError:
        return None, _installation.why_none(), _installation.how_to_build()
    except ImportError as error:
        return None, *_not_loaded(error)
    if module.version != __version__:
        why = f"the kernels in {_installation.PACKAGE} are of version {module.version}, "
        why += f"but the package is of version {__version__}"
        return None, why, _installation.how_to_build()
    return module, "", ""


def _not_loaded(error: ImportError) -> tuple[str, str]:
    why = f"the kernels in {_installation.PACKAGE} cannot be loaded ({error})"
    # The first two numbers: by all of it, the 2.11.0a0 of a container would be older than 2.11.
    if tuple(map(int, torch.__version__.split(".")[:2])) >= OLDEST_TORCH:
        return why, _installation.how_to_build()
    oldest = ".".join(map(str, OLDEST_TORCH))
    why += f"; they need torch {oldest} or newer, and this is {torch.__version__}"
    return why, f'To install a newer torch, run: {_installation.pip()} install "torch>={oldest}"'


def _warn() -> None:
    warn(
        "weighted_bce runs without its kernels, in plain PyTorch, which is much slower: "
        f"{why_missing}. {remedy}",
        RuntimeWarning,
    )


extension, why_missing, remedy = _load()
if extension is None:
    _warn()
