"""The parts of `make gpu`, each by itself."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools.gpu import build, cases, correctness, counters, figures, machine, smoke, tables
from tools.gpu.machine import ROOT
from tools.gpu.part import Absent, Failed, Part, Setup
from tools.gpu.processes import Command, Ran

from .pretended_gpu import FACTS, Pretended, counted

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="no sources")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    for name in ("part", "out"):
        (tmp_path / name).mkdir()
    gpu = Pretended(tmp_path)
    return Setup(gpu, dict(FACTS), tmp_path / "part", tmp_path / "out", None, True, 60.0)


def driven(part: Part, setup: Setup, *codes: int) -> tuple[list[Command], str]:
    """The commands of a part, of which each ends with the next of these exit codes, and what it
    returns."""
    steps, commands, left = part.steps(setup), [], list(codes)
    ran: list[Ran] | None = None
    while True:
        try:
            some = steps.send(ran)  # type: ignore[arg-type]
        except StopIteration as stop:
            return commands, str(stop.value)
        commands += some
        log = setup.folder / "log"
        ran = [Ran(command, left.pop(0) if left else 0, 1.0, log) for command in some]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    build.module(folder).write_text("in place")
    monkeypatch.setattr(build, "PACKAGE", folder)
    return folder


def test_the_build_is_for_this_gpu_alone(setup: Setup, package: Path) -> None:
    (compile, trial), remark = driven(build.PART, setup)
    assert compile.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert compile.environment["MAX_JOBS"] == str(machine.cores())
    assert compile.arguments[1:] == [str(ROOT / "setup.py"), "build_ext", "--inplace"]
    assert trial.arguments[1:5] == ["-m", "tools.gpu.launches", "--device", "cpu"]
    assert remark == "built for 9.0"
    assert build.module(setup.out).read_text() == "in place"


def test_a_library_that_runs_is_not_built(setup: Setup, package: Path, tmp_path: Path) -> None:
    library = tmp_path / "any-name.so"
    library.write_text("built earlier")
    commands, remark = driven(build.PART, setup._replace(library=library))
    assert [command.name for command in commands] == ["library"]
    assert remark == f"{library} runs here"
    assert build.module(package).read_text() == "built earlier"


def test_a_library_that_does_not_run(setup: Setup, package: Path, tmp_path: Path) -> None:
    """It is built anew, where that is allowed."""
    library = tmp_path / "any-name.so"
    library.write_text("of another Python")
    given = setup._replace(library=library)
    commands, remark = driven(build.PART, given, 1)
    assert [command.name for command in commands] == ["library", "build", "kernels"]
    assert remark == f"{library} does not run here; built for 9.0"
    with pytest.raises(Failed, match="no kernel runs: kernels: exit code 1"):
        driven(build.PART, given._replace(builds=False), 1, 1)
    commands, remark = driven(build.PART, setup._replace(library=tmp_path / "nothing.so"))
    assert [command.name for command in commands] == ["build", "kernels"]
    assert remark.endswith("nothing.so is not there; built for 9.0")


def test_a_build_that_fails(setup: Setup, package: Path) -> None:
    with pytest.raises(Failed, match="build: exit code 1"):
        driven(build.PART, setup, 1)
    with pytest.raises(Failed, match="no kernel runs"):
        driven(build.PART, setup, 0, 1)


def test_tools_that_are_not_there(setup: Setup, tmp_path: Path) -> None:
    without = setup._replace(machine=Pretended(tmp_path / "bare", ()))
    for part in (correctness.SANITIZE, counters.PART):
        with pytest.raises(Absent):
            driven(part, without)
    without.machine.has = lambda package: package == "pytest"  # type: ignore[method-assign]
    with pytest.raises(Failed, match="needs matplotlib and psutil and rich"):
        driven(figures.PART, without)
    commands, remark = driven(correctness.TESTS_PART, without)
    assert remark == "one after the other, without pytest-xdist"
    assert not any("-n" in command.arguments for command in commands)


def test_sanitizers_run_side_by_side(setup: Setup) -> None:
    commands = next(correctness.SANITIZE.steps(setup))
    assert [command.name for command in commands] == ["memcheck", "racecheck", "initcheck"]
    assert all("--small" in command.arguments for command in commands)


def test_the_benchmark_takes_these_arguments(setup: Setup) -> None:
    pytest.importorskip("psutil")
    from bench.__main__ import _parser

    commands, _ = driven(figures.PART, setup)
    assert len(commands) == len(figures.RUNS)
    for command in commands:
        options = _parser().parse_args(command.arguments[3:])
        assert options.shapes
        assert options.out == setup.folder / command.name


def test_counters_and_what_was_expected(setup: Setup) -> None:
    (setup.folder / "ncu.txt").write_text(counted(4))
    rows = counters.PART.results(setup.folder)
    assert [row["kernel"] for row in rows] == list(counters.KERNELS)
    for row in rows:
        assert row["seconds"] == pytest.approx(1.25e-6)
        assert row["DRAM bytes/s"] == 2.9e12
        assert row["top stall"] == "long_scoreboard"
        assert row["DRAM %"] is None
        assert set(row["expected"]) == {
            "issue",
            "MUFU rate",
            "first limit",
            "of a copy",
            "registers",
        }
    assert "2 of 4 kernels" in _remark_of_profile(setup, 2)


def _remark_of_profile(setup: Setup, launches: int) -> str:
    (setup.folder / "ncu.txt").write_text(counted(launches))
    return driven(counters.PART, setup)[1]


def test_units_of_counters() -> None:
    units = ["ms", "Tbyte/s", "%", "us"]
    counts = counters._counted(["a", "b", "c", "d"], units, ["2", "1.5", "3", "n/a"])
    assert counts == {"a": 0.002, "b": 1.5e12, "c": 3.0, "d": "n/a"}


def test_a_line_for_each_setting() -> None:
    """A number of elements as a power of two, ours first, and nothing of what has no time."""
    of = {"rows": 2**14, "labels": 2**14, "features": 0, "dtype": "bfloat16", "target": "bool"}
    of |= {"density": 0.005, "pass": "step", "graphs": False, "run": "main", "times_ours": 1.0}
    times = {"copy": (4e-4, 1.0), "ours": (5e-4, 0.95), "inplace": (6e-4, 0.7), "bce": (5e-3, 0.1)}
    rows = [
        {**of, "contender": key, "seconds": seconds, "share_of_copy": share}
        for key, (seconds, share) in times.items()
    ]
    rows[-1]["times_ours"] = 10.04
    rows.append({**rows[-1], "contender": "masked", "seconds": None})
    rows.append({**rows[-1], "run": "compile", "contender": "compile", "seconds": 1e-3})
    small = [{**row, "rows": 2**6, "run": "small"} for row in rows[:2]]
    assert tables.lines([*small, *rows]) == [
        "2^28 bfloat16 bool: 500.0 µs (ours 95%, inplace 70% of a copy's bandwidth); "
        "bce 10.0x, compile 10.0x",
        "2^20 bfloat16 bool: 500.0 µs (ours 95% of a copy's bandwidth); ",
    ]


def test_cases_that_no_small_run_has() -> None:
    """The captured graph, where each replay is a step, and the far end of a tensor."""
    for check in (*cases._graphs("cpu"), *cases._inplace("cpu"), *cases._layers("cpu")):
        check()
    cases._far("cpu", 2**16 + 5)
    with pytest.raises(cases.Skip, match="GiB are needed"):
        cases._far("cpu", 2**31 + 5)


def test_few_cases_see_each_upstream_gradient() -> None:
    groups = [list(group.checks) for group in cases.groups("cpu", True, 0)]
    assert 300 < sum(map(len, groups)) < 500
    seen = {check.args[2] for check in groups[0]}  # type: ignore[attr-defined]
    assert seen == {*cases.UPSTREAM}


def test_what_becomes_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise AssertionError("gradient: at 3 got 1\nand more")

    def skipped() -> None:
        raise cases.Skip("no memory")

    def checks() -> Iterator[cases.Check]:
        yield from (wrong, int, skipped, int)
        raise RuntimeError("no case can be made")

    row = smoke.run(cases.Group("a group", checks()), float("inf"))
    assert (row["cases"], row["failed"]) == (3, 2)
    assert row["remark"] == "AssertionError: gradient: at 3 got 1"
    assert "no case can be made" in capsys.readouterr().err
    row = smoke.run(cases.Group("late", checks()), 0.0)
    assert (row["cases"], row["remark"]) == (0, "ended early: no time left")


def test_wrong_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.Tensor.backward

    def wrong(tensor: torch.Tensor, gradient: torch.Tensor) -> None:
        right(tensor, gradient * 1.01)

    monkeypatch.setattr(torch.Tensor, "backward", wrong)
    for group in cases.groups("cpu", True, 0):
        if "gradient over" not in group.name and "linear" not in group.name:
            assert smoke.run(group, float("inf"))["failed"] > 0, group.name


TESTS = """
import pytest

