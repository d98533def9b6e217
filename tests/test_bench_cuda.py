"""The benchmark on a GPU. Without one, a CPU that passes for it runs the same code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, report, run, runner, timing
from bench.baselines import BASELINES, BY_KEY
from bench.names import FORWARD, OURS, STEP
from bench.samples import Sample, Samples
from bench.settings import Setting
from weighted_bce._eager import expected_grad_output

from .bench_cases import (
    BYTES,
    KEYS,
    LAYER,
    SCALED,
    SETTING,
    Pretended,
    as_graphs,
    checked,
    group,
    measured,
    with_make,
)


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.settings.MOST_STEPS", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """The device of runs."""
    gpu = Pretended()
    monkeypatch.setattr(run, "find", lambda _: gpu)
    return gpu


def main(*given: str) -> int:
    return __main__.main(["--device", "cuda", *given])


@pytest.mark.usefixtures("gpu")
def test_a_run(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """Logits as they are queued and as graphs; layers without graphs."""
    monkeypatch.setattr(run, "MOST_ELEMENTS_OF_GRAPH", 512)
    # The name of the device that it passes for is not "cuda".
    changed = [replace(one, device=one.device.replace("cuda", "cpu")) for one in BASELINES]
    monkeypatch.setattr("bench.baselines.BASELINES", changed)
    against = ("--against", ",".join(["fused-step", "dense", "scatter", *KEYS[2:]]))
    given = ("--shapes", "8x64,15x64,4x8x200", "--targets", "bool,sparse", "--rounds", "2")
    assert main("--quick", *given, *against, "--out", str(tmp_path)) == 0
    assert "a pretended one" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    of = {"bool": KEYS, "sparse": ["copy", OURS, *SCALED, "inplace", "dense", "scatter"]}
    expected = [
        (size, target, pass_, graphs, key)
        for size in (8, 15)
        for target in of
        for pass_ in (STEP, FORWARD)
        for graphs in (False, True)[: 1 + (size == 8)]
        for key in of[target]
        if BY_KEY[key].only in ("", pass_) and (BY_KEY[key].graph or not graphs)
    ]
    what = ("rows", "target", "pass", "graphs", "baseline")
    logits = [row for row in rows if not row["features"]]
    assert [tuple(row[k] for k in what) for row in logits] == expected
    for row in logits:
        assert row["failed"] is None
        assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
        assert (row["peak_gradients"] is None) == row["graphs"]
    layers = [row for row in rows if row["features"]]
    assert all(row["times_products"] > 0 and not row["graphs"] for row in layers)
    beyond = {(row["pass"], row["baseline"]): row["beyond_bytes"] for row in layers}
    peak = 3 * SETTING.gradient_bytes
    assert beyond[STEP, OURS] == max(0, peak - 4 * 8 * 204)
    assert beyond[STEP, "fused-step"] == peak - 4 * 8 * 4
    assert beyond[FORWARD, "scatter"] == peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pass_", [STEP, FORWARD])
def test_all_compute_the_same(dtype: str, pass_: str) -> None:
    """Also at another loss scale, and when replayed."""
    eager = group(Setting(16, 4096, dtype, density=0.05), pass_=pass_, device=Pretended())
    for one in (eager, as_graphs(eager)):
        known = checked(one)
        assert OURS in known
        assert not any(row.failed for row in known.values())


def test_a_wrong_loss_scale_is_found() -> None:
    one = group(device=Pretended())
    for scaled in one:
        if scaled.key == "scaled":
            scaled.baseline = replace(scaled.baseline, loss_scale=65536 * (1 + 1e-5))
    assert [key for key, row in checked(one).items() if row.disagrees] == ["scaled"]


def test_percent_of_copy() -> None:
    """What must move counts: a step of 2 s + t bytes for each 2 s of a copy."""
    gpu = Pretended()
    now = iter([0.0, 1.0] * 100)
    gpu.clock = lambda: next(now)  # whatever is timed takes a second
    known = measured(group(device=gpu), 3)
    shares = {"copy": 1, OURS: 9 / 8, "bce-float": 12 / 8}
    assert {key: known[key].share_of_copy for key in shares} == shares
    assert known[OURS].gigabytes_per_second == 9 * 512 / 1e9
    assert known[OURS].peak_gradients == 3


@pytest.mark.parametrize(("key", "surprised"), [("scaled", False), ("scaled-changing", True)])
def test_a_changing_loss_scale_is_never_the_expected_one(key: str, surprised: bool) -> None:
    (one,) = group(keys=[key], device=Pretended())
    assert one.steps == 1
    for _ in range(3):
        sample = one.prepare()
        logits = sample.leaves[0]
        assert (expected_grad_output(logits).item() != 65536) == surprised
        one.run(sample)
        assert expected_grad_output(logits).item() == 65536


def test_ours_that_fails_is_exit_code_1(
    gpu: Pretended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others' times are shown; what is said of the failure names its place."""

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "graph", fail)
    assert main("--quick", "--shapes", "8x64", "--rounds", "1", "--against", "bce") == 1
    printed = capsys.readouterr()
    assert "weighted_bce failed: operation not permitted" in printed.out
    assert "copy_ of the logits failed: operation not permitted" in printed.out
    assert "in fail" in printed.err
    assert "Time of weighted_bce" in printed.out


