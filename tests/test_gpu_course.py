"""`make gpu` where a CPU passes for the GPU: parts that fail, hang, are interrupted."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.gpu import __main__, build, correctness, counters, course, figures, processes, report
from tools.gpu.machine import ROOT, Machine, NoGpu
from tools.gpu.part import Part, Setup, Steps

from .pretended_gpu import LASTS, Pretended, part

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="no sources")

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
Answer = tuple[int, dict[str, Any], list[str]]
Course = Callable[..., Answer]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Course:
    """Runs a course; gives its exit code, results.json and the lines that it prints."""

    def run(*arguments: str, parts: tuple[Part, ...] = (), **how: Any) -> Answer:
        if parts:
            monkeypatch.setattr(course, "PARTS", parts)
        out = tmp_path / "out"
        given = ["--out", str(out), *arguments]
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        try:
            code = __main__.main(given, how.get("machine") or Pretended(tmp_path))
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
        results = json.loads((out / "results.json").read_text())
        return code, results, capsys.readouterr().out.splitlines()

    return run


def outcomes(results: dict[str, Any]) -> dict[str, str]:
    return {row["part"]: row["outcome"] for row in results["parts"]}


def exists(process: int) -> bool:
    """Whether it runs; one that has ended may still wait for its parent."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real parts, with little to do, and a build that only leaves a file."""
    package = tmp_path / "package"
    package.mkdir()
    script = f"open({str(build.module(package))!r}, 'w').write('built')"
    command = processes.Command("build", [sys.executable, "-c", script])
    monkeypatch.setattr(build, "PACKAGE", package)
    monkeypatch.setattr(build, "_build", lambda setup: command)
    monkeypatch.setattr(correctness, "SMOKE", ("--small", "--seconds", 0.5))
    monkeypatch.setattr(correctness, "RUNS", {"usual": ("-k", "large_sum")})
    monkeypatch.setattr(correctness, "TESTS", ("tests/test_formula.py",))
    monkeypatch.setattr(correctness, "WORKERS", 1)
    monkeypatch.setattr(correctness, "SANITIZERS", ("memcheck",))
    monkeypatch.setattr(counters, "ELEMENTS", 2**14)
    given = "--shapes 8x64,4x6x40 --rounds 2 --passes step --against bce,inplace,unfused"
    monkeypatch.setattr(figures, "RUNS", (("main", 1.0, given),))


def test_the_whole_course(small: None, run: Course, tmp_path: Path) -> None:
    for package in figures.NEEDED:
        pytest.importorskip(package)
    code, results, printed = run("--commit", "abc123")
    assert set(outcomes(results).values()) == {"ok"}, results
    assert tuple(outcomes(results)) == course.NAMES
    assert code == 0
    out = tmp_path / "out"
    library = build.module(out).name
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [library, "logs.tar.gz", "report.md", "results.json"]
    )
    assert results["facts"]["commit"] == "abc123"
    assert results["facts"]["library"] == "built here"
    assert results["facts"]["driver"] == "580.1"
    assert results["facts"]["nvcc"] == "13.0.r13.0"
    assert results["clocks"][0]["SM MHz"] == "1980"
    of = {row["part"]: row["results"] for row in results["parts"]}
    assert sum(row["cases"] for row in of["smoke"]) > 0
    assert {row["baseline"] for row in of["figures"]} >= {"copy", "ours", "bce", "products"}
    assert all(len(row["rounds"]) == 2 for row in of["figures"])
    assert {row["outcome"] for row in of["tests"]} == {"passed"}
    assert all("cpu" in row["test"] for row in of["tests"])
    assert of["sanitize"][0]["says"] == "ERROR SUMMARY: 0 errors"
    assert of["sanitize"][0]["cases"].startswith("0 of ")
    assert [row["registers"] for row in of["profile"]] == [80] * 4
    text = (out / "report.md").read_text()
    expected = counters.expected(counters.KERNELS[0])
    profile = (f"61% ({expected['issue']})", f"80 ({expected['registers']})")
    for words in ("| 2^9 float32 bool |", "### Linear", "| memcheck |", *profile):
        assert words in text, words
    with tarfile.open(out / "logs.tar.gz") as archive:
        names = archive.getnames()
    for name in ("build/kernels.txt", "smoke/smoke.txt", "figures/main/results.csv", "clocks.txt"):
        assert f"logs/{name}" in names
    assert any(name.endswith(".png") for name in names)
    summary = printed[printed.index(next(line for line in printed if "abc123" in line)) :]
    assert len(summary) <= 40
    assert summary[-1] == "exit code 0"
    assert any("2^9 float32 bool: " in line for line in summary)


