"""A machine whose GPU is the CPU, and whose NVIDIA programs are short scripts."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tools.gpu import __main__, build, course
from tools.gpu.machine import Machine
from tools.gpu.part import Part, Setup
from tools.gpu.processes import Command

FACTS = {"GPU": "a pretended one", "compute capability": "9.0", "torch": "2.11.0"}
STARTS = "while [ $1 != {python} ]; do shift; done\n"
PROGRAMS = {
    "nvidia-smi": "case $1 in\n*driver*) echo 580.1 ;;\n"
    "*) while :; do echo 2026/11/27 19:15:28.123, 1980, 3201, 300.50, 45; sleep 0.1; done\nesac\n",
    "nvcc": "echo Build cuda_13.0.r13.0/compiler.36424714_0\n",
    "compute-sanitizer": "case $1 in --help) echo --kernel-name arg; exit ;; esac\n"
    + STARTS
    + '"$@" && echo "========= ERROR SUMMARY: 0 errors"\n',
    "ncu": STARTS + '"$@" && cat <<END\n{counted}\nEND\n',
}
STALLS = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
HEAD = (
    *("ID", "Kernel Name", "gpu__time_duration.sum", "dram__bytes.sum.per_second"),
    *("sm__inst_issued.avg.pct_of_peak_sustained_active", "launch__registers_per_thread"),
    *(STALLS.format("long_scoreboard"), STALLS.format("selected"), STALLS.format("wait")),
)
UNITS = ("", "", "nsecond", "byte/second", "%", "register/thread", "inst", "inst", "inst")
LAUNCH = ("0", "on_vectors", "1,250.00", "2,900,000,000,000.00", "61.25", "80", "9.5", "9.9", "2")


def counted(launches: int) -> str:
    """What Nsight Compute prints."""
    lines = [HEAD, UNITS, *[LAUNCH] * launches]
    return "\n".join(["==PROF== Connected", *('"' + '","'.join(line) + '"' for line in lines)])


class Pretended(Machine):
    """Has the programs that it is given."""

    device = "cpu"

    def __init__(self, folder: Path, programs: tuple[str, ...] = tuple(PROGRAMS)) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in programs:
            text = PROGRAMS[name].replace("{python}", sys.executable)
            path = self.folder / name
            path.write_text("#!/bin/sh\n" + text.replace("{counted}", counted(4)))
            path.chmod(0o755)

    def probe(self) -> dict[str, Any]:
        return dict(FACTS)

    def tool(self, name: str) -> str | None:
        path = self.folder / name
        return str(path) if path.exists() else None


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """What a part of a course is given, and a package of which the extension is in place."""
    for name in ("part", "out", "package"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    build.module(build.PACKAGE).write_text("in place")
    given = (dict(FACTS), tmp_path / "part", tmp_path / "out", None, True, 60.0)
    return Setup(Pretended(tmp_path), *given, print)


def driven(part: Part, setup: Setup, *codes: int) -> tuple[list[Command], str]:
    """The commands of a part and its remark; each command ends with the next of these codes."""
    commands: list[Command] = []
    left = [*codes]

    def run(*some: Command) -> None:
        for command in some:
            command.code = left.pop(0) if left else 0
            command.log = setup.folder / f"{command.name}.txt"
            commands.append(command)

    return commands, part.steps(setup._replace(run=run))


def part(name: str, *scripts: str, weight: float = 1.0, share: float = 1.0) -> Part:
    """A part that runs these lines of Python one after the other."""

    def steps(setup: Setup) -> str:
        for number, script in enumerate(scripts):
            setup.run(Command(f"{name}{number}", [sys.executable, "-c", script], share))
        return "that was all"

    return Part(name, weight, steps)


def interrupted_course(out: Path) -> None:
    """A course of which the second part lasts; for a process that is interrupted."""
    course.PARTS = (part("smoke", "print(1)"), part("tests", LASTS), part("profile", "print(1)"))
    given = ["--out", str(out), "--parts", "smoke,tests,profile"]
    sys.exit(__main__.main(given, Pretended(out.parent, ("nvidia-smi",))))


LASTS = "import time; print('begun', flush=True); time.sleep(60)"
