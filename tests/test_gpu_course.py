"""`make gpu` where a CPU passes for the GPU: parts that fail, hang, are interrupted."""

import json
import os
import re
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
from tools.gpu.machine import ROOT
from tools.gpu.part import Part, Setup

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
    """Runs a course; gives its exit code, its parts by name and the lines that it prints."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    monkeypatch.setattr(course, "RESERVE", 0.0)

    def run(*arguments: str, parts: tuple[Part, ...] = ()) -> Answer:
        if parts:
            monkeypatch.setattr(course, "PARTS", parts)
        given = ["--out", str(tmp_path / "out"), *arguments]
        code = __main__.main(given, Pretended(tmp_path))
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        rows = {row["part"]: row for row in results["parts"]}
        return code, rows, capsys.readouterr().out.splitlines()

    return run


def outcomes(rows: dict[str, Any]) -> dict[str, str]:
    return {name: row["outcome"] for name, row in rows.items()}


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
    code, rows, printed = run("--commit", "abc123")
    assert outcomes(rows) == dict.fromkeys(course.NAMES, "ok"), rows
    assert code == 0
    assert not any(row["unread"] for row in rows.values())
    out = tmp_path / "out"
    files = [build.module(out).name, "logs.tar.gz", "report.md", "results.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    results = json.loads((out / "results.json").read_text())
    assert (
        results["facts"].items()
        >= {
            **{"commit": "abc123", "library": "built here", "driver": "580.1"},
            "nvcc": "13.0.r13.0",
        }.items()
    )
    assert results["clocks"][0]["SM MHz"] == "1980"
    of = {name: row["results"] for name, row in rows.items()}
    assert sum(row["cases"] for row in of["smoke"]) > 0
    assert {row["baseline"] for row in of["figures"]} >= {"copy", "ours", "bce", "products"}
    assert all(len(row["rounds"]) == 2 for row in of["figures"])
    assert {row["outcome"] for row in of["tests"]} == {"passed"}
    assert all("cpu" in row["test"] for row in of["tests"])
    assert of["sanitize"][0]["says"] == "ERROR SUMMARY: 0 errors"
    assert of["sanitize"][0]["cases"].startswith("0 of ")
    assert [row["registers"] for row in of["profile"]] == [80] * 4
    expected = counters.expected(counters.KERNELS[0])
    profile = (f"issue 61% ({expected['issue']})", f"80 registers ({expected['registers']})")
    lines = ("2^9 float32 bool: ", "memcheck: ERROR SUMMARY: 0 errors", *profile)
    text = (out / "report.md").read_text()
    tables = ("| profile | ok |", "### main", "Training step: 4 x 6 x 40 float32 linear layer")
    for words in (*lines, *tables):
        assert words in text, words
    with tarfile.open(out / "logs.tar.gz") as archive:
        names = archive.getnames()
    for name in ("build/kernels.txt", "smoke/smoke.txt", "figures/main/results.csv", "clocks.txt"):
        assert f"logs/{name}" in names
    assert any(name.endswith(".png") for name in names)
    summary = printed[printed.index(next(line for line in printed if "abc123" in line)) :]
    assert len(summary) <= 40
    assert summary[-1] == "exit code 0"
    for words in lines:
        assert any(words in line for line in summary), words


def _broken(setup: Setup) -> str:
    raise KeyError("broken")


def _unreadable(folder: Path) -> list[dict[str, Any]]:
    raise ValueError("half a line")


def _unreadable_at_first(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "seen").exists():
        (folder / "seen").touch()
        raise ValueError("half a line")
    return []


FAILS = part("smoke", "print('much'); print('the last line'); raise SystemExit(3)", "print(1)")
NO_PROGRAM = Part(
    "figures", 1.0, lambda setup: setup.run(processes.Command("a", ["/no/such"])) or ""
)
HANGS = part("tests", STUBBORN, weight=0.25)
LEAVES_A_CHILD = part("tests", STUBBORN[: STUBBORN.rindex("time")] + "raise SystemExit(3)")
UNREADABLE = part("tests", "print(1)")._replace(results=_unreadable)
WRITES_LATE = part("tests", "import time; time.sleep(2)")._replace(results=_unreadable_at_first)
STRANGE = part("figures", "print(1)")._replace(results=lambda folder: [{"baseline": "ours"}])
# A part, how it ends, what is said of it, and the exit codes of its commands.
BROKEN = [
    (FAILS, "failed", "smoke0: exit code 3: the last line; that was all", [3, 0]),
    (Part("figures", 1.0, _broken), "failed", "KeyError: 'broken'", []),
    (NO_PROGRAM, "failed", "a: exit code 127: /no/such: No such file or directory", [127]),
    (HANGS, "late", "tests0: ended after ", [None]),
    (LEAVES_A_CHILD, "failed", "tests0: exit code 3: ", [3]),
    (part("tests", LASTS, "print(1)", share=0.05), "failed", "tests0: ended after ", [None, 0]),
    (part("tests", "import os; os.kill(os.getpid(), 11)"), "failed", "tests0: ended by sig", [-11]),
    (UNREADABLE, "ok", "that was all", [0]),
    (WRITES_LATE, "ok", "that was all", [0]),
    (STRANGE, "ok", "that was all", [0]),
]


@pytest.mark.parametrize(("broken", "outcome", "why", "codes"), BROKEN)
def test_a_part_that_is_broken(
    broken: Part,
    outcome: str,
    why: str,
    codes: list[int | None],
    run: Course,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It is reported, all that it started is gone, and the next one runs."""
    monkeypatch.setattr(course, "LEAST", 0.0)
    code, rows, printed = run("--minutes", "0.2", parts=(broken, part("profile", "print(1)")))
    assert outcomes(rows) == {broken.name: outcome, "profile": "ok"}
    row = rows[broken.name]
    assert row["why"].startswith(why)
    assert [command["code"] for command in row["commands"]] == codes
    assert code == int(outcome != "ok")
    assert printed[-1] == f"exit code {code}"
    if outcome != "ok":
        assert any(why in line for line in printed[-8:])
    if broken in (HANGS, LEAVES_A_CHILD):
        started = re.search(r": (\d+) (\d+)", row["why"])
        assert started
        assert not any(exists(int(process)) for process in started.groups())
    unreadable = "unreadable: KeyError" in (tmp_path / "out" / "report.md").read_text()
    assert unreadable == (broken is STRANGE)
    assert any("unreadable: KeyError" in line for line in printed) == unreadable
    assert row["unread"] == ("ValueError: half a line" if broken is UNREADABLE else "")