def test_parts_that_fail_and_hang(
    run: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is reported, all that it started is gone, and the next one runs."""
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    monkeypatch.setattr(course, "RESERVE", 0.0)
    monkeypatch.setattr(course, "LEAST", 0.0)

    def broken(setup: Setup) -> Steps:
        yield []
        raise KeyError("broken")

    parts = (
        part("smoke", "print('much'); print('the last line'); raise SystemExit(3)", "print(1)"),
        Part("figures", 0.1, broken),
        part("tests", STUBBORN),
        part("profile", "print(1)"),
    )
    code, results, printed = run("--minutes", "0.2", parts=parts)
    assert outcomes(results) == {
        **{"smoke": "failed", "figures": "failed"},
        **{"tests": "late", "profile": "ok"},
    }
    why = [row["why"] for row in results["parts"]]
    assert why[0] == "smoke0: exit code 3: the last line; that was all"
    assert why[1] == "KeyError: 'broken'"
    assert why[2].startswith("tests0: ended after ")
    assert [len(row["commands"]) for row in results["parts"]] == [2, 0, 1, 1]
    for process in map(int, why[2].split(": ")[-1].split()):
        assert not exists(process)
    assert code == 1
    assert printed[-1] == "exit code 1"
    assert any("the last line" in line for line in printed[-8:])


def test_time_that_is_left_goes_to_later_parts(
    run: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "RESERVE", 10.0)
    parts = tuple(part(name, "print(1)") for name in ("smoke", "tests", "profile"))
    _, results, _ = run("--minutes", "1", parts=parts)
    limits = [row["limit"] for row in results["parts"]]
    assert limits == pytest.approx([50 / 3, 50 / 2, 50], abs=2)


def test_a_command_with_a_limit_of_its_own(run: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part goes on after it."""
    monkeypatch.setattr(course, "RESERVE", 0.0)
    parts = (part("figures", LASTS, "print(1)", share=0.05),)
    code, results, _ = run("--minutes", "0.2", parts=parts)
    (row,) = results["parts"]
    assert (code, row["outcome"]) == (1, "failed")
    assert [command["code"] for command in row["commands"]] == [None, 0]
    assert row["why"].startswith("figures0: ended after ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt(number: int, tmp_path: Path) -> None:
    """What ran is written down, the summary comes last, nothing is left behind."""
    code = "import sys; from pathlib import Path; from tests.pretended_gpu import *\n"
    code += "interrupted_course(Path(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    logs: list[Path] = []
    deadline = time.monotonic() + 60
    while not (logs and "begun" in logs[0].read_text()) and time.monotonic() < deadline:
        logs = list(tmp_path.glob("weighted_bce-gpu-*/tests/tests0.txt"))
        time.sleep(0.05)
    for _ in range(3):  # as make does, which passes its own on
        process.send_signal(number)
    printed = process.communicate(timeout=30)[0].splitlines()
    assert process.returncode == 1
    assert printed[-1] == "exit code 1"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert outcomes(results) == {"smoke": "ok", "tests": "interrupted", "profile": "not run"}
    assert "interrupted" in (tmp_path / "out" / "report.md").read_text()
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        assert "logs/tests/tests0.txt" in archive.getnames()
    assert not list(tmp_path.glob("weighted_bce-gpu-*"))


def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Without(Pretended):
        def probe(self) -> dict[str, Any]:
            raise NoGpu("torch 2.11.0 finds no GPU")

    out = tmp_path / "out"
    assert __main__.main(["--out", str(out)], Without(tmp_path)) == 2
    assert capsys.readouterr().err == "python -m tools.gpu: no GPU: torch 2.11.0 finds no GPU\n"
    assert not out.exists()


def test_this_machine_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(NoGpu, match=f"^torch {torch.__version__.split('+')[0]}.* finds no GPU$"):
        Machine().probe()


def test_chosen_parts(run: Course, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("smoke", "tests", "profile")
    parts = tuple(part(name, "print(1)") for name in names)
    _, results, _ = run("--parts", "profile,smoke", parts=parts)
    assert outcomes(results) == {"smoke": "ok", "profile": "ok"}
    with pytest.raises(SystemExit):
        run("--parts", "smoke,test")
    assert "must be of build, smoke, " in capsys.readouterr().err


def test_rows_that_cannot_be_read_cost_no_other_part(run: Course, tmp_path: Path) -> None:
    def unreadable(folder: Path) -> list[dict[str, Any]]:
        raise ValueError("half a line")

    parts = (
        part("figures", "print(1)")._replace(results=lambda folder: [{"baseline": "ours"}]),
        part("tests", "print(1)")._replace(results=unreadable),
        part("profile", "print(1)"),
    )
    code, results, printed = run(parts=parts)
    assert (code, outcomes(results)) == (0, dict.fromkeys(("figures", "tests", "profile"), "ok"))
    assert results["parts"][1]["unread"] == "ValueError: half a line"
    assert any("unreadable: KeyError" in line for line in printed)
    assert "unreadable: KeyError" in (tmp_path / "out" / "report.md").read_text()


def test_rows_that_could_not_be_read_at_first(run: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TICK", 0.0)
    looks: list[Path] = []

    def results_of(folder: Path) -> list[dict[str, Any]]:
        looks.append(folder)
        if len(looks) == 1:
            raise ValueError("half a line")
        return [{"baseline": "ours"}]

    one = part("tests", "import time; time.sleep(0.3)")._replace(results=results_of)
    _, results, _ = run(parts=(one,))
    assert len(looks) > 1
    assert "unread" not in results["parts"][0]


def test_a_summary_fits_on_a_screen() -> None:
    row = {"run": "usual", "test": "t" * 300, "outcome": "failed", "text": "E  wrong\n" * 50}
    part = {"part": "tests", "outcome": "failed", "why": "x" * 500, "seconds": 1.0, "limit": 2.0}
    facts = {"commit": "c", "driver": "d"}
    results = {"facts": facts, "clocks": [], "parts": [{**part, "results": [row] * 60}] * 9}
    lines = report.summary(results, Path("out"), 1)
    assert len(lines) == 40
    assert max(map(len, lines)) <= 160
