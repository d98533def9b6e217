"""The extension: one that was built earlier, or a new one for this GPU alone, in place."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from .machine import ROOT, cores
from .part import Failed, Part, Setup, Steps
from .processes import Command

PACKAGE = ROOT / "weighted_bce"
ELEMENTS = 4096


def module(package: Path) -> Path:
    """Where this Python looks for the extension."""
    return package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def steps(setup: Setup) -> Steps:
    remark, library = "", setup.library
    if library is not None and not library.is_file():
        remark = f"{library} is not there; "
    elif library is not None:
        _replace(library, module(PACKAGE))
        (ran,) = yield [_trial(setup, "library")]
        if ran.succeeded:
            return f"{library} runs here"
        remark = f"{library} does not run here; "
    if setup.builds:
        (ran,) = yield [_build(setup)]
        if not ran.succeeded:
            raise Failed(ran.why)
    (ran,) = yield [_trial(setup, "kernels")]
    if not ran.succeeded:
        raise Failed(f"no kernel runs: {ran.why}")
    _replace(module(PACKAGE), setup.out / module(PACKAGE).name)
    return remark + f"built for {setup.facts['compute capability']}"


def _build(setup: Setup) -> Command:
    variables = {
        "WEIGHTED_BCE_REQUIRE_EXT": "1",
        "WEIGHTED_BCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": str(setup.facts["compute capability"]),
        "MAX_JOBS": str(cores()),
    }
    arguments = [sys.executable, str(ROOT / "setup.py"), "build_ext", "--inplace"]
    return Command("build", arguments, environment=variables)


def _trial(setup: Setup, name: str) -> Command:
    """The main kernels, on few elements; it imports the package from its folder."""
    arguments = setup.module("tools.gpu.launches", "--elements", ELEMENTS)
    return Command(name, arguments, is_trial=True)


def _replace(source: Path, target: Path) -> None:
    """A copy, made aside: a process may have the old file in memory."""
    if source.resolve() == target.resolve():
        return
    new = target.with_name(f"{target.name}.new")
    shutil.copyfile(source, new)
    os.replace(new, target)


# Without kernels there is nothing to prove: more time than it should need.
PART = Part("build", 300, steps)
