"""The benchmark measures while other processes keep cores busy, and never leaves these behind."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("psutil")

import psutil

from bench import __main__, busy, report, timing
from bench.busy import keep_busy
from bench.names import OURS
from bench.records import load
from bench.runner import Runner
from tools.program import Refusal

from .bench_cases import LAYER, SETTING, group, measured

ROOT = Path(__file__).parents[1]
HEADS = ["mean", "95th percentile", "worst", "rounds"]


def busy_processes(parent: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return [
        process for process in children if not is_gone(process) and busy.LOOP in process.cmdline()
    ]


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may have asked yet how."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(fits: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not fits() and time.monotonic() < end:
        time.sleep(0.01)
    return fits()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_as_asked_for_use_a_processor(count: int) -> None:
    with keep_busy(count):
        processes = busy_processes()
        assert len(processes) == count
        for process in processes:
            used = process.cpu_times().user
            assert until(lambda process=process, used=used: process.cpu_times().user > used)
    assert busy_processes() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_they_end_with_the_block_that_fails(error: type[BaseException]) -> None:
    seen: list[psutil.Process] = []

    def fail() -> None:
        with keep_busy(2):
            seen.extend(busy_processes())
            raise error

    with pytest.raises(error):
        fail()
    assert len(seen) == 2
    assert all(map(is_gone, seen))


def test_they_end_when_the_benchmark_is_killed() -> None:
    program = "import time\nfrom bench.busy import keep_busy\nwith keep_busy(2): time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as benchmark:
        try:
            assert until(lambda: len(busy_processes(benchmark.pid)) == 2)
            processes = busy_processes(benchmark.pid)
        finally:
            benchmark.kill()
    have_ended = until(lambda: all(map(is_gone, processes)))
    for process in () if have_ended else processes:
        process.kill()
    assert have_ended


def test_one_that_ends_early_is_an_error() -> None:
    def lose_one() -> None:
        with keep_busy(2):
            lost = busy_processes()[1]
            lost.kill()
            assert until(partial(is_gone, lost))

    with pytest.raises(Refusal, match=r"--busy 2: a process .* has ended early"):
        lose_one()
    assert busy_processes() == []


@pytest.mark.parametrize(
    ("program", "words"), [("no/such/python", "cannot start"), ("/bin/false", "has ended early")]
)
def test_none_that_starts_is_an_error(
    program: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(Refusal, match=f"--busy 1: .*{words}"), keep_busy(1):
        pytest.fail("nothing is measured")


def fake_clocks(runners: list[Runner], *times: list[float]) -> None:
    for runner, mine in zip(runners, times, strict=True):
        runner.seconds = partial([*mine].pop, 0)  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _without_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("bench.samples.MOST", 3)
    monkeypatch.setattr(timing, "peak", lambda *_: None)


def test_they_run_only_while_rounds_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while baselines are compared with float64, nor in the untimed round, nor for the peak."""
    seen: list[tuple[str, int]] = []

    def look(what: str, result: Any = None, *_: Any) -> Any:
        seen.append((what, len(busy_processes())))
        return result

    monkeypatch.setattr(timing, "peak", partial(look, "peak", None))
    monkeypatch.setattr(timing, "errors", partial(look, "errors", (0.0, 0.0)))
    runners = group(LAYER._replace(busy=2), [OURS, "bce"])
    for runner in runners:
        runner.seconds = partial(look, "time", 1.0)  # type: ignore[method-assign]
    timing.measure(runners, 2)
    quiet = [("errors", 0)] * 2 + [("time", 0)] * 2
    assert seen == quiet + [("time", 2)] * 4 + [("peak", 0)] * 2


