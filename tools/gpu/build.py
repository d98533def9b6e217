"""The extension: one that was built earlier, or a new one for this GPU alone, in place."""

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from tools.program import shortened

from .machine import ROOT, cores, text_of
from .part import Failed, Part, Setup
from .processes import Command

PACKAGE = ROOT / "weighted_bce"
ELEMENTS = 4096
LAST = 20  # lines of the log of a build that fails


def module(package: Path) -> Path:
    """Where this Python looks for the extension."""
    return package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def steps(setup: Setup) -> str:
    remark, library = "", setup.library
    if library is not None:
        if library.is_file() and _runs(setup, library):
            _keep(setup, str(library))
            return f"{library} runs here"
        remark = f"{library} {'does not run here' if library.is_file() else 'is not there'}; "
    if setup.builds:
        build = _build(setup)
        setup.run(build)
        if not build.succeeded:
            raise Failed(_failure(build))
    trial = _trial(setup, "kernels")
    setup.run(trial)
    if not trial.succeeded:
        raise Failed(f"no kernel runs: {trial.why}")
    _keep(setup, "built here" if setup.builds else module(PACKAGE).name)
    return remark + f"built for {setup.facts['compute capability']}"


def _runs(setup: Setup, library: Path) -> bool:
    """Puts a library in place; where it does not run, the one that was there comes back."""
    target, trial = module(PACKAGE), _trial(setup, "library")
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        shutil.copy2(target, old)  # a build goes by its time
    try:
        _replace(library, target)
        setup.run(trial)
    finally:  # an interrupt ends the part in the run
        if trial.succeeded:
            old.unlink(missing_ok=True)
        elif old.exists():
            os.replace(old, target)
        else:
            target.unlink(missing_ok=True)
    return trial.succeeded


def _keep(setup: Setup, library: str) -> None:
    setup.facts["library"] = library
    _replace(module(PACKAGE), setup.out / module(PACKAGE).name)


def _failure(build: Command) -> str:
    """Shows the end of the log; returns its first error, which tells more than its last line."""
    text = text_of(build.log)
    print("\n".join(text.splitlines()[-LAST:]), flush=True)
    first = re.search(r"^.*\berror\b.*$", text, re.I | re.M)
    return "; ".join(filter(None, (first and shortened(first[0].strip(), 200), build.why)))


def _build(setup: Setup) -> Command:
    variables = {
        "WEIGHTED_BCE_REQUIRE_EXT": "1",
        "WEIGHTED_BCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": str(setup.facts["compute capability"]),
        "MAX_JOBS": str(cores()),
        # Ninja is next to a Python whose environment need not be active.
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", ""))),
    }
    arguments = [sys.executable, str(ROOT / "setup.py"), "build_ext", "--inplace"]
    return Command("build", arguments, environment=variables)


def _trial(setup: Setup, name: str) -> Command:
    """The main kernels, on few elements; it imports the package from its folder."""
    arguments = setup.module("tools.gpu.launches", "--elements", ELEMENTS)
    return Command(name, arguments, is_trial=True)


def _replace(source: Path, target: Path) -> None:
    """A copy, made aside: a process may have the old file in memory."""
    if source.resolve() != target.resolve():
        new = target.with_name(f"{target.name}.new")
        shutil.copyfile(source, new)
        os.replace(new, target)


# The build gets more time than it should need: without kernels there is nothing to prove.
PART = Part("build", 300, steps)
