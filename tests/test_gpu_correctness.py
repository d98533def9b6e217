"""The parts of `make gpu` that ask whether results are right, each by itself."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.gpu import cases, correctness, outcomes, smoke
from tools.gpu.machine import ROOT
from tools.gpu.part import Failed, Setup

from .pretended_gpu import PROGRAMS, Pretended, driven, pretended_setup

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="no sources")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return pretended_setup(tmp_path)


def _pretend_tests(setup: Setup, outcome: str) -> None:
    (setup.folder / "usual.jsonl").write_text(json.dumps({"test": "a", "outcome": outcome}))


def test_runs_of_the_tests(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are large are all in one run; no tests are a success only of later ones."""
    pytest.importorskip("xdist")
    monkeypatch.setattr(correctness, "cores", lambda: 8)
    _pretend_tests(setup, "passed")
    usual, large, exhaustive = driven(correctness.TESTS_PART, setup)[0]
    for command in (usual, exhaustive):
        assert "-n 4 --dist worksteal" in " ".join(command.arguments)
    assert "-n" not in large.arguments
    assert "--all" not in usual.arguments
    assert {*large.arguments, *exhaustive.arguments} >= {"--all", "exhaustive and not large"}
    assert "--all" in large.arguments
    assert [command.succeeds for command in (usual, large)] == [(0,), (0, 5)]
    _pretend_tests(setup, "skipped")
    with pytest.raises(Failed, match=r"^no test passed$"):
        driven(correctness.TESTS_PART, setup)