def test_mean_95th_percentile_and_worst() -> None:
    """The rounds stay interleaved; the untimed one, which is first, counts nowhere."""
    ours, bce = runners = group(SETTING._replace(busy=1), [OURS, "bce"])
    fake_clocks(runners, [1e9, *map(float, range(1, 202))], [1e9, *[2.0] * 200, 202.0])
    timing.measure(runners, 201)
    assert (ours.row.seconds, ours.row.mean, ours.row.p95, ours.row.worst) == (101, 101, 191, 201)
    assert (bce.row.seconds, bce.row.p95, bce.row.worst) == (2, 2, 202)
    assert bce.row.mean == pytest.approx(2 + 200 / 201)
    assert ours.row.timed_rounds == len(bce.row.rounds) == 201


@pytest.mark.parametrize(("rounds", "is_known"), [(19, False), (20, True)])
def test_no_95th_percentile_of_few_rounds(rounds: int, is_known: bool) -> None:
    (row,) = measured(group(SETTING._replace(busy=1), [OURS]), rounds).values()
    assert (row.p95 is not None) == is_known
    assert row.mean is not None
    assert row.worst == max(row.rounds)


def test_columns_only_where_cores_were_busy() -> None:
    """In the unit of the median; a failed row has none."""
    runners = group(LAYER._replace(busy=1), [OURS, "bce", "masked"])
    fake_clocks(runners, [0.0] + [0.25] * 19 + [1.5], [0.0] + [0.5] * 20, [])
    timing.measure(runners, 20)
    head, *lines = report.table([runner.row for runner in runners])
    places = [head.index(name) for name in HEADS]
    assert head[1] == "ms"
    assert [[line[place] for place in places] for line in lines] == [
        ["312.5", "312.5", "1500", "20"],
        ["500.0", "500.0", "500.0", "20"],
        ["-", "-", "-", "-"],
    ]
    quiet = group(LAYER, [OURS])
    fake_clocks(quiet, [0.25] * 21)
    timing.measure(quiet, 20)
    assert not {*HEADS} & {*report.table([quiet[0].row])[0]}
    assert (quiet[0].row.mean, quiet[0].row.p95, quiet[0].row.worst) == (None, None, None)


def test_a_timed_call_is_a_step() -> None:
    """Otherwise the worst call would be the mean of many steps."""
    assert SETTING.steps > 1
    assert [runner.steps for runner in group(SETTING._replace(busy=1), ["copy", OURS])] == [1, 1]


def test_a_run(tmp_path: Path, capsys: Any) -> None:
    """The record says how many processes there were; a quiet run has no row in common with it."""
    given = ["--quick", "--shapes", "8x50,4x8x60", "--passes", "step", "--against", "unfused"]
    assert __main__.main([*given, "--busy", "2", "--rounds", "20", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "up to 20 rounds, with --busy 2." in printed
    assert "1 thread, 2 busy processes" in printed
    assert "4x8x60 float32 sparse 8.3% 1t 2b step" in printed
    assert "Other processes kept cores busy" in printed
    assert busy_processes() == []
    rows = load(tmp_path).rows
    assert [(row.setting.busy, row.key) for row in rows] == [
        *((2, key) for key in ("copy", OURS)),
        *((2, key) for key in ("products", OURS, "unfused")),
    ]
    for row in rows:
        assert row.mean is not None
        assert 0 < row.seconds <= row.p95 <= row.worst
        assert len(row.rounds) == 20
    assert __main__.main([*given, "--check", str(tmp_path)]) == 2
    quiet = capsys.readouterr()
    assert "no measurement in common" in quiet.err
    assert "busy" not in quiet.out


@pytest.mark.parametrize(
    ("arguments", "limits"),
    [
        ((), (20, 10)),
        (("--quick",), (10, 1.5)),
        (("--busy", "0"), (20, 10)),
        (("--busy", "2"), (200, 400)),
        (("--busy", "2", "--quick"), (200, 60)),
        (("--busy", "2", "--rounds", "7", "--seconds", "3"), (7, 3)),
    ],
)
def test_limits(
    arguments: tuple[str, ...], limits: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[Any] = []
    monkeypatch.setattr("bench.run.run", options.append)
    assert __main__.main(arguments) == 0
    assert (options[0].rounds, options[0].seconds) == limits
