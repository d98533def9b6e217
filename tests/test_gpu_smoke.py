"""The smoke test of `make gpu`, and its plugin of pytest that picks tests and keeps outcomes."""

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

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="no sources")


def ran(*groups: cases.Group, end: float = float("inf")) -> list[dict[str, Any]]:
    """The rows of these groups, of which a case runs in turn."""
    tallies = [smoke.Tally(group) for group in groups]
    smoke.run(tallies, end)
    return [tally.row for tally in tallies]


def test_cases_that_no_small_run_has() -> None:
    """The captured graph, where each replay is a step, and the far end of a tensor."""
    groups = {group.name: group.checks for group in cases.groups("cpu", False, 2**16 + 5)}
    for name in (
        "captured graph",
        f"{2**16 + 5} elements",
        "gradient over the logits",
        "linear layer",
    ):
        checks = [*groups[name]]
        assert checks
        for check in checks:
            check()
    assert [*groups][1:3] == ["captured graph", f"{2**16 + 5} elements"]  # they come early
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

    (row,) = ran(cases.Group("a group", checks()))
    assert (row["cases"], row["failed"]) == (3, 2)
    assert row["remark"] == "AssertionError: gradient: at 3 got 1"
    assert "no case can be made" in capsys.readouterr().err
    (row,) = ran(cases.Group("late", checks()), end=0.0)
    assert (row["cases"], row["remark"], row["cut"]) == (0, "ended early: no time left", True)


def test_groups_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end with the first failure that leaves the GPU unusable."""
    seen = []

    def group(name: str, count: int) -> cases.Group:
        return cases.Group(name, iter([partial(seen.append, name)] * count))

    ran(group("a", 1), group("b", 3))
    assert seen == ["a", "b", "b", "b"]
    monkeypatch.setattr(smoke, "is_lost", lambda: True)
    wrong = cases.Group("wrong", iter([partial(int, "x")]))
    row, _ = ran(wrong, group("after", 1))
    assert seen[-1] == "b"
    assert row["remark"].endswith("; the GPU takes no more work")


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


def test_wrong_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.autograd.grad

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return tuple(grad * 1.05 for grad in right(*arguments))

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    for group in cases.groups("cpu", True, 0):
        assert ran(group)[0]["failed"] > 0, group.name


TESTS = """
import pytest, torch

lost = []

def synchronize():
    if lost:
        raise RuntimeError("x" * 5000 + "CUDA: misaligned address")

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
def test_by_its_reason(): pass

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
        "test_by_its_reason": "passed" if workers else "failed",
        "test_compiled_for_cuda": "passed" if workers else "failed",
    }
    assert ran.stdout.count("node down") == (1 if workers else 0)
    texts = {row["test"].split("::")[1]: row["text"] for row in rows}
    assert "CUDA: misaligned address" in texts["test_kernel[1-cuda]"]
    assert max(map(len, texts.values())) == outcomes.LONGEST
    assert texts["test_kernel[2-cuda]"] == "Skipped: why not"
    last = json.loads(out.read_text().splitlines()[-1])["test"]
    assert workers or "test_compiled" in last  # those that compile come last
