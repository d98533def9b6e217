"""What a part of the course is."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .machine import Machine, text_of

Row = dict[str, Any]


class Failed(Exception):
    """A part cannot go on; the message says why in one line."""


class Absent(Exception):
    """A tool that a part needs is not there; the message names it."""


class Setup(NamedTuple):
    """What a part has to do with."""

    machine: Machine
    facts: dict[str, Any]
    folder: Path  # for its files
    out: Path  # for those that are kept
    library: Path | None  # built earlier
    builds: bool  # whether the extension may be built
    seconds: float  # that the part may take
    run: Callable[..., None]  # runs commands side by side; raises where there is no time left

    def module(self, name: str, *arguments: object) -> list[str]:
        """The arguments that run a module of this Python on the device."""
        return [sys.executable, "-m", name, "--device", self.machine.device, *map(str, arguments)]


class Part(NamedTuple):
    """One part; the weights share out the time."""

    name: str
    weight: float
    steps: Callable[[Setup], str]  # does its work and returns a remark
    results: Callable[[Path], list[Row]] = lambda folder: []


def lines_of(path: Path) -> list[Row]:
    """The objects of a file that has one in each line; a program may still be writing the last."""
    rows = []
    for line in text_of(path).splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
