"""The benchmark on a GPU. Without one, a CPU that passes for it runs the same code."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, contenders, device, graphs, report, run, timing
from bench.contenders import Group
from bench.device import Cuda
from bench.losses import BY_KEY
from bench.names import COPY, FORWARD, OURS, STEP
from bench.records import rows_of
from bench.samples import Sample, Samples
from bench.settings import Setting
from bench.timing import Limits, Result, measure
from weighted_bce import autograd

SETTING = Setting(8, 64, density=0.1)
BYTES = 5 * SETTING.elements  # of the logits and the target
SCALED = ["scaled", "scaled-changing"]
KEYS = [OURS, *SCALED, "inplace", "masked", "bce", "bce-float"]


class Pretended(Cuda):
    """A GPU of 1 TiB that is the CPU. Its cache holds two steps, its clock is the wall's."""

    name = "cpu"

    def __init__(self, free: int = 2**40) -> None:
        self.free = free
        self.clock = time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def cache_bytes(self) -> int:
        return 2 * BYTES

    def free_bytes(self) -> int | None:
        return self.free

    def rise_of_peak(self, work: Callable[[], object]) -> int | None:
        work()
        return 3 * SETTING.gradient_bytes

    def release(self) -> None:
        pass

    def works(self) -> bool:
        return True

    def graph(self, prepare: Callable[[], Any], work: Callable[[Any], object]) -> Any:
        return lambda: work(prepare())

    def facts(self) -> dict[str, str]:
        return {"GPU": "a pretended one", "driver": "0.0"}


def group(
    gpu: Cuda, setting: Setting = SETTING, pass_: str = STEP, **makers: Any
) -> tuple[Group, Samples]:
    """One call is one step."""
    samples = Samples(setting, gpu)
    chosen = [
        BY_KEY[key]._replace(make=makers.get(key, BY_KEY[key].make))
        for key in KEYS
        if pass_ == STEP or BY_KEY[key].only != STEP
    ]
    return contenders.group(pass_, chosen, samples), samples


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "MOST_STEPS", 1)


def by_key(results: list[Result]) -> dict[str, Result]:
    return {result.contender: result for result in results}


