"""A whole course: its parts one after the other, each within its time."""

import csv
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.files import write_whole

from . import build, correctness, counters, figures
from .machine import CLOCK_FIELDS, Machine, text_of
from .part import Absent, Failed, Part, Row, Setup
from .processes import Command, end, run
from .report import report

PARTS = (
    build.PART,
    correctness.SMOKE_PART,
    figures.PART,
    correctness.TESTS_PART,
    correctness.SANITIZE,
    counters.PART,
)
NAMES = tuple(part.name for part in PARTS)
RESERVE = 8.0  # seconds in which what is late is ended and the reports are written
LEAST = 3.0  # seconds without which a part does not begin
OK, FAILED, LATE, ABSENT = "ok", "failed", "late", "absent"
INTERRUPTED, NOT_RUN = "interrupted", "not run"
BEFORE = {"outcome": NOT_RUN, "why": "", "seconds": 0.0, "limit": 0.0, "began": 0.0, "unread": ""}


class _Over(Exception):
    """A part has no time left, or is interrupted."""


@dataclass
class Course:
    """`results` is what has come of it so far, and what results.json holds."""

    machine: Machine
    facts: dict[str, Any]  # what is known of the machine and the sources
    out: Path  # the folder of the results
    names: Sequence[str]  # of the parts that are wanted
    end: float  # when all must be over, by time.monotonic()
    library: Path | None = None  # an extension that was built earlier
    is_interrupted = False

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.out = self.out.resolve()
        self.work = Path(tempfile.mkdtemp(prefix="weighted_bce-gpu-"))
        chosen = {*self.names, build.PART.name} if self.library else {*self.names}
        self.parts = [part for part in PARTS if part.name in chosen]
        self.results: dict[str, Any] = {"facts": self.facts, "clocks": [], "parts": []}
        for part in self.parts:
            row = {"part": part.name, **BEFORE, "commands": [], "results": []}
            self.results["parts"].append(row)

    def interrupt(self, *_: object) -> None:
        """The part that runs ends within seconds and no other begins.

        More signals change nothing: make passes its own on, so that one may come twice.
        """
        self.is_interrupted = True

    def run(self) -> int:
        """Runs all parts; returns the exit code."""
        self._save(is_whole=True)  # this replaces the files of an earlier run
        clocks = self.machine.clocks()
        sampler = Command("clocks", clocks or [])
        if clocks:
            sampler.start(self.work)
        try:
            for part, row in zip(self.parts, self.results["parts"], strict=True):
                self._run(part, row)
                self._save(is_whole=True)
                if part.name == build.PART.name and row["outcome"] != OK:
                    break  # there are no kernels
        finally:
            end([sampler])
            self._save(is_whole=True)
            shutil.rmtree(self.work, ignore_errors=True)
        return int(any(row["outcome"] not in (OK, ABSENT) for row in self.results["parts"]))

    def _save(self, is_whole: bool = False) -> None:
        """Writes results.json; with `is_whole` the report and the archive of the logs as well."""
        lines = csv.reader(text_of(self.work / "clocks.txt").splitlines(), skipinitialspace=True)
        whole = [line for line in lines if len(line) == len(CLOCK_FIELDS)]
        self.results["clocks"] = [dict(zip(CLOCK_FIELDS, line, strict=True)) for line in whole]
        write_whole(self.out / "results.json", json.dumps(self.results, indent=1))
        if is_whole:
            write_whole(self.out / "report.md", report(self.results, self.work))
            new = self.out / "logs.tar.gz.new"
            with tarfile.open(new, "w:gz") as archive:
                archive.add(self.work, "logs")
            new.replace(self.out / "logs.tar.gz")

    def _run(self, part: Part, row: Row) -> None:
        """Runs a part and writes what became of it into its row."""
        later = self.parts[self.parts.index(part) :]
        left = self.end - RESERVE - time.monotonic()
        limit = left * part.weight / sum(one.weight for one in later)
        row["limit"] = round(max(0.0, limit), 1)
        if self.is_interrupted or limit < LEAST:
            row["why"] = "interrupted before" if self.is_interrupted else "no time left"
            return
        print(f"{part.name}: up to {limit:.0f} s", flush=True)
        row["began"] = round(time.time(), 1)
        folder = self.work / part.name
        folder.mkdir()
        row["outcome"], remarks = self._outcome(part, row, folder, limit)
        row["why"] = "; ".join(filter(None, remarks))
        told = f"{part.name}: {row['outcome']} after {row['seconds']:.0f} s"
        print(": ".join(filter(None, (told, row["why"]))), flush=True)

    def _outcome(self, part: Part, row: Row, folder: Path, limit: float) -> tuple[str, list[str]]:
        """What became of a part, and the remarks on it, first those on commands that failed."""
        start = time.monotonic()
        failures: list[str] = []
        late: list[str] = []

        def look() -> None:
            row["seconds"] = round(time.monotonic() - start, 1)
            try:
                row["results"], row["unread"] = part.results(folder), ""
            except Exception as error:  # an early look may meet half a file
                row["unread"] = f"{type(error).__name__}: {error}"

        def tick() -> None:
            look()
            self._save()

        def run_all(*commands: Command) -> None:
            left = start + limit - time.monotonic()
            seconds = [min(command.share * limit, left) for command in commands]
            run(commands, folder, seconds, lambda: self.is_interrupted, tick)
            for one in commands:
                known = {"name": one.name, "code": one.code, "seconds": round(one.seconds, 1)}
                row["commands"].append(known)
                if one.fails_its_part:
                    failures.append(one.why)
                elif one.code is None and one.may_be_late:
                    late.append(one.why)
            is_late = any(one.code is None for one in commands)
            if self.is_interrupted or (is_late and time.monotonic() - start >= limit):
                raise _Over

        library, builds = self.library and self.library.resolve(), build.PART.name in self.names
        given = (self.machine, self.facts, folder, self.out, library, builds, limit, run_all)
        try:
            remark = part.steps(Setup(*given))
            return FAILED if failures else OK, [*failures, *late, remark]
        except _Over:
            outcome = INTERRUPTED if self.is_interrupted else LATE if failures else OK
            return outcome, [*failures, *late]
        except (Absent, Failed) as error:
            return ABSENT if isinstance(error, Absent) else FAILED, [str(error)]
        except Exception as error:  # other parts may still succeed
            return FAILED, [f"{type(error).__name__}: {error}"]
        finally:
            look()
