"""Chooses which implementation runs, and describes the installation."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch

from . import _installation
from ._extension import extension, remedy, why_missing
from ._types import BackendName
from ._version import __version__

BACKENDS = get_args(BackendName)


def _checked(name: object, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return str(name)


# A plain global, like the flags of torch.backends: torch.compile guards on it.
current_backend = _checked(
    os.environ.get("WEIGHTED_BCE_BACKEND") or "auto", "the variable WEIGHTED_BCE_BACKEND"
)


@contextmanager
def backend(name: BackendName) -> Iterator[None]:
    """Chooses the implementation within a `with` block, for the whole process.

    The environment variable ``WEIGHTED_BCE_BACKEND`` sets the choice at the start. Its default is
    "auto".

    Args:
        name: "auto" runs the fused kernels where they serve the input, and the reference in plain
            PyTorch elsewhere. "fused" raises an error where no kernel serves the input. "reference"
            always runs the reference.

    Raises:
        ValueError: if `name` is none of these.
        RuntimeError: under "fused", by the functions of this package where no kernel serves the
            input.

    Example:
        >>> import weighted_bce
        >>> with weighted_bce.backend("reference"):
        ...     pass
    """
    global current_backend
    checked = _checked(name, "backend")
    before, current_backend = current_backend, checked
    try:
        yield
    finally:
        current_backend = before


def empty_cache() -> None:
    """Returns the memory that is kept for future gradients to the operating system.

    On the CPU, a gradient of 1 MiB or more reuses the memory of an earlier one whose tensors are
    gone. At most 1 GiB of unused memory is kept. Without the extension there is nothing to do.
    """
    if extension is not None:
        extension.release_kept()


def _cuda_kernels() -> str:
    if extension is None:
        return "none"
    if not extension.cuda_archs:
        if torch.version.cuda is None:
            return "none: this torch does not use CUDA"
        how = _installation.how_to_build_cuda(torch.version.cuda)
        return f"none: the extension was built without them. {how}"
    return f"{extension.cuda_archs} (nvcc {extension.cuda_version})"


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"


def show_config() -> str:
    """Describes the installation: versions, kernels, instruction set, GPUs and threads.

    Returns:
        Text with one fact per line. Please include ``print(weighted_bce.show_config())`` in bug
        reports.
    """
    facts = {
        "weighted_bce": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    if extension is None:
        facts["extension"] = f"none: {why_missing}"
        facts["remedy"] = remedy
    else:
        facts["built against torch"] = extension.torch_version
        facts["compiler"] = extension.compiler
        compiled = (n + ("" if ok else " (not on this CPU)") for n, ok in extension.simd_levels())
        facts["SIMD levels compiled in"] = ", ".join(compiled)
        facts["SIMD level in use"] = extension.simd_level()
        facts["gradient memory kept"] = f"{extension.kept_bytes() / 2**20:.0f} MiB"
    facts["CUDA kernels"] = _cuda_kernels()
    if torch.cuda.is_available():
        facts["GPU"] = ", ".join(map(_gpu, range(torch.cuda.device_count())))
    facts["threads"] = str(torch.get_num_threads())
    facts["backend"] = current_backend
    return "\n".join(f"{name}: {value}" for name, value in facts.items())
