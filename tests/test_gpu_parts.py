"""The parts of `make gpu`, each by itself: what it runs, and what it says where something fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.gpu import build, correctness, counters, figures, machine, tables
from tools.gpu.machine import ROOT
from tools.gpu.part import Absent, Failed, Part, Setup

from .pretended_gpu import PROGRAMS, Pretended, counted, driven, setup

__all__ = ["setup"]  # a fixture
pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="no sources")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "any-name.so"
    path.write_text("built elsewhere")
    return path


def test_the_build_is_for_this_gpu_alone(setup: Setup) -> None:
    (compile, trial), remark = driven(build.PART, setup)
    assert compile.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert compile.environment["MAX_JOBS"] == str(machine.cores())
    assert compile.arguments[1:] == [str(ROOT / "setup.py"), "build_ext", "--inplace"]
    assert trial.arguments[1:5] == ["-m", "tools.gpu.launches", "--device", "cpu"]
    assert remark == "built for 9.0"
    assert build.module(setup.out).read_text() == "in place"


def test_a_library_that_runs_is_not_built(setup: Setup, library: Path) -> None:
    commands, remark = driven(build.PART, setup._replace(library=library))
    assert [command.name for command in commands] == ["library"]
    assert remark == f"{library} runs here"
    assert setup.facts["library"] == str(library)
    for folder in (build.PACKAGE, setup.out):
        assert [file.read_text() for file in folder.iterdir()] == ["built elsewhere"]


def test_a_library_that_does_not_run(setup: Setup, library: Path) -> None:
    """The one that was there comes back, and is built anew where that is allowed."""
    given = setup._replace(library=library)
    commands, remark = driven(build.PART, given, 1)
    assert [command.name for command in commands] == ["library", "build", "kernels"]
    assert remark == f"{library} does not run here; built for 9.0"
    assert setup.facts["library"] == "built here"
    assert [file.read_text() for file in build.PACKAGE.iterdir()] == ["in place"]
    with pytest.raises(Failed, match="no kernel runs: kernels: exit code 1"):
        driven(build.PART, given._replace(builds=False), 1, 1)
    commands, remark = driven(build.PART, setup._replace(library=setup.out / "nothing.so"))
    assert [command.name for command in commands] == ["build", "kernels"]
    assert remark.endswith("nothing.so is not there; built for 9.0")


def test_a_library_that_is_alone(setup: Setup, library: Path) -> None:
    """It is gone again where it does not run, also where the course ends meanwhile."""
    target = build.module(build.PACKAGE)
    target.unlink()

    def interrupt(command: Any) -> None:
        assert target.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.PART.steps(setup._replace(library=library, run=interrupt))
    assert not list(build.PACKAGE.iterdir())


def test_runs_of_the_tests(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are large are all in one run; no tests are a success only of later ones."""
    pytest.importorskip("xdist")
    monkeypatch.setattr(correctness, "cores", lambda: 8)
    (setup.folder / "usual.jsonl").write_text('{"test": "a", "outcome": "passed"}')
    commands, _ = driven(correctness.TESTS_PART, setup)
    usual, large, exhaustive = (" ".join(command.arguments) for command in commands)
    for arguments in (usual, exhaustive):
        assert "-n 4 --dist worksteal" in arguments
    assert " -n " not in large
    assert "--all" not in usual
    assert "--all -m large" in large
    assert "--all -m exhaustive and not large" in exhaustive
    assert [command.succeeds for command in commands] == [(0,), (0, 5), (0, 5)]
    assert [command.may_be_late for command in commands] == [False, False, True]
    setup.machine.has = lambda package: package == "pytest"  # type: ignore[method-assign]
    commands, remark = driven(correctness.TESTS_PART, setup)
    assert remark == "one after the other, without pytest-xdist"
    assert not any("-n" in command.arguments for command in commands)


ENDED = "0 of 9 cases failed, 0 of 9 groups cut short\n"
CLEAN = f"{ENDED}========= ERROR SUMMARY: 0 errors\n"
MEMCHECK = f"""========= Invalid __global__ read of size 4 bytes
=========     at void weighted_bce::cuda::on_vectors<float, int>(weighted_bce::Problem)+0x90
=========     by thread (0,0,0) in block (0,0,0)
=========         Host Frame: weighted_bce::cuda::launch(int) [0x1] in _C.so
{ENDED}========= ERROR SUMMARY: 1 error
"""
RACECHECK = f"""
{ENDED}========= Error: Race reported between Write access at void weighted_bce::on()+0x1
=========     and Read access at void weighted_bce::on()+0x2 [16 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
INITCHECK = f"""========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::cuda::cub::DeviceScanKernel<weighted_bce::X>()+0x90
{ENDED}========= ERROR SUMMARY: 1 error
"""


@pytest.mark.parametrize("option", ["--kernel-name", "--kernel-regex", ""])
def test_sanitizers(option: str, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them look at our kernels alone, where they can; torch's own errors are not ours."""
    monkeypatch.setitem(PROGRAMS, "compute-sanitizer", f"echo {option} arg\n")
    Pretended(setup.machine.folder.parent)  # type: ignore[attr-defined]
    logs = dict.fromkeys(correctness.SANITIZERS, CLEAN) | {"initcheck": INITCHECK}
    for name, log in logs.items():
        (setup.folder / f"{name}.txt").write_text(log)
    commands, remark = driven(correctness.SANITIZE, setup)
    assert [command.name for command in commands] == ["memcheck", "racecheck", "initcheck"]
    assert all("--small" in command.arguments for command in commands)
    ours = [bool(option) and option in command.arguments for command in commands]
    assert ours == [bool(option), bool(option), False]
    assert remark.endswith(f"initcheck {ENDED.strip()}, 0 errors in our kernels")


