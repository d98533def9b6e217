"""Builds the extension module weighted_bce._C; all metadata is in pyproject.toml.

Environment:
    WEIGHTED_BCE_BUILD=0         do not build the extension
    WEIGHTED_BCE_REQUIRE_EXT=1   a failed build is an error, not a warning
"""

import os
import re
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # the stable ABI of torch 2.11


def version() -> str:
    text = (ROOT / "weighted_bce" / "_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.+)"', text).group(1)


def warn(reason: object) -> None:
    """Says once why there is no extension, or raises where one is required."""
    if os.environ.get("WEIGHTED_BCE_REQUIRE_EXT") == "1":
        raise SystemExit(f"weighted_bce: the extension was not built: {reason}")
    print(
        f"weighted_bce: WARNING: the extension was not built: {reason}\n"
        "The package works through its slower pure-PyTorch reference. To build the kernels, "
        "install a C++ compiler, torch, ninja and pybind11, then run\n"
        "    pip install --no-build-isolation --force-reinstall --no-deps weighted_bce",
        file=sys.stderr,
    )


def extension_arguments() -> dict:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class OptionalBuild(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except (Exception, SystemExit) as error:
                self.extensions = []  # nothing left to copy into the package
                first = str(error).strip().splitlines()
                warn(first[0] if first else type(error).__name__)

    definitions = {
        "TORCH_TARGET_VERSION": TORCH_TARGET_VERSION,
        "WEIGHTED_BCE_VERSION": f'"{version()}"',
        "WEIGHTED_BCE_TORCH_VERSION": f'"{torch.__version__}"',
    }
    sources = ["csrc/ops.cpp", "csrc/python.cpp", *sorted(map(str, Path("csrc").glob("cpu/*.cpp")))]
    extension = CppExtension(
        "weighted_bce._C",
        sources,
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=list(definitions.items()),
        # No contraction: the same expression must round the same way in each kernel.
        extra_compile_args=[
            "-O3",
            "-g0",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-ffp-contract=off",
            "-fvisibility=hidden",
            "-Wall",
            "-Wno-psabi",
        ],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild}}


arguments: dict = {}
if os.environ.get("WEIGHTED_BCE_BUILD") != "0":
    try:
        arguments = extension_arguments()
    except ImportError as error:
        warn(error)
setup(**arguments)
