"""Commands in process groups of their own, which end as a whole when they take too long."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.program import shortened

from .machine import ROOT, last_line, text_of

PATIENCE = 4.0  # seconds in which an interrupted command may write down what it has
STEP = 0.05  # seconds between two looks
TICK = 1.0
# Logs are read while they are written; compilers in processes of their own would outlive theirs.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@dataclass
class Command:
    """What a part of the course runs, and how it ended."""

    name: str  # that of the log, and what the reports call it
    arguments: Sequence[str]
    share: float = 1.0  # of the part's time, at most
    environment: Mapping[str, str] = field(default_factory=dict)  # added to that of this process
    succeeds: tuple[int, ...] = (0,)  # the exit codes of a success
    is_trial: bool = False  # a failure is an answer, and no failure of the part
    may_be_late: bool = False  # it does as much as there is time for
    code: int | None = None  # None while it runs, and where it was ended from here
    seconds: float = 0.0  # how long it has run
    log: Path = Path(os.devnull)
    process: subprocess.Popen[bytes] | None = None  # while it runs

    @property
    def succeeded(self) -> bool:
        return self.code in self.succeeds

    @property
    def fails_its_part(self) -> bool:
        return not (self.succeeded or self.is_trial or (self.may_be_late and self.code is None))

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
        return f"{self.name}: {ended}: {shortened(text, 200)}"

    def start(self, folder: Path) -> None:
        """Starts it with a log in this folder."""
        self.log, self.begin = folder / f"{self.name}.txt", time.monotonic()
        with self.log.open("wb") as file:
            try:
                self.process = subprocess.Popen(
                    self.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **ENVIRONMENT, **self.environment},
                    cwd=ROOT,
                    start_new_session=True,
                )
            except OSError as error:
                file.write(f"{self.arguments[0]}: {error.strerror}\n".encode())
                self.code = 127

    def is_running(self) -> bool:
        if self.process is None:
            return False
        self.seconds = time.monotonic() - self.begin
        self.code = self.process.poll()
        if self.code is None:
            return True
        self.signal(signal.SIGKILL)  # it goes to those that were left behind
        self.process = None
        return False

    def signal(self, number: int) -> None:
        """Sends a signal to all processes of the command."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


def end(commands: Sequence[Command]) -> None:
    """Interrupts these, and kills what is still there a little later."""
    running = ended = [command for command in commands if command.is_running()]
    for number in (signal.SIGINT, signal.SIGKILL):
        for command in running:
            command.signal(number)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and any([command.is_running() for command in running]):
            time.sleep(STEP)
        running = [command for command in running if command.is_running()]
    for command in ended:
        # What waits for a driver cannot even be killed: it is left behind.
        command.process = command.code = None


def run(
    commands: Sequence[Command],
    logs: Path,
    seconds: Sequence[float],
    is_over: Callable[[], bool],
    tick: Callable[[], object],
) -> None:
    """Runs commands side by side until each has ended, or has had its seconds, or all are over.

    The folder gets a log of each; `tick` is called each second.
    """
    next_tick = time.monotonic() + TICK
    try:
        for command in commands:
            command.start(logs)
        while any([command.is_running() for command in commands]) and not is_over():
            limits = zip(commands, seconds, strict=True)
            end([command for command, most in limits if command.seconds > most])
            if time.monotonic() > next_tick:
                next_tick = time.monotonic() + TICK
                tick()
            time.sleep(STEP)
    finally:
        end(commands)
