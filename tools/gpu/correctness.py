"""The parts that ask whether results are right: smoke test, the suite's tests, the sanitizer."""

import re
import sys
from pathlib import Path

from .machine import cores
from .part import Absent, Part, Row, Setup, Steps, lines_of
from .processes import Command

SMOKE_SECONDS = 20.0
FAR = 2**31 + 5  # elements
WORKERS = 8  # processes that share the GPU's memory
# What each run of pytest adds; the next one begins where there is time left.
RUNS = {
    "usual": ("-m", "not large"),
    "large": ("-m", "large"),
    "exhaustive": ("--all", "-m", "exhaustive and not large"),
}
TESTS = ("tests",)
FAILURES = ("failed", "error")
NO_TESTS = 5  # pytest's exit code
SANITIZERS = ("memcheck", "racecheck", "initcheck")
MARGIN = 15.0  # seconds that a sanitizer takes to begin and to end


def smoke(setup: Setup) -> Steps:
    seconds = min(SMOKE_SECONDS, setup.seconds)
    given = ("--seconds", seconds, "--far", FAR, "--out", setup.folder / "groups.jsonl")
    yield [Command("smoke", setup.module("tools.gpu.smoke", *given))]
    rows = _groups(setup.folder)
    remarks = [f"{row['group']} {row['remark']}" for row in rows if row["remark"]]
    return "; ".join([f"{sum(row['cases'] for row in rows)} cases", *remarks])


def _groups(folder: Path) -> list[Row]:
    return lines_of(folder / "groups.jsonl")


def tests(setup: Setup) -> Steps:
    if not setup.machine.has("pytest"):
        raise Absent("pytest is not installed")
    count = min(WORKERS, max(1, cores() // 2))
    together = ["-n", str(count)] if setup.machine.has("xdist") and count > 1 else []
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    for name, chosen in RUNS.items():
        arguments = [
            *(sys.executable, "-m", "pytest", "-p", "tools.gpu.outcomes"),
            *("--only-device", setup.machine.device),
            *("--outcomes", str(setup.folder / f"{name}.jsonl")),
            *("-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"),
            *(together if name != "large" else []),
            *(*chosen, *TESTS),
        ]
        yield [
            Command(
                name,
                arguments,
                environment=threads,
                succeeds=(0, NO_TESTS),
                may_be_late=name == "exhaustive",
            )
        ]
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


def sanitize(setup: Setup) -> Steps:
    tool = setup.machine.tool("compute-sanitizer")
    if tool is None:
        raise Absent("compute-sanitizer is not there")
    seconds = max(MARGIN, setup.seconds - MARGIN)
    program = setup.module("tools.gpu.smoke", "--small", "--seconds", seconds)
    # torch's own allocator would hide that an access is out of bounds.
    direct = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    yield [
        Command(name, [tool, "--tool", name, "--error-exitcode", "1", *program], environment=direct)
        for name in SANITIZERS
    ]
    return "; ".join(f"{row['tool']} {row['cases']}" for row in _errors(setup.folder))


def _errors(folder: Path) -> list[Row]:
    """What each tool says last, how many errors are in our kernels, and the cases it has seen."""
    rows = []
    for name in SANITIZERS:
        log = folder / f"{name}.txt"
        text = log.read_text(errors="replace") if log.exists() else ""
        said = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .+)$", text, re.MULTILINE)
        ours = re.findall(r"^=+ +at .*weighted_bce", text, re.MULTILINE)
        cases = re.findall(r"^(\d+ of \d+ cases failed)", text, re.MULTILINE)
        row = {"tool": name, "says": (said or ["nothing"])[-1], "in our kernels": len(ours)}
        rows.append({**row, "cases": "".join(cases)})
    return rows


SMOKE = Part("smoke", 30, smoke, _groups)
TESTS_PART = Part("tests", 90, tests, _outcomes)
SANITIZE = Part("sanitize", 35, sanitize, _errors)
