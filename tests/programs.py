"""C++ programs of tests/native: how they are compiled, with which sanitizers, and run."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
NATIVE = Path(__file__).parent / "native"
FLAGS = (
    # To compile with -O1 takes longer than it saves, to run without optimization as well.
    *("-std=c++17", "-Og", "-g1", "-fno-omit-frame-pointer", "-pthread", "-Wall", "-Wno-psabi"),
    "-Wno-unknown-pragmas",  # of nvcc
    # As in setup.py: what they permit is permitted here.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
MEMORY = "address,undefined"
THREADS = "thread"


def compiled(
    sanitizers: str, sources: list[Path], at: Path, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX", "c++").split()
    sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    include = f"-I{CSRC}"  # behind those of `flags`
    command = [*compiler, *FLAGS, *sanitize, *flags, include, *map(str, sources), "-o", str(at)]
    return subprocess.run(command, capture_output=True, text=True)


def run(program: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with these variables in its environment; one that hangs is an error."""
    # Leaks are looked for by ptrace, which containers often forbid.
    sanitizers = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [program, *arguments],
        env={**os.environ, **sanitizers, **variables},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )


@cache
def problem_of(sanitizers: str) -> str:
    """Returns why not even an empty program can be compiled and run so, or nothing if it can."""
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        return "no C++ compiler"
    with TemporaryDirectory() as folder:
        source, program = Path(folder, "empty.cpp"), Path(folder, "empty")
        source.write_text("int main() {}\n", encoding="utf-8")
        result = compiled(sanitizers, [source], program)
        if result.returncode == 0:
            result = run(program)
    if result.returncode == 0:
        return ""
    return f"no -fsanitize={sanitizers} here: {result.stderr.strip()[:200]}"


def skip_without(sanitizers: str) -> None:
    problem = problem_of(sanitizers)
    if problem:
        pytest.skip(problem)