def test_graphs_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold one step on each sample, however many steps an eager call has."""
    monkeypatch.setattr("bench.settings.MOST_STEPS", 500)
    gpu = Pretended()
    monkeypatch.setattr(gpu, "cache_bytes", lambda: 2**26)
    (eager,) = group(keys=["bce"], device=gpu)
    assert eager.steps == 256
    calls: list[Sample] = []
    eager.step = calls.append
    replay = eager.as_graph()
    replay.run(replay.prepare())
    assert replay.steps == eager.samples.count == 256
    assert len(calls) == 2 * 256
    assert len({id(sample) for sample in calls}) == 256
    (changing,) = group(keys=["scaled-changing"], device=gpu)
    assert not changing.baseline.fits(SETTING, STEP, "cuda")


def test_samples_take_turns() -> None:
    samples = Samples(SETTING, Pretended())
    assert samples.count * BYTES > 2 * samples.device.cache_bytes()
    used: list[Sample] = [samples.take() for _ in range(samples.count)]
    assert len({sample.leaves[0].data_ptr() for sample in used}) == samples.count
    assert all(torch.equal(sample.values[0], used[0].values[0]) for sample in used)
    leaf = used[0].leaves[0]
    leaf.grad = torch.zeros_like(leaf)
    assert samples.take() is used[0]
    assert leaf.grad is None
    assert Samples(Setting(2**17, 2**14, "bfloat16"), Pretended()).count == 1


def test_what_does_not_fit_is_not_tried() -> None:
    needed = {r.key: r.memory for r in group(device=Pretended())}
    inputs = 5 * 13 * 512 + 280 * 512  # samples of logits, outputs and two targets; the check
    assert needed["copy"] == inputs
    assert needed[OURS] == inputs + 2 * 4 * 512  # with the gradient of the sample before
    assert needed["bce"] == inputs + 5 * 4 * 512
    known = measured(group(device=Pretended(needed["masked"] - 1)))
    assert [key for key, row in known.items() if not row.fits] == ["masked", "bce", "bce-float"]
    assert "GiB are free" in str(known["bce"].failed)
    assert all(row.seconds is not None for row in known.values() if row.fits)


def test_what_layers_need() -> None:
    """Ours and the fused step hold no logits, others up to five times as much as these."""
    keys = [OURS, "fused-step", "products", "unfused", "masked", "bce", "scatter"]
    one = group(LAYER, keys, device=Pretended())
    samples = one[0].samples.count * LAYER.sample_bytes
    inputs = samples + LAYER.gradient_bytes + 280 * LAYER.elements
    assert [(r.memory - inputs) / LAYER.logits_bytes for r in one] == [0, 0, 1, 2, 5, 5, 5]


def test_samples_of_the_pass_before_count_once() -> None:
    """They are in memory, and so no longer in what is free."""
    gpu = Pretended()
    one = group(device=gpu)
    measured(one)
    gpu.free = 0
    timing.check(one)
    assert all(runner.row.fits for runner in one)


@pytest.mark.parametrize(
    ("setting", "element"),
    [
        (Setting(0, 2**14), 21),  # logits, outputs, gradients of two steps; the target twice
        (Setting(0, 2**14, "float16"), 11),
        (Setting(0, 2**14, "bfloat16", "sparse"), 9),
    ],
)
def test_the_largest_size(setting: Setting, element: int) -> None:
    """Ours has memory for that power of two, and has none for the next one."""
    gpu = Pretended(2**36)
    largest = run.with_most_rows(setting, gpu)
    assert largest == setting._replace(rows=largest.rows)
    assert largest.rows.bit_count() == 1
    assert 0.3 * gpu.free < largest.elements * element < 0.9 * gpu.free
    assert 2 * largest.elements * element > 0.87 * gpu.free
    assert group(largest, [OURS], device=gpu)[0].memory < gpu.free


def test_shapes_of_the_largest_size() -> None:
    """Each dtype has its own, and no size is measured twice."""
    given = ["--shapes", "2^20,largest", "--dtypes", "float32,bfloat16", "--passes", "step"]
    options = __main__.parser().parse_args(["--device", "cuda", *given])
    sizes = [(s.dtype, s.elements) for s in run.tasks_of(options, Pretended(2**36))]
    once = [("float32", 2**20), ("bfloat16", 2**20)]
    assert sizes == [*once, ("float32", 2**31), ("bfloat16", 2**32)]
    same = run.tasks_of(options, Pretended(350 * 2**20))
    assert [(s.dtype, s.elements) for s in same] == once


def test_nothing_is_made_where_the_inputs_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.samples.make", lambda *_: pytest.fail("made"))
    setting = Setting(2**40, 2**20, "bfloat16", density=0.1)
    known = measured(group(setting, device=Pretended()))
    assert not any(row.fits or row.disagrees for row in known.values())


@pytest.mark.parametrize("calls", [0, 3])
def test_out_of_memory_is_no_error(
    calls: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is short in the check, or only in a later round."""
    one = group(keys=[OURS, "masked", "bce"], device=Pretended())
    step, left = one[1].step, [None] * calls

    def hungry(sample: Sample) -> Tensor:
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        left.pop()
        return step(sample)

    monkeypatch.setattr(one[1], "step", hungry)
    known = measured(one, 3)
    for key, row in known.items():
        assert row.fits == (row.seconds is not None) == (key != "masked")
    report.show_group(report.Console(width=132), [*known.values()])
    assert "masked multiply does not fit: CUDA out of memory" in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_has_failed_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An allocation that fails there does not show that memory is short; results are kept."""

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("torch failed to allocate a tensor")

    for module in (run, runner):
        monkeypatch.setattr(module, "is_lost", lambda: True)
    baselines = (BY_KEY["copy"], with_make(OURS, lambda *_: broken), BY_KEY["bce"])
    monkeypatch.setattr("bench.baselines.BASELINES", baselines)
    given = ("--shapes", "8x64,9x64", "--passes", "step", "--against", "bce")
    assert main("--rounds", "1", *given, "--out", str(tmp_path)) == 1
    printed = capsys.readouterr()
    assert "nothing more is measured" in printed.err
    assert "weighted_bce failed: torch failed to allocate a tensor" in printed.out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["rows"], row["fits"]) for row in rows} == {(8, True)}
