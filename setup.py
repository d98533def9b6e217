"""Builds the extension module weighted_bce._C; all metadata is in pyproject.toml.

Environment:
    WEIGHTED_BCE_BUILD=0         do not build the extension
    WEIGHTED_BCE_REQUIRE_EXT=1   a failed build is an error, not a warning
    WEIGHTED_BCE_CUDA=0|1        without the CUDA kernels, or not without them; if unset, they are
                                 built where an nvcc is found that fits
    CUDA_HOME                    the CUDA toolkit; if unset, nvcc on PATH, that of pip, or the one
                                 in /usr/local/cuda
    TORCH_CUDA_ARCH_LIST         the GPUs to compile for, like "8.0;9.0+PTX"
    MAX_JOBS                     how many compilers may run at once
"""

import os
import re
import sys
import sysconfig
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.errors import FileError

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # the stable ABI of torch 2.11
# No contraction: the same expression must round the same way in each kernel.
FLAGS = (
    "-O3 -g0 -fno-math-errno -fno-trapping-math -ffp-contract=off -fvisibility=hidden "
    "-Wall -Wno-psabi"
)


def version() -> str:
    text = (ROOT / "weighted_bce" / "_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.+)"', text).group(1)


def module_of(path: str) -> ModuleType:
    """A file of this folder, by its path: the folder is not on sys.path when pip builds."""
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built_here() -> Path:
    """The extension of this Python in the package of this folder."""
    return ROOT / "weighted_bce" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def pybind11_headers() -> list[str]:
    """Those of the package; without it, the compiler finds the copy that torch comes with."""
    try:
        import pybind11
    except ImportError:
        return []
    return [pybind11.get_include()]


def warn(reason: object) -> None:
    """Says once why there is no extension, or raises where one is required."""
    if "1" in (os.environ.get("WEIGHTED_BCE_REQUIRE_EXT"), os.environ.get("WEIGHTED_BCE_CUDA")):
        raise SystemExit(f"weighted_bce: the extension was not built: {reason}")
    editable = "bdist_wheel" not in sys.argv
    installation = module_of("weighted_bce/_installation.py")
    print(
        f"weighted_bce: WARNING: the extension was not built: {reason}\n"
        "The package works in plain PyTorch, which is much slower. To build the kernels with "
        f"torch and a C++ compiler, run{installation.build_from(ROOT, editable=editable)}",
        file=sys.stderr,
    )


def extension_arguments() -> dict:
    cuda = module_of("tools/cuda_build.py")
    cuda.wanted()  # a wrong value is an error before anything is built

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class OptionalBuild(BuildExtension):
        def run(self) -> None:
            cuda.extend(self.extensions[0], torch.version.cuda)
            self.force = True  # ninja knows what is new; the link depends on what it does not see
            try:
                super().run()
            except (Exception, SystemExit) as error:
                self.extensions = []  # nothing left to copy into the package
                first = str(error).strip().splitlines()
                warn(first[0] if first else type(error).__name__)
            if not (self.inplace or built_here().exists()):
                # What runs in this folder imports the package from here, whatever is installed.
                with suppress(OSError, FileError):
                    self.copy_extensions_to_source()

    definitions = {
        "TORCH_TARGET_VERSION": TORCH_TARGET_VERSION,
        "WEIGHTED_BCE_VERSION": f'"{version()}"',
        "WEIGHTED_BCE_TORCH_VERSION": f'"{torch.__version__}"',
    }
    sources = [*Path("csrc").glob("*.cpp"), *Path("csrc").glob("cpu/*.cpp")]
    extension = CppExtension(
        "weighted_bce._C",
        sorted(map(str, sources)),
        include_dirs=[str(ROOT / "csrc"), *pybind11_headers()],
        define_macros=list(definitions.items()),
        extra_compile_args=FLAGS.split(),
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild}}


arguments: dict = {}
only_metadata = sys.argv[1:2] in (["egg_info"], ["dist_info"])  # pip asks first, and often
if os.environ.get("WEIGHTED_BCE_BUILD") != "0" and not only_metadata:
    try:
        arguments = extension_arguments()
    except ImportError as error:
        warn(error)
setup(**arguments)
