"""The parts of `make gpu`, each by itself."""

from pathlib import Path

import pytest

from tools.gpu import build, correctness, counters, figures, machine, tables
from tools.gpu.machine import ROOT
from tools.gpu.part import Absent, Failed, Setup

from .pretended_gpu import Pretended, counted, driven, pretended_setup

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="no sources")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return pretended_setup(tmp_path)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    build.module(folder).write_text("in place")
    monkeypatch.setattr(build, "PACKAGE", folder)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "any-name.so"
    path.write_text("built elsewhere")
    return path


def test_the_build_is_for_this_gpu_alone(setup: Setup, package: Path) -> None:
    (compile, trial), remark = driven(build.PART, setup)
    assert compile.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert compile.environment["MAX_JOBS"] == str(machine.cores())
    assert compile.arguments[1:] == [str(ROOT / "setup.py"), "build_ext", "--inplace"]
    assert trial.arguments[1:5] == ["-m", "tools.gpu.launches", "--device", "cpu"]
    assert remark == "built for 9.0"
    assert build.module(setup.out).read_text() == "in place"


def test_a_library_that_runs_is_not_built(setup: Setup, package: Path, library: Path) -> None:
    commands, remark = driven(build.PART, setup._replace(library=library))
    assert [command.name for command in commands] == ["library"]
    assert remark == f"{library} runs here"
    assert setup.facts["library"] == str(library)
    for folder in (package, setup.out):
        assert [file.read_text() for file in folder.iterdir()] == ["built elsewhere"]


def test_a_library_that_does_not_run(setup: Setup, package: Path, library: Path) -> None:
    """The one that was there comes back, and is built anew where that is allowed."""
    given = setup._replace(library=library)
    commands, remark = driven(build.PART, given, 1)
    assert [command.name for command in commands] == ["library", "build", "kernels"]
    assert remark == f"{library} does not run here; built for 9.0"
    assert setup.facts["library"] == "built here"
    assert [file.read_text() for file in package.iterdir()] == ["in place"]
    with pytest.raises(Failed, match="no kernel runs: kernels: exit code 1"):
        driven(build.PART, given._replace(builds=False), 1, 1)
    commands, remark = driven(build.PART, setup._replace(library=package / "nothing.so"))
    assert [command.name for command in commands] == ["build", "kernels"]
    assert remark.endswith("nothing.so is not there; built for 9.0")


def test_a_library_that_is_alone(setup: Setup, package: Path, library: Path) -> None:
    """It is gone again where it does not run, also where the course ends meanwhile."""
    build.module(package).unlink()
    steps = build.PART.steps(setup._replace(library=library))
    next(steps)
    assert build.module(package).exists()
    steps.close()
    assert not list(package.iterdir())


def test_a_build_that_fails(
    setup: Setup, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["nvcc -Werror", "a.cu(3): error: no such name", "a.cu(4): error: nor this", *"pq" * 9]
    (setup.folder / "log").write_text("\n".join([*lines, "ninja: stopped"]))
    with pytest.raises(Failed) as failure:
        driven(build.PART, setup, 1)
    first = "a.cu(3): error: no such name"
    assert str(failure.value) == f"{first}; build: exit code 1: ninja: stopped"
    assert capsys.readouterr().out.splitlines()[0] == "a.cu(4): error: nor this"
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
    (setup.folder / "usual.jsonl").write_text('{"test": "a", "outcome": "passed"}')
    commands, remark = driven(correctness.TESTS_PART, without)
    assert remark == "one after the other, without pytest-xdist"
    assert not any("-n" in command.arguments for command in commands)


def test_the_benchmark_takes_these_arguments(setup: Setup) -> None:
    pytest.importorskip("psutil")
    from bench.__main__ import parser

    commands, _ = driven(figures.PART, setup)
    assert [command.name for command in commands if not command.may_be_late] == ["main"]
    assert len(commands) == len(figures.RUNS)
    for command in commands:
        options = parser().parse_args(command.arguments[3:])
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
        assert {*row["expected"]} == {*counters.WANTED}
    commands, remark = driven(counters.PART, setup)
    assert "sm__inst_issued.avg.pct_of_peak_sustained_active" in " ".join(commands[0].arguments)
    assert not remark
    (setup.folder / "ncu.txt").write_text(counted(2))
    with pytest.raises(Failed, match="2 of 4 kernels"):
        driven(counters.PART, setup)


def test_units_of_counters() -> None:
    counts = counters._counted(["a", "b", "c"], ["ns", "byte/s", "%"], ["2,000", "1.5", "n/a"])
    assert counts == {"a": pytest.approx(2e-6), "b": 1.5, "c": "n/a"}


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
