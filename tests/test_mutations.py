"""The CUDA kernels with a fault in them, which the program that runs them must notice."""

import shutil
import signal
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from .cuda_faults import FAULTS
from .faults import Fault, with_faults
from .programs import CSRC, NATIVE, compiled, run, skip_without

_numbers = count(1)
NUMBERED = {
    header: {next(_numbers): fault for fault in faults} for header, faults in FAULTS.items()
}
ALL = {number: fault for faults in NUMBERED.values() for number, fault in faults.items()}
BUILDS = sorted({(fault.logits, fault.sanitizers) for fault in ALL.values()})
Run = Callable[[str, str, int], int]
SEEDS = ("1", "2", "3")  # tried in turn: what a fault needs may be rare


@pytest.fixture(scope="session")
def run_with_fault(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The program's exit status with a fault, by its number. It is compiled once for all of them.

    One worker of pytest-xdist runs all of these tests: see scheduling.py.
    """

    @cache
    def build(logits: str, sanitizers: str) -> tuple[Path, str]:
        skip_without(sanitizers)
        folder = tmp_path_factory.mktemp("mutations")
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("*.cpp", "*.cu", "*.py"))
        for header, faults in NUMBERED.items():
            path = csrc / "cuda" / header
            source = with_faults(path.read_text(encoding="utf-8"), faults)
            path.write_text(source, encoding="utf-8")
        flags = ("-g0", f"-DNATIVE_LOGITS={logits}", f"-I{csrc}", f"-I{NATIVE}")
        program = folder / "program"
        result = compiled(sanitizers, [NATIVE / "cuda_kernels.cpp"], program, flags)
        return program, result.stderr if result.returncode else ""

    def run_with(logits: str, sanitizers: str, fault: int) -> int:
        program, errors = build(logits, sanitizers)
        assert not errors, errors[:8000]
        statuses = (run(program, seed, NATIVE_FAULT=str(fault)).returncode for seed in SEEDS)
        return next(filter(None, statuses), 0)

    return run_with


ARGUMENTS = ("number", "logits", "sanitizers")
SOUND = [pytest.param(0, *build, id=" ".join(build).strip()) for build in BUILDS]
FAULTY = [
    pytest.param(number, fault.logits, fault.sanitizers, id=fault.name)
    for number, fault in ALL.items()
]


@pytest.mark.parametrize(ARGUMENTS, SOUND)
def test_the_program_passes_without_a_fault(
    number: int, logits: str, sanitizers: str, run_with_fault: Run
) -> None:
    assert run_with_fault(logits, sanitizers, number) == 0


@pytest.mark.parametrize(ARGUMENTS, FAULTY)
def test_a_fault_is_noticed(number: int, logits: str, sanitizers: str, run_with_fault: Run) -> None:
    status = run_with_fault(logits, sanitizers, number)
    assert status not in (0, -signal.SIGKILL), "it was not noticed, or the system had no memory"


def test_faults_within_one_another_stay_apart() -> None:
    faults = {
        1: Fault("outer", "a + b;", "c;"),
        2: Fault("inner", "b", "d"),
        3: Fault("same", "b", "e"),
    }
    source = with_faults("x = a + b;", faults)
    assert source.endswith(
        "x = { if (native::fault == 1) { c; } else { "
        "a + (native::fault == 2 ? (d) : ((native::fault == 3 ? (e) : (b)))); } }"
    )


CHANGED = "the kernels have changed"


@pytest.mark.parametrize(
    ("source", "faults", "problem"),
    [
        ("a - b", [Fault("reworded", "a + b", "c")], CHANGED),
        ("a + b, a + b", [Fault("twice", "a + b", "c")], CHANGED),
        ("a + a", [Fault("unclear", "a", "c", within="a + a")], "ambiguous"),
        ("a + b + c", [Fault("left", "a + b", ""), Fault("right", "b + c", "")], "cuts another"),
    ],
)
def test_faults_that_do_not_fit_are_refused(source: str, faults: list[Fault], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        with_faults(source, dict(enumerate(faults, 1)))
