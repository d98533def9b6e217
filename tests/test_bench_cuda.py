"""The benchmark on a GPU. Without one, a CPU that passes for it runs the same code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, device, run, runner
from bench.baselines import BASELINES, BY_KEY
from bench.names import FORWARD, OURS, STEP
from bench.samples import Sample, Samples
from bench.settings import Setting
from weighted_bce._eager import expected_grad_output

from .bench_cases import (
    BYTES,
    KEYS,
    SCALED,
    SETTING,
    Pretended,
    checked,
    group,
    measured,
)


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MOST_STEPS", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """The device of runs."""
    gpu = Pretended()
    monkeypatch.setattr(run, "find", lambda _: gpu)
    return gpu


def main(*given: str) -> int:
    return __main__.main(["--device", "cuda", *given])


def test_a_run(
    gpu: Pretended,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Logits as they are queued and as graphs; layers without graphs."""
    monkeypatch.setattr(run, "MOST_ELEMENTS_OF_GRAPH", 512)
    # The name of the device that it passes for is not "cuda".
    changed = [replace(one, device=one.device.replace("cuda", "cpu")) for one in BASELINES]
    monkeypatch.setattr("bench.baselines.BASELINES", changed)
    against = ("--against", ",".join(["fused-step", "dense", "scatter", *KEYS[2:]]))
    given = ("--shapes", "8x64,15x64,4x8x200", "--targets", "bool,sparse", "--rounds", "2")
    assert main("--quick", *given, *against, "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "a pretended one" in printed
    assert "Times of ours" in printed
    found = json.loads((tmp_path / "results.json").read_text())["rows"]
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
    logits = [row for row in found if not row["features"]]
    assert [tuple(row[k] for k in what) for row in logits] == expected
    for row in logits:
        assert row["failed"] is None
        assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
        assert (row["peak_gradients"] is None) == row["graphs"]
    layers = [row for row in found if row["features"]]
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
    setting = Setting(16, 4096, dtype, density=0.05)
    eager = group(setting, pass_=pass_, device=Pretended())
    for one in (eager, runner.as_graphs(eager)):
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
    found = measured(group(device=gpu), 3)
    assert found["copy"].share_of_copy == 1
    assert found[OURS].share_of_copy == 9 / 8
    assert found["bce-float"].share_of_copy == 12 / 8
    assert found[OURS].gigabytes_per_second == 9 * 512 / 1e9
    assert found[OURS].peak_gradients == 3


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
    assert "ours failed: operation not permitted" in printed.out
    assert "copy_ of the logits failed: operation not permitted" in printed.out
    assert "in fail" in printed.err
    assert "Times of ours" in printed.out


def test_graphs_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold one step on each sample, however many steps an eager call has."""
    monkeypatch.setattr(runner, "MOST_STEPS", 500)
    gpu = Pretended()
    monkeypatch.setattr(gpu, "cache_bytes", lambda: 2**26)
    eager = group(keys=["bce"], device=gpu)
    assert eager[0].steps == 256
    calls: list[Sample] = []
    eager[0].step = calls.append
    (replay,) = runner.as_graphs(eager)
    replay.run(replay.prepare())
    assert replay.steps == eager[0].samples.count == 256
    assert len(calls) == 2 * 256
    assert len({id(sample) for sample in calls}) == 256


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


def test_kernels_are_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "why_no_kernels", lambda name: f"none is built for {name.upper()}")
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "none is built for CUDA" in printed.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("--shapes", "2^14", "--dtypes", "float32,bfloat16,float16", "--rounds", "2")
    against = ("--against", ",".join([*KEYS[2:], "scatter", "dense"]))
    assert main(*kinds, *against, "--targets", "bool,sparse", "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"GPU", "driver", "CUDA", "CUDA kernels"} <= set(found["facts"])
    assert {row["graphs"] for row in found["rows"]} == {True, False}
    for row in found["rows"]:
        assert row["failed"] is None, row
        assert row["seconds"] > 0
    print(capsys.readouterr().out)