def test_sanitizers_run_side_by_side(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = next(correctness.SANITIZE.steps(setup))
    assert [command.name for command in commands] == ["memcheck", "racecheck", "initcheck"]
    assert all("--small" in command.arguments for command in commands)
    ours = ["--kernel-name" in command.arguments for command in commands]
    assert ours == [True, True, False]
    monkeypatch.setitem(PROGRAMS, "compute-sanitizer", "echo --kernel-regex arg\n")
    old = Pretended(setup.folder).tool("compute-sanitizer")
    assert correctness._only_ours(str(old)) == ["--kernel-regex", "kns=weighted_bce"]
    assert correctness._only_ours("/no/such/program") == []


ENDED = "0 of 9 cases failed, 0 of 9 groups cut short\n"
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


def test_errors_in_our_kernels(setup: Setup) -> None:
    """Torch's own are none of ours; a tool that says nothing has proved nothing."""
    clean = f"{ENDED}========= ERROR SUMMARY: 0 errors\n"
    for name in correctness.SANITIZERS:
        (setup.folder / f"{name}.txt").write_text(clean)
    (setup.folder / "initcheck.txt").write_text(INITCHECK)
    commands, remark = driven(correctness.SANITIZE, setup)
    assert len(commands) == 3
    assert remark.endswith(f"initcheck {ENDED.strip()}, 0 errors in our kernels")
    for name, log, count in (("memcheck", MEMCHECK, 1), ("racecheck", RACECHECK, 2)):
        (setup.folder / f"{name}.txt").write_text(log)
        row = next(row for row in correctness._errors(setup.folder) if row["tool"] == name)
        assert row["in our kernels"] == count
        assert "SUMMARY: 1 " in row["says"]
        with pytest.raises(Failed, match=f"{name} .*, {count} errors in our kernels"):
            driven(correctness.SANITIZE, setup)
        (setup.folder / f"{name}.txt").write_text(ENDED)
        with pytest.raises(Failed, match=f"{name} 0 of 9"):
            driven(correctness.SANITIZE, setup)
        (setup.folder / f"{name}.txt").write_text(clean)


def test_cases_that_no_small_run_has() -> None:
    """The captured graph, where each replay is a step, and the far end of a tensor."""
    for check in (*cases._graphs("cpu"), *cases._inplace("cpu"), *cases._layers("cpu")):
        check()
    cases._far("cpu", 2**16 + 5)
    with pytest.raises(cases.Skip, match="GiB are needed"):
        cases._far("cpu", 2**31 + 5)


def test_few_cases_see_each_grad_output() -> None:
    groups = [list(group.checks) for group in cases.groups("cpu", True, 0)]
    assert 300 < sum(map(len, groups)) < 500
    seen = {check.args[2] for check in groups[0]}  # type: ignore[attr-defined]
    assert seen == {*cases.GRAD_OUTPUTS}


def test_what_becomes_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise AssertionError("gradient: at 3 got 1\nand more")

    def skipped() -> None:
        raise cases.Skip("no memory")

    def checks() -> Iterator[cases.Check]:
        yield from (wrong, int, skipped, int)
        raise RuntimeError("no case can be made")

    row = ran(cases.Group("a group", checks()))
    assert (row["cases"], row["failed"]) == (3, 2)
    assert row["remark"] == "AssertionError: gradient: at 3 got 1"
    assert "no case can be made" in capsys.readouterr().err
    row = ran(cases.Group("late", checks()), 0.0)
    assert (row["cases"], row["remark"], row["cut"]) == (0, "ended early: no time left", True)


def ran(group: cases.Group, end: float = float("inf")) -> dict[str, Any]:
    tally = smoke.Tally(group)
    smoke.run([tally], end)
    return tally.row


def test_groups_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def group(name: str, count: int) -> cases.Group:
        return cases.Group(name, iter([partial(seen.append, name)] * count))

    tallies = [smoke.Tally(group("a", 1)), smoke.Tally(group("b", 3))]
    smoke.run(tallies, float("inf"))
    assert seen == ["a", "b", "b", "b"]

    monkeypatch.setattr(smoke, "is_lost", lambda: True)
    wrong = cases.Group("wrong", iter([partial(int, "x")]))
    tallies = [smoke.Tally(wrong), smoke.Tally(group("after", 1))]
    smoke.run(tallies, float("inf"))
    assert seen[-1] == "b"
    assert tallies[0].row["remark"].endswith("; the GPU takes no more work")


@pytest.mark.parametrize(
    ("options", "seconds", "code"),
    [((), 0.1, 1), (("--small",), 0.1, 0), (("--small",), 0.0, 1), ((), 60.0, 0)],
)
def test_a_smoke_test_that_is_cut_short(
    options: tuple[str, ...], seconds: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small cases may be, but not all of them."""
    group = cases.Group("some", iter([partial(time.sleep, 0.2), int]))
    monkeypatch.setattr(smoke, "groups", lambda *arguments: iter([group]))
    until = str(time.time() + seconds)
    monkeypatch.setattr(sys, "argv", ["smoke", "--device", "cpu", "--until", until, *options])
    assert smoke.main() == code


def test_what_only_a_smoke_test_has_comes_early() -> None:
    names = [group.name for group in cases.groups("cpu", False, 5)]
    assert names[1:3] == ["captured graph", "5 elements"]


def test_wrong_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.autograd.grad

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return tuple(grad * 1.05 for grad in right(*arguments))

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    for group in cases.groups("cpu", True, 0):
        assert ran(group)["failed"] > 0, group.name


TESTS = """
import pytest, torch

lost = []

def synchronize():
    if lost:
        raise RuntimeError("CUDA: misaligned address")

torch.cuda.is_initialized, torch.cuda.synchronize = (lambda: True), synchronize

@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n", range(4))
def test_kernel(device, n):
    if n == 1:
        lost.append(n)  # what goes wrong on a device is known when it is waited for
    if n == 2:
        pytest.skip("why not")
    assert n != 3

@pytest.mark.skipif(False, reason="no CUDA device")
def test_marked(): pass

def test_compiled_for_cuda(): pass

def test_cuda_code_on_the_host(): pass
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_only_what_needs_the_device_runs(workers: int, tmp_path: Path) -> None:
    """A worker whose GPU is lost is replaced; one whose test fails and no test is."""
    if workers:
        pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    out = tmp_path / "usual.jsonl"
    ours = ("-p", "tools.gpu.outcomes", "--only-device", "cuda", "--outcomes", str(out))
    together = ("-n", str(workers), *correctness.TOGETHER) if workers else ()
    hooks = ("-p", "tests.conftest")  # one of them has a scheduler of its own
    command = [sys.executable, "-m", "pytest", "-v", *hooks, *ours, *together, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1, ran.stdout
    rows = correctness.TESTS_PART.results(tmp_path)
    became = {row["test"].split("::")[1]: row["outcome"] for row in rows}
    assert became == {
        "test_kernel[0-cuda]": "passed",
        "test_kernel[1-cuda]": "failed",
        "test_kernel[2-cuda]": "skipped",
        "test_kernel[3-cuda]": "failed",
        "test_marked": "passed" if workers else "failed",
        "test_compiled_for_cuda": "passed" if workers else "failed",
    }
    assert ran.stdout.count("node down") == (1 if workers else 0)
    failed = next(row for row in rows if "[1-cuda]" in row["test"])
    assert "CUDA: misaligned address" in failed["text"]
    last = json.loads(out.read_text().splitlines()[-1])["test"]
    assert workers or "test_compiled" in last  # those that compile come last


def test_many_failures_are_cut_shorter(tmp_path: Path) -> None:
    written = outcomes.Outcomes(tmp_path / "usual.jsonl")
    for number in range(outcomes.FIRST + 1):
        location = "f", 1, "t"
        how: Any = {"when": "call", "longrepr": "x" * 9999, "keywords": {}}
        report = pytest.TestReport(str(number), location, outcome="failed", **how)
        written.pytest_runtest_logreport(report)
    rows = correctness.TESTS_PART.results(tmp_path)
    assert [len(row["text"]) for row in rows[-2:]] == [outcomes.LONG, outcomes.SHORT]
