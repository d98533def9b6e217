"""The parts that ask whether results are right: smoke test, the suite's tests, the sanitizer."""

import re
import sys
import time
from pathlib import Path

from .machine import cores, output, text_of
from .part import Absent, Failed, Part, Row, Setup, lines_of
from .processes import Command

SMOKE: tuple[object, ...] = ("--far", 2**31 + 5)
GROUPS = "groups.jsonl"
END = 3.0  # seconds that the smoke test takes after its last case
WORKERS = 8  # processes that share the GPU's memory
# Each run of pytest has these options more; the next one begins where there is time left.
RUNS = {
    "usual": ("-m", "not large"),
    "large": ("--all", "-m", "large"),
    "exhaustive": ("--all", "-m", "exhaustive and not large"),
}
TESTS = ("tests",)
# This way of pytest-xdist goes on when a worker has ended; the one of tests/scheduling.py need not.
TOGETHER = ("--dist", "worksteal")
FAILURES = ("failed", "error")
NO_TESTS = 5  # pytest's exit code
SANITIZERS = ("memcheck", "racecheck", "initcheck")
MARGIN = 10.0  # seconds that a sanitizer takes after the last case
PRINTED = ("--print-limit", "1000")  # errors: the first hundred may all be torch's
# The option by which a tool looks at our kernels alone; older versions call it otherwise.
ONLY_OURS = (
    ("--kernel-name", "kernel_substring=weighted_bce"),
    ("--kernel-regex", "kns=weighted_bce"),
)
SILENCE = "nothing"
# Such a line says where in a kernel of ours something is wrong.
OURS = re.compile(r"^=+ .*\bat (?:void )?weighted_bce::", re.MULTILINE)


def smoke(setup: Setup) -> str:
    given = ("--until", time.time() + setup.seconds - END, "--out", setup.folder / GROUPS)
    setup.run(Command("smoke", setup.module("tools.gpu.smoke", *SMOKE, *given)))
    rows = _groups(setup.folder)
    remarks = [f"{row['group']} {row['remark']}" for row in rows if row["remark"]]
    return "; ".join([f"{sum(row['cases'] for row in rows)} cases", *remarks])


def _groups(folder: Path) -> list[Row]:
    return lines_of(folder / GROUPS)


def tests(setup: Setup) -> str:
    if not setup.machine.has("pytest"):
        raise Absent("pytest is not installed")
    count = min(WORKERS, max(1, cores() // 2))
    together = ["-n", str(count), *TOGETHER] if setup.machine.has("xdist") and count > 1 else []
    for name, chosen in RUNS.items():
        arguments = [
            *(sys.executable, "-m", "pytest", "-p", "tools.gpu.outcomes"),
            *("--only-device", setup.machine.device),
            *("--outcomes", str(setup.folder / f"{name}.jsonl")),
            *("-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"),
            *(together if name != "large" else []),
            *(*chosen, *TESTS),
        ]
        command = Command(
            name,
            arguments,
            environment={"OMP_NUM_THREADS": str(max(1, cores() // count))},
            succeeds=(0,) if name == "usual" else (0, NO_TESTS),
            may_be_late=name == "exhaustive",
        )
        setup.run(command)
        if not any(row["outcome"] == "passed" for row in _outcomes(setup.folder)):
            raise Failed("; ".join(filter(None, ("no test passed", command.why))))
    return "" if together else "one after the other, without pytest-xdist"


def _outcomes(folder: Path) -> list[Row]:
    """What became of each test; of one that has failed, how."""
    last: dict[tuple[str, str], Row] = {}
    for name in RUNS:
        for row in lines_of(folder / f"{name}.jsonl"):
            known = last.get((name, row["test"]), {})
            if known.get("outcome") not in FAILURES:
                last[name, row["test"]] = {"run": name, **row}
    return list(last.values())


def sanitize(setup: Setup) -> str:
    tool = setup.machine.tool("compute-sanitizer")
    if tool is None:
        raise Absent("compute-sanitizer is not installed")
    seconds = max(setup.seconds - MARGIN, setup.seconds / 2)
    program = setup.module("tools.gpu.smoke", "--small", "--until", time.time() + seconds)
    # torch's own allocator would hide that an access is out of bounds.
    direct = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    known = output(tool, "--help")
    ours: tuple[str, ...] = next((option for option in ONLY_OURS if option[0] in known), ())
    commands = []
    for name in SANITIZERS:
        limits = ours if name != "initcheck" else ()  # it has to see what torch's kernels write
        arguments = [tool, "--tool", name, *PRINTED, *limits, *program]
        commands.append(Command(name, arguments, environment=direct))
    setup.run(*commands)
    rows = _errors(setup.folder)
    text = "{tool} {cases}, {in our kernels} errors in our kernels"
    counts = [text.format_map({**row, "cases": row["cases"] or SILENCE}) for row in rows]
    if any(row["in our kernels"] or row["says"] == SILENCE for row in rows):
        raise Failed("; ".join([*(one.why for one in commands if one.why), *counts]))
    return "; ".join(counts)


def _errors(folder: Path) -> list[Row]:
    """What each tool says last, how many errors are in our kernels, and the cases it has seen."""
    rows = []
    for name in SANITIZERS:
        text = text_of(folder / f"{name}.txt")
        said = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .+)$", text, re.MULTILINE)
        cases = re.findall(r"^(\d+ of \d+ cases failed, [^;\n]+)", text, re.MULTILINE)
        row = {"tool": name, "says": (said or [SILENCE])[-1], "cases": "".join(cases)}
        rows.append({**row, "in our kernels": len(OURS.findall(text))})
    return rows


SMOKE_PART = Part("smoke", 30, smoke, _groups)
TESTS_PART = Part("tests", 90, tests, _outcomes)
SANITIZE = Part("sanitize", 35, sanitize, _errors)