def test_time_that_is_left_goes_to_later_parts(
    run: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "RESERVE", 10.0)
    parts = tuple(part(name, "print(1)") for name in ("smoke", "tests", "profile"))
    _, rows, _ = run("--minutes", "1", parts=parts)
    limits = [row["limit"] for row in rows.values()]
    assert limits == pytest.approx([50 / 3, 50 / 2, 50], abs=2)
    _, rows, _ = run("--minutes", "0.2", parts=parts)
    assert {(row["outcome"], row["why"]) for row in rows.values()} == {("not run", "no time left")}


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
    rows = {row["part"]: row for row in results["parts"]}
    assert outcomes(rows) == {"smoke": "ok", "tests": "interrupted", "profile": "not run"}
    assert "interrupted" in (tmp_path / "out" / "report.md").read_text()
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        assert "logs/tests/tests0.txt" in archive.getnames()
    assert not list(tmp_path.glob("weighted_bce-gpu-*"))


def test_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is that of the process that looks for one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "out"
    assert __main__.main(["--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(r"python -m tools\.gpu: no GPU: torch 2\.\S+ finds no GPU\n", printed)
    assert not out.exists()


def test_chosen_parts(run: Course, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tuple(part(name, "print(1)") for name in ("smoke", "tests", "profile"))
    _, rows, _ = run("--parts", "profile,smoke", parts=parts)
    assert outcomes(rows) == {"smoke": "ok", "profile": "ok"}
    with pytest.raises(SystemExit):
        run("--parts", "smoke,test")
    assert "must be of build, smoke, " in capsys.readouterr().err


def test_a_summary_fits_on_a_screen() -> None:
    row = {"run": "usual", "test": "t" * 300, "outcome": "failed", "text": "E  wrong\n" * 50}
    part = {"part": "tests", "outcome": "failed", "why": "x" * 500, "seconds": 1.0, "limit": 2.0}
    facts = {"commit": "c", "driver": "d"}
    smoke = {"group": "g", "cases": 1, "failed": 0, "seconds": 1.0, "remark": ""}
    others = [{**part, "part": "smoke", "results": [smoke] * 60}] * 8
    tests = {**part, "results": [row] * 60}
    results = {"facts": facts, "clocks": [], "parts": [tests, *others]}
    lines = report.summary(results, Path("out"), 1)
    assert len(lines) == 40
    assert max(map(len, lines)) <= 160
    assert sum("tttt" in line for line in lines) == report.MOST_TESTS - 1
