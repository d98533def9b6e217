"""Finds where this copy of the package is, why it has no kernels, and how to build them.

setup.py loads this file by its path, before there is a package to import it from, so it imports
nothing but the standard library.
"""

import json
import os
import shlex
import sys
import tempfile
from functools import partial
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from os.path import abspath, isdir, isfile, realpath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = Path(__file__).absolute().parent
BUILD_NEEDS = 'ninja "pybind11>=2.12" "setuptools>=77"'  # what a build needs besides torch
CUDA_OF_THE_EXTRA = "13"  # the version whose nvcc pip has, in the extra "cuda"


def source_tree() -> Path | None:
    """Returns the folder with setup.py and csrc/ around the package; None if it is installed."""
    root = PACKAGE.parent
    return root if is_source_tree(root) else None


def is_source_tree(folder: Path) -> bool:
    # Unlike Path's methods, these say no of folders that this user may not enter.
    return isfile(folder / "setup.py") and isdir(folder / "csrc")


def copies_with_kernels() -> list[Path]:
    """Finds the other copies of the package on sys.path that have kernels for this Python."""
    folders = dict.fromkeys(Path(entry or _here(), PACKAGE.name) for entry in sys.path)
    return [
        folder
        for folder in folders
        if has_kernels(folder) and realpath(folder) != realpath(PACKAGE)
    ]


def has_kernels(folder: Path) -> bool:
    return any(isfile(folder / f"_C{suffix}") for suffix in EXTENSION_SUFFIXES)


def _here() -> str:
    try:
        return abspath(".")
    except OSError:  # it was deleted
        return ""


def installed_from() -> Path | None:
    """Returns the source tree or sdist from which pip made this copy, if it still exists."""
    for distribution in metadata.distributions(name=PACKAGE.name, path=[str(PACKAGE.parent)]):
        try:
            facts = json.loads(distribution.read_text("direct_url.json") or "{}")
            url = urlsplit(str(facts["url"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # not installed from a folder or file, or not by pip
        source = Path(url2pathname(url.path))
        sdist = isfile(source) and source.suffix != ".whl"
        if url.scheme == "file" and (sdist or is_source_tree(source)):
            return source
    return None


def why_none() -> str:
    """Says why no kernels are found, as a clause without a full stop."""
    root = source_tree()
    for_others = [path.name for path in sorted(PACKAGE.glob("_C.*.so"))]
    if for_others and not has_kernels(PACKAGE):
        return f"{PACKAGE} has kernels for another version of Python, {', '.join(for_others)}"
    if root is None:
        return f"the copy in {PACKAGE} was installed without kernels"
    others = "".join(f", although {folder} has them" for folder in copies_with_kernels()[:1])
    return f"the package is imported from the source tree {root}, which has no kernels{others}"


def how_to_build() -> str:
    """Returns a sentence that ends with the command that builds the kernels of this copy."""
    root = source_tree()
    start = "To build the kernels with a C++ compiler, run"
    if root is not None and _here() == str(root) and copies_with_kernels():
        start = "Import the package from another folder, or, to build the kernels here, run"
    return start + build_from(_source(), editable=root is not None)


def how_to_build_cuda(torch_cuda: str) -> str:
    """Returns a sentence that ends with the command that builds the CUDA kernels of this copy.

    Args:
        torch_cuda: `torch.version.cuda`.
    """
    major = torch_cuda.split(".")[0]
    build = partial(build_from, _source(), editable=source_tree() is not None, cuda=True)
    if major == CUDA_OF_THE_EXTRA:
        return f"To build them, run{build(extra='cuda')}"
    return f"To build them with the toolkit of CUDA {major}, run{build()}"


def _source() -> Path | None:
    """Returns what pip should install, or None if that is not known."""
    return source_tree() or installed_from()


def build_from(source: Path | None, **options: Any) -> str:
    """Returns the command, after where to run it if the source is unknown or temporary."""
    # Pip unpacks what it fetches in a temporary folder.
    if source is None or abspath(source).startswith(tempfile.gettempdir() + os.sep + "pip-"):
        return f" in a clone of the repository: {command(Path('.'), **options)}"
    return f": {command(source, **options)}"


def command(source: Path, *, editable: bool, cuda: bool = False, extra: str = "") -> str:
    """Returns a command that builds the kernels; if it cannot, it fails and says why."""
    required = "WEIGHTED_BCE_CUDA=1" if cuda else "WEIGHTED_BCE_REQUIRE_EXT=1"
    install = f"{pip()} install --no-build-isolation"
    how = "-e " if editable else ""
    # Without -e pip may take what it has built or installed before.
    again = "" if editable else "--no-cache-dir --force-reinstall --no-deps "
    parts = [
        f"{pip()} install {BUILD_NEEDS}",
        f"WEIGHTED_BCE_BUILD=0 {install} {how}{shlex.quote(f'{source}[{extra}]')}",
        f"{required} {install} {how}{again}{shlex.quote(str(source))}",
    ]
    return " && ".join(parts if extra else (parts[0], parts[2]))


def pip() -> str:
    """Returns the pip of this Python; the one on PATH may belong to another."""
    return f"{shlex.quote(sys.executable or 'python')} -m pip"
