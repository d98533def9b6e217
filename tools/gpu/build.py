"""The extension: one that was built earlier, or a new one for this GPU alone, in place."""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Generator
from pathlib import Path

from .machine import ROOT, cores, text_of
from .part import Failed, Part, Setup, Steps
from .processes import Command, Ran

PACKAGE = ROOT / "weighted_bce"
ELEMENTS = 4096
LAST = 20  # lines of the log of a build that fails


def module(package: Path) -> Path:
    """Where this Python looks for the extension."""
    return package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def steps(setup: Setup) -> Steps:
    remark, library = "", setup.library
    if library is not None and not library.is_file():
        remark = f"{library} is not there; "
    elif library is not None:
        if (yield from _runs(setup, library)):
            _keep(setup, str(library))
            return f"{library} runs here"
        remark = f"{library} does not run here; "
    if setup.builds:
        (ran,) = yield [_build(setup)]
        if not ran.succeeded:
            raise Failed(_failure(ran))
    (ran,) = yield [_trial(setup, "kernels")]
    if not ran.succeeded:
        raise Failed(f"no kernel runs: {ran.why}")
    _keep(setup, "built here" if setup.builds else module(PACKAGE).name)
    return remark + f"built for {setup.facts['compute capability']}"


def _runs(setup: Setup, library: Path) -> Generator[list[Command], list[Ran], bool]:
    """Puts a library in place; where it does not run, the one that was there comes back."""
    target, runs = module(PACKAGE), False
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        shutil.copy2(target, old)  # a build goes by its time
    try:
        _replace(library, target)
        (ran,) = yield [_trial(setup, "library")]
        runs = ran.succeeded
    finally:  # an interrupt ends the course at the yield
        if runs:
            old.unlink(missing_ok=True)
        elif old.exists():
            os.replace(old, target)
        else:
            target.unlink(missing_ok=True)
    return runs


def _keep(setup: Setup, library: str) -> None:
    setup.facts["library"] = library
    _replace(module(PACKAGE), setup.out / module(PACKAGE).name)


def _failure(ran: Ran) -> str:
    """Shows the end of the log; returns its first error, which tells more than its last line."""
    lines = text_of(ran.log).splitlines()
    print("\n".join(lines[-LAST:]), flush=True)
    first = next((line.strip() for line in lines if re.search(r"\berror\b", line, re.I)), "")
    return "; ".join(text for text in (first[:200], ran.why) if text)


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
    if source.resolve() == target.resolve():
        return
    new = target.with_name(f"{target.name}.new")
    shutil.copyfile(source, new)
    os.replace(new, target)


# The build gets more time than it should need: without kernels there is nothing to prove.
PART = Part("build", 300, steps)