def test_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "find", lambda _: Pretended())
    monkeypatch.setattr(graphs, "MOST_ELEMENTS", 512)
    given = ("--shapes", "8x64,15x64", "--rounds", "2", "--out", str(tmp_path))
    against = ("--against", ",".join(["dense", "scatter", *KEYS[1:]]))
    arguments = ["--device", "cuda", "--quick", *given, "--targets", "bool,sparse", *against]
    # The name of the device that it passes for is not "cuda".
    for key in SCALED:
        monkeypatch.setitem(BY_KEY, key, BY_KEY[key]._replace(device="cpu"))
    monkeypatch.setattr("bench.losses.LOSSES", tuple(BY_KEY.values()))
    assert __main__.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "a pretended one" in printed
    assert "Times of ours" in printed
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    step = {
        "bool": [COPY, *KEYS],
        "sparse": [COPY, OURS, *SCALED, "inplace", "dense", "scatter"],
    }
    expected = []
    for size in (8, 15):
        for target, names in step.items():
            for pass_ in (STEP, FORWARD):
                of = [n for n in names if pass_ == STEP or n not in ("inplace", *SCALED)]
                expected += [(size, target, pass_, False, n) for n in of]
                if size == 8:
                    expected += [(size, target, pass_, True, n) for n in of if n in graphs.CAPTURED]
    what = ("rows", "target", "pass", "graphs", "contender")
    assert [tuple(row[k] for k in what) for row in rows] == expected
    for row in rows:
        assert row["failed"] is None
        assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
        assert (row["peak_gradients"] is None) == row["graphs"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pass_", [STEP, FORWARD])
def test_all_compute_the_same(dtype: str, pass_: str) -> None:
    """Also at another loss scale, and when replayed."""
    one, samples = group(Pretended(), Setting(16, 4096, dtype, density=0.05), pass_)
    for some in (one, graphs.replayed(one, samples)):
        failures, found = timing._checked(some, samples, lambda _: None)
        assert failures == {}
        assert OURS in found


def test_a_wrong_loss_scale_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    one, samples = group(Pretended())
    right = timing.errors.__globals__["loss_scale"]
    monkeypatch.setitem(
        timing.errors.__globals__,
        "loss_scale",
        lambda loss, setting: right(loss, setting) * (1 + 1e-5 * (loss.key == "scaled")),
    )
    failures, _ = timing._checked(one, samples, lambda _: None)
    assert [key for key, result in failures.items() if result.disagrees] == ["scaled"]


def test_percent_of_copy() -> None:
    """By the bytes that must move: a step of 2 s + t bytes for each 2 s of a copy."""
    gpu = Pretended()
    now = iter([0.0, 1.0] * 100)
    gpu.clock = lambda: next(now)  # whatever is timed takes a second
    found = by_key(measure(*group(gpu), Limits(3)).results)
    assert found[COPY].share_of_copy == 1
    assert found[OURS].share_of_copy == 9 / 8
    assert found["bce-float"].share_of_copy == 12 / 8
    assert found[OURS].gigabytes_per_second == 9 * 512 / 1e9
    assert found[OURS].peak_gradients == 3


def test_a_changing_loss_scale_is_never_the_expected_one() -> None:
    one, _ = group(Pretended())
    for key, surprised in (("scaled", False), ("scaled-changing", True)):
        (contender,) = (c for c in one.contenders if c.key == key)
        assert contender.steps == 1
        for _ in range(3):
            sample = contender.before()
            expected = autograd.expectation(sample.logits).item()
            contender.step(sample)
            assert (expected != 65536) == surprised
            assert autograd.expectation(sample.logits).item() == 65536


def test_ours_that_fails_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others' times are shown; what is said of the failure names its place."""

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    gpu = Pretended()
    monkeypatch.setattr(gpu, "graph", fail)
    monkeypatch.setattr(run, "find", lambda _: gpu)
    given = ("--shapes", "8x64", "--rounds", "1", "--against", "bce")
    assert __main__.main(["--device", "cuda", "--quick", *given]) == 1
    printed = capsys.readouterr()
    assert "ours failed: operation not permitted" in printed.out
    assert "copy_ of the logits failed: operation not permitted" in printed.out
    assert "in fail" in printed.err
    assert "Times of ours" in printed.out


def test_graphs_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold one step on each sample, however many steps an eager call has."""
    monkeypatch.setattr(contenders, "MOST_STEPS", 500)
    gpu = Pretended()
    monkeypatch.setattr(gpu, "cache_bytes", lambda: 2**26)
    samples = Samples(SETTING, gpu)
    made = contenders.group(STEP, [BY_KEY["bce"]], samples)
    assert [c.steps for c in made.contenders] == [256, 256]
    calls: list[Any] = []
    counted = made.contenders[1]._replace(one_step=lambda sample: calls.append(sample))
    (replay,) = graphs.replayed(made._replace(contenders=[counted]), samples).contenders
    replay.step(replay.before())
    assert replay.steps == samples.count == 256
    assert len(calls) == 2 * samples.count
    assert len({id(sample) for sample in calls}) == samples.count


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    one = Result(OURS, 2e-3, 1.9e-3, 2.1e-3, 1.25, 1.0, 4000.0, 0.9, 1024, 1.0, 1.6e-8, 3e-7)
    none = Result("masked", failed="it needs some 90.0 GiB, 70.0 GiB are free", fits=False)
    made, _ = group(Pretended())
    report.show_group(report.Console(width=132), "", rows_of(made, [one, none]), 0)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = ["2.00", "1.90", "2.10", "1.25x", "1.00x", "4000", "90%", "1.00", "2e-08", "3e-07"]
    assert [OURS, *cells] in lines
    assert ["masked", "multiply", "does", "not", "fit", *"---------"] in lines
    report.show_group(report.Console(width=132), "", rows_of(made, [none]), 0)


def test_samples_take_turns() -> None:
    samples = Samples(SETTING, Pretended())
    assert samples.count * BYTES > 2 * samples.device.cache_bytes()
    used: list[Sample] = [samples.take() for _ in range(samples.count)]
    assert len({sample.logits.data_ptr() for sample in used}) == samples.count
    assert all(torch.equal(sample.values[0], used[0].values[0]) for sample in used)
    used[0].logits.grad = torch.zeros_like(used[0].logits)
    assert samples.take() is used[0]
    assert used[0].logits.grad is None
    assert Samples(Setting(2**17, 2**14, "bfloat16"), Pretended()).count == 1


def test_kernels_are_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "why_no_kernels", lambda name: f"none is built for {name.upper()}")
    assert __main__.main(["--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "none is built for CUDA" in printed.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("--shapes", "2^14", "--dtypes", "float32,bfloat16,float16", "--rounds", "2")
    against = ("--against", ",".join([*KEYS[1:], "scatter", "dense"]))
    given = (*kinds, *against, "--targets", "bool,sparse", "--out", str(tmp_path))
    assert __main__.main(["--device", "cuda", *given]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"GPU", "driver", "CUDA", "CUDA kernels"} <= set(found["facts"])
    assert {row["graphs"] for row in found["rows"]} == {True, False}
    for row in found["rows"]:
        assert row["failed"] is None, row
        assert row["seconds"] > 0
    print(capsys.readouterr().out)
