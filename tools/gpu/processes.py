"""Commands in process groups of their own, which end as a whole when they take too long."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .machine import ROOT, last_line, text_of

PATIENCE = 4.0  # seconds in which an interrupted command may write down what it has
STEP = 0.05  # seconds between two looks
TICK = 1.0
# Logs are read while they are written; compilers in processes of their own would outlive theirs.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Command(NamedTuple):
    """What a part of the course runs.

    Attributes:
        name: that of the log, and what the reports call it.
        arguments: the program and what it is given.
        share: what it may take of the part's time at most.
        environment: variables that are added to those of this process.
        succeeds: the exit codes of a success.
        is_trial: whether a failure is an answer, and no failure of the part.
        may_be_late: whether it does as much as there is time for.
    """

    name: str
    arguments: Sequence[str]
    share: float = 1.0
    environment: Mapping[str, str] = {}
    succeeds: tuple[int, ...] = (0,)
    is_trial: bool = False
    may_be_late: bool = False


class Ran(NamedTuple):
    """How a command ended; `code` is None where it was ended from here."""

    command: Command
    code: int | None
    seconds: float
    log: Path

    @property
    def succeeded(self) -> bool:
        return self.code in self.command.succeeds

    @property
    def fails_its_part(self) -> bool:
        excused = self.command.is_trial or (self.command.may_be_late and self.code is None)
        return not self.succeeded and not excused

    @property
    def why(self) -> str:
        """Nothing, or one line that tells of a failure."""
        if self.succeeded:
            return ""
        ended = f"exit code {self.code}"
        if self.code is None:
            ended = f"ended after {self.seconds:.0f} s"
        elif self.code < 0:
            ended = f"ended by signal {-self.code}"
        text = last_line(text_of(self.log)) or "no output"
        text = text if len(text) <= 200 else f"{text[:197]}..."
        return f"{self.command.name}: {ended}: {text}"


class Running:
    """A command that was started; its output goes to a log."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command, self.log = command, log
        self.code: int | None = None
        self.was_ended = False
        self.start = time.monotonic()
        self.seconds = 0.0
        with log.open("wb") as file:
            try:
                self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
                    command.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **ENVIRONMENT, **command.environment},
                    cwd=ROOT,
                    preexec_fn=os.setpgrp,
                )
            except OSError as error:
                file.write(f"{command.arguments[0]}: {error.strerror}\n".encode())
                self.process, self.code = None, 127

    def is_alive(self) -> bool:
        if self.process is None or self.code is not None:
            return False
        self.code = self.process.poll()
        self.seconds = time.monotonic() - self.start
        if self.code is not None:
            self.signal(signal.SIGKILL)  # it goes to those that were left behind
        return self.code is None

    def signal(self, number: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def ran(self) -> Ran:
        code = None if self.was_ended else self.code
        return Ran(self.command, code, self.seconds, self.log)


def end(running: Sequence[Running]) -> None:
    """Interrupts these, and kills what is still there a little later."""
    alive = [one for one in running if one.is_alive()]
    for number in (signal.SIGINT, signal.SIGKILL):
        for one in alive:
            one.was_ended = True
            one.signal(number)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and any([one.is_alive() for one in alive]):
            time.sleep(STEP)
        alive = [one for one in alive if one.is_alive()]
    for one in alive:
        one.code = -signal.SIGKILL  # what waits for a driver cannot even be killed


def run(
    commands: Sequence[Command],
    logs: Path,
    seconds: Sequence[float],
    is_over: Callable[[], bool] = lambda: False,
    tick: Callable[[], object] = lambda: None,
) -> list[Ran]:
    """Runs commands side by side until each has ended.

    Args:
        commands: their names tell them apart.
        logs: the folder that gets the output of each.
        seconds: how long each may take.
        is_over: whether all have to end now.
        tick: called each second.
    """
    running = [Running(command, logs / f"{command.name}.txt") for command in commands]
    next_tick = time.monotonic() + TICK
    try:
        while any([one.is_alive() for one in running]) and not is_over():
            end([one for one, most in zip(running, seconds, strict=True) if one.seconds > most])
            if time.monotonic() > next_tick:
                next_tick = time.monotonic() + TICK
                tick()
            time.sleep(STEP)
    finally:
        end(running)
    return [one.ran() for one in running]
