"""A whole course: its parts one after the other, each within its time."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import build, correctness, counters, figures, files
from .machine import Machine
from .part import Absent, Failed, Part, Row, Setup
from .processes import Command, Ran, Running, end, run

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


class Course:
    """`results` is what has come of it so far, and what results.json holds.

    Args:
        machine: where it takes place.
        facts: what is known of the machine and the sources.
        out: the folder of the results.
        names: the parts that are wanted.
        end: when all must be over, by time.monotonic().
        library: an extension that was built earlier.
    """

    def __init__(
        self,
        machine: Machine,
        facts: dict[str, Any],
        out: Path,
        names: Sequence[str],
        end: float,
        library: Path | None = None,
    ) -> None:
        self.machine, self.out = machine, out.resolve()
        self.library = library and library.resolve()
        self.builds = build.PART.name in names
        chosen = {*names, build.PART.name} if library else {*names}
        self.parts = [part for part in PARTS if part.name in chosen]
        self.end = end - RESERVE
        self.is_interrupted = False
        out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="weighted_bce-gpu-"))
        self.results: dict[str, Any] = {"facts": facts, "clocks": [], "parts": []}
        for part in self.parts:
            row = {"part": part.name, "outcome": NOT_RUN, "why": "", "seconds": 0.0, "limit": 0.0}
            self.results["parts"].append({**row, "began": 0.0, "commands": [], "results": []})

    def interrupt(self, *_: object) -> None:
        """The part that runs ends within seconds and no other begins.

        More signals change nothing: make passes its own on, so that one may come twice.
        """
        self.is_interrupted = True

    def run(self) -> int:
        """Runs all parts; returns the exit code."""
        self._save(is_whole=True)  # this replaces the files of an earlier run
        clocks = self.machine.clocks()
        sampler = [Running(Command("clocks", clocks), self.work / "clocks.txt")] if clocks else []
        try:
            for part, row in zip(self.parts, self.results["parts"], strict=True):
                self._run(part, row)
                self._save(is_whole=True)
                if part.name == build.PART.name and row["outcome"] != OK:
                    break  # there are no kernels
        finally:
            end(sampler)
            self._save(is_whole=True)
            shutil.rmtree(self.work, ignore_errors=True)
        return int(any(row["outcome"] not in (OK, ABSENT) for row in self.results["parts"]))

    def _save(self, is_whole: bool = False) -> None:
        """results.json; with `is_whole` the report and the archive as well."""
        self.results["clocks"] = files.clocks(self.work / "clocks.txt")
        files.save(self.results, self.out, self.work if is_whole else None)

    def _run(self, part: Part, row: Row) -> None:
        later = self.parts[self.parts.index(part) :]
        left = self.end - time.monotonic()
        limit = left * part.weight / sum(one.weight for one in later)
        row["limit"] = round(max(0.0, limit), 1)
        if self.is_interrupted or limit < LEAST:
            row["why"] = "interrupted before" if self.is_interrupted else "no time left"
            return
        folder = self.work / part.name
        folder.mkdir()
        given = (self.machine, self.results["facts"], folder, self.out, self.library, self.builds)
        setup = Setup(*given, limit)
        print(f"{part.name}: up to {limit:.0f} s", flush=True)
        start, row["began"] = time.monotonic(), round(time.time(), 1)

        def look() -> None:
            row["seconds"] = round(time.monotonic() - start, 1)
            try:
                row["results"] = part.results(folder)
                row.pop("unread", None)  # an earlier look may have met half a file
            except Exception as error:  # no reason to give up what still runs
                row["unread"] = f"{type(error).__name__}: {error}"

        def note() -> None:
            look()
            self._save()

        try:
            row["outcome"], row["why"] = self._steps(part, setup, row, start + limit, note)
        except (Absent, Failed) as error:
            row["outcome"] = ABSENT if isinstance(error, Absent) else FAILED
            row["why"] = str(error)
        except Exception as error:  # other parts may still succeed
            row["outcome"], row["why"] = FAILED, f"{type(error).__name__}: {error}"
        look()
        told = f"{part.name}: {row['outcome']} after {row['seconds']:.0f} s"
        print(": ".join(text for text in (told, row["why"]) if text), flush=True)

    def _steps(
        self, part: Part, setup: Setup, row: Row, until: float, note: Callable[[], object]
    ) -> tuple[str, str]:
        """Runs what the part asks for; returns its outcome, and a remark."""
        steps = part.steps(setup)
        failures: list[str] = []
        late: list[str] = []
        ran: list[Ran] | None = None
        while True:
            try:
                commands = steps.send(ran)  # type: ignore[arg-type]
            except StopIteration as stop:
                remarks = [*failures, *late, *([stop.value] if stop.value else [])]
                return FAILED if failures else OK, "; ".join(remarks)
            left = until - time.monotonic()
            seconds = [min(command.share * setup.seconds, left) for command in commands]
            ran = run(commands, setup.folder, seconds, lambda: self.is_interrupted, note)
            row["commands"] += [
                {"name": one.command.name, "code": one.code, "seconds": round(one.seconds, 1)}
                for one in ran
            ]
            failures += [one.why for one in ran if one.fails_its_part]
            late += [one.why for one in ran if one.code is None and one.command.may_be_late]
            if self.is_interrupted:
                return INTERRUPTED, "; ".join(failures)
            if any(one.code is None for one in ran) and time.monotonic() >= until:
                return (LATE, "; ".join(failures)) if failures else (OK, "; ".join(late))