@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n", range(4))
def test_kernel(device, n):
    if n == 1:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if n == 2:
        pytest.skip("why not")

@pytest.mark.skipif(False, reason="no CUDA device")
def test_marked(): pass

def test_compiled_for_cuda(): pass

def test_cuda_code_on_the_host(): pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_only_what_needs_the_device_runs(workers: int, tmp_path: Path) -> None:
    """A worker whose GPU is lost is replaced, and no test is."""
    if workers:
        pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    out = tmp_path / "usual.jsonl"
    ours = ("-p", "tools.gpu.outcomes", "--only-device", "cuda", "--outcomes", str(out))
    together = ("-n", str(workers)) if workers else ()
    command = [sys.executable, "-m", "pytest", "-q", *ours, *together, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout
    rows = correctness.TESTS_PART.results(tmp_path)
    outcomes = {row["test"].split("::")[1]: row["outcome"] for row in rows}
    assert outcomes == {
        "test_kernel[0-cuda]": "passed",
        "test_kernel[1-cuda]": "failed",
        "test_kernel[2-cuda]": "skipped",
        "test_kernel[3-cuda]": "passed",
        "test_marked": "passed",
        "test_compiled_for_cuda": "passed",
    }
    failed = next(row for row in rows if row["outcome"] == "failed")
    assert "illegal memory access" in failed["text"]
    last = json.loads(out.read_text().splitlines()[-1])["test"]
    assert workers or "test_compiled" in last  # those that compile come last


def test_the_commit(tmp_path: Path) -> None:
    assert (machine.of_git(tmp_path), machine.of_file(tmp_path)) == ("", "")
    (tmp_path / "COMMIT").write_text("0123abc by someone\n")
    assert machine.of_file(tmp_path) == "0123abc"
    if (ROOT / ".git").exists():
        assert len(machine.of_git().rstrip("+")) == 10