BUILD = "nvcc -Werror\na.cu(3): error: no such name\na.cu(4): error: nor this\nninja: stopped"
SKIPPED = json.dumps({"test": "a", "outcome": "skipped"})
SANE = {f"{name}.txt": CLEAN for name in correctness.SANITIZERS}
FIRST = r"^a\.cu\(3\): error: no such name; build: exit code 1: ninja: stopped$"
# A part, the files that it leaves, the exit codes of its commands, and what it says.
FAILURES = [
    (build.PART, {"build.txt": BUILD}, (1,), FIRST),
    (
        build.PART,
        {"kernels.txt": "lost"},
        (0, -9),
        "^no kernel runs: kernels: ended by signal 9: l",
    ),
    (correctness.TESTS_PART, {"usual.jsonl": SKIPPED}, (0,), "^no test passed$"),
    (correctness.TESTS_PART, {}, (3,), "^no test passed; usual: exit code 3: no output$"),
    (correctness.SANITIZE, {**SANE, "memcheck.txt": MEMCHECK}, (), "memcheck .*, 1 errors in our"),
    (correctness.SANITIZE, {**SANE, "racecheck.txt": RACECHECK}, (), "racecheck .*, 2 errors in"),
    (correctness.SANITIZE, {**SANE, "memcheck.txt": ENDED}, (), "memcheck 0 of 9"),
    (
        correctness.SANITIZE,
        {**SANE, "memcheck.txt": ""},
        (1,),
        "^memcheck: exit code 1: no output;",
    ),
    (counters.PART, {"ncu.txt": counted(2)}, (), "^2 of 4 kernels were seen$"),
]


@pytest.mark.parametrize(("part", "files", "codes", "says"), FAILURES)
def test_what_fails(
    part: Part, files: dict[str, str], codes: tuple[int, ...], says: str, setup: Setup
) -> None:
    for name, text in files.items():
        (setup.folder / name).write_text(text)
    with pytest.raises(Failed, match=says):
        driven(part, setup, *codes)


@pytest.mark.parametrize(
    ("part", "error", "says"),
    [
        (correctness.TESTS_PART, Absent, "pytest is not installed"),
        (correctness.SANITIZE, Absent, "compute-sanitizer is not installed"),
        (counters.PART, Absent, "Nsight Compute is not installed"),
        (figures.PART, Failed, "needs matplotlib and psutil and rich"),
    ],
)
def test_tools_that_are_not_there(
    part: Part, error: type[Exception], says: str, setup: Setup, tmp_path: Path
) -> None:
    bare = Pretended(tmp_path / "bare", ())
    bare.has = lambda package: False  # type: ignore[method-assign]
    with pytest.raises(error, match=says):
        driven(part, setup._replace(machine=bare))


def test_the_benchmark_takes_these_arguments(setup: Setup) -> None:
    pytest.importorskip("psutil")
    from bench.__main__ import parser

    setup.machine.has = lambda package: True  # type: ignore[method-assign]
    commands, _ = driven(figures.PART, setup)
    assert [command.name for command in commands if not command.may_be_late] == ["main"]
    assert len(commands) == len(figures.RUNS)
    for command in commands:
        options = parser().parse_args(command.arguments[3:])
        assert options.shapes
        assert options.out == setup.folder / command.name


def test_counters_and_what_was_expected(setup: Setup) -> None:
    (setup.folder / "ncu.txt").write_text(counted(4))
    commands, remark = driven(counters.PART, setup)
    assert "sm__inst_issued.avg.pct_of_peak_sustained_active" in " ".join(commands[0].arguments)
    assert not remark
    rows = counters.PART.results(setup.folder)
    assert [row["kernel"] for row in rows] == list(counters.KERNELS)
    for row in rows:
        assert row["name"] == "on_vectors"
        assert row["seconds"] == pytest.approx(1.25e-6)
        assert row["DRAM bytes/s"] == 2.9e12
        assert row["top stall"] == "long_scoreboard"
        assert row["DRAM %"] is None
        assert {*row["expected"]} == {*counters.WANTED}
    assert counters._number("%", "n/a") is None


def test_a_line_for_each_setting() -> None:
    """A number of elements as a power of two, ours first, and nothing of what has no time."""
    of = {"rows": 2**14, "labels": 2**14, "features": 0, "dtype": "bfloat16", "target": "bool"}
    of |= {"density": 0.005, "pass": "step", "graphs": False, "run": "main", "times_ours": 1.0}
    times = {"copy": (4e-4, 1.0), "ours": (5e-4, 0.95), "inplace": (6e-4, 0.7), "bce": (5e-3, 0.1)}
    rows = [
        {**of, "baseline": key, "seconds": seconds, "share_of_copy": share}
        for key, (seconds, share) in times.items()
    ]
    rows[-1]["times_ours"] = 10.04
    rows.append({**rows[-1], "baseline": "masked", "seconds": None})
    rows.append({**rows[-1], "run": "compile", "baseline": "compile", "seconds": 1e-3})
    small = [{**row, "rows": 2**6, "run": "small"} for row in rows[:2]]
    assert tables.lines([*small, *rows]) == [
        "2^28 bfloat16 bool: 500.0 µs (ours 95%, inplace 70% of a copy's bandwidth); "
        "bce 10.0x, compile 10.0x",
        "2^20 bfloat16 bool: 500.0 µs (ours 95% of a copy's bandwidth); ",
    ]


def test_the_commit(tmp_path: Path) -> None:
    assert (machine.of_git(tmp_path), machine.of_file(tmp_path)) == ("", "")
    (tmp_path / "COMMIT").write_text("0123abc by someone\n")
    assert machine.of_file(tmp_path) == "0123abc"
    if (ROOT / ".git").exists():
        assert len(machine.of_git().rstrip("+")) == 10
