"""The benchmark of a linear layer and its loss: what is compared, and against what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, contenders, report, run, timing
from bench.contenders import Group
from bench.device import CPU, Device
from bench.losses import BY_KEY, fitting
from bench.memory import check_bytes
from bench.names import FORWARD, OURS, PRODUCTS, STEP
from bench.records import rows_of
from bench.samples import Samples
from bench.settings import Setting
from bench.timing import Limits, measure

from .test_bench_cuda import SETTING as PRETENDED
from .test_bench_cuda import Pretended

SETTING = Setting(6, 300, target="sparse", density=5 / 300, features=8)
DENSE = SETTING._replace(target="bool")
PRETENDED_PEAK = 3 * PRETENDED.gradient_bytes
OF_SPARSE = [
    *(OURS, "fused-step", "ours-compiled", "reference", "unfused"),
    *("masked", "bce", "compile", "scatter"),
]


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny inputs: threads would only wait for each other, samples need not fill the cache, and
    one call is one step."""
    torch.set_num_threads(1)
    monkeypatch.setattr("bench.samples.MOST", 3)
    monkeypatch.setattr(contenders, "MOST_STEPS", 1)


def group(
    setting: Setting = SETTING, pass_: str = STEP, device: Device = CPU, **makers: Any
) -> tuple[Group, Samples]:
    """All that need no compiler."""
    samples = Samples(setting, device)
    chosen = [
        loss._replace(make=makers.get(loss.key, loss.make))
        for loss in fitting(setting, pass_, device.name)
        if not loss.compiles
    ]
    return contenders.group(pass_, chosen, samples), samples


def checked(*made: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return timing._checked(*made, lambda _: None)


def test_contenders() -> None:
    assert [loss.key for loss in fitting(SETTING, STEP, "cpu")] == OF_SPARSE
    forward = [key for key in OF_SPARSE if key != "fused-step"]
    assert [loss.key for loss in fitting(SETTING, FORWARD, "cpu")] == forward
    assert [loss.key for loss in fitting(DENSE, STEP, "cpu")] == OF_SPARSE[:-1]
    without = SETTING._replace(features=0)
    alone = {loss.key for loss in fitting(without, STEP, "cpu")}
    assert not {"fused-step", "unfused", "masked", "bce"} & alone


@pytest.mark.parametrize("target", ["bool", "float", "int64", "sparse"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_all_compute_the_same(dtype: str, target: str) -> None:
    setting = Setting(32, 900, dtype, target, 5 / 900, features=16)
    for pass_ in (STEP, FORWARD):
        failures, found = checked(*group(setting, pass_))
        assert failures == {}
        compiled = {"ours-compiled", "compile"}
        assert set(found) == {loss.key for loss in fitting(setting, pass_, "cpu")} - compiled


@pytest.mark.exhaustive
@pytest.mark.parametrize("setting", [SETTING, DENSE])
def test_what_inductor_makes_computes_the_same(setting: Setting) -> None:
    samples = Samples(setting)
    chosen = [loss for loss in fitting(setting, STEP, "cpu") if loss.compiles]
    assert [loss.key for loss in chosen] == ["ours-compiled", "compile"]
    assert checked(contenders.group(STEP, chosen, samples), samples)[0] == {}


def test_the_truth_is_that_of_all_logits() -> None:
    """Of rows that do not divide a chunk, so the last chunk is smaller."""
    setting = Setting(7, 30000, "float64", "sparse", 5 / 30000, features=4)
    samples = Samples(setting)
    sample = samples.take()
    x, weight = (value.clone().requires_grad_() for value in sample.values)
    p = torch.tensor(7.0, dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(F.linear(x, weight), sample.ready.double(), None)
    assert timing.truth(sample, 1.0, True).loss == pytest.approx(loss.item(), rel=1e-13)
    loss = F.binary_cross_entropy_with_logits(
        F.linear(x, weight), sample.ready.double(), pos_weight=p
    )
    known = timing.truth(sample, 7.0, True)
    assert known.loss == pytest.approx(loss.item(), rel=1e-13)
    for got, wanted in zip(known.gradients, torch.autograd.grad(loss, (x, weight)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-17)
    failures, found = checked(*group(setting))
    assert failures == {}
    for error in found.values():
        assert error.loss < 1e-14
        assert 0 < error.gradient < 1e-12


def test_no_more_of_the_gradient_is_compared_than_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.accuracy.CHUNK", 600)
    monkeypatch.setattr("bench.accuracy.MOST", 1000)
    made, samples = group()
    known = timing.truth(samples.take(), 7.0, True)
    assert [len(gradient) for gradient in known.gradients] == [6, 200]
    assert checked(made, samples)[0] == {}


def wrong(which: int) -> Callable[..., Any]:
    """The right loss, and a gradient of one of the leaves that is not."""

    def make(setting: Setting, device: str) -> Callable[..., Tensor]:
        right = BY_KEY[OURS].make(setting, device)

        def loss(*given: Any) -> Tensor:
            found = right(*given)
            extra = given[which].sum()
            return found + 1e-3 * (extra - extra.detach())

        return loss

    return make


@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_gradient_of_either_is_found(which: int) -> None:
    failures, _ = checked(*group(masked=wrong(which)))
    assert [key for key, result in failures.items() if result.disagrees] == ["masked"]
    assert "the gradient is off" in failures["masked"].failed


@pytest.mark.parametrize(("pass_", "outputs"), [(STEP, 3), (FORWARD, 1)])
def test_products(pass_: str, outputs: int) -> None:
    made, samples = group(pass_=pass_)
    assert samples.take().room == ()  # outputs are made when they are needed
    products = made.contenders[0]
    sample = products.before()
    for room in sample.room:
        room.zero_()
    products.step(sample)
    x, weight = sample.values
    logits = x @ weight.t()
    wanted = logits, logits @ weight, logits.t() @ x
    assert len(sample.room) == outputs
    for got, right in zip(sample.room, wanted, strict=False):
        torch.testing.assert_close(got, right)


def test_steps_leave_the_weight_as_it_is_and_drop_gradients() -> None:
    made, samples = group()
    before = samples.take().values[1].clone()
    by_key = {c.key: c for c in made.contenders}
    for key, gradients in ((OURS, [True, True]), ("fused-step", [True, False])):
        sample = by_key[key].before()
        assert [leaf.grad is None for leaf in sample.leaves] == [True, True]
        by_key[key].step(sample)
        assert [leaf.grad is not None for leaf in sample.leaves] == gradients
        assert sample.gradients_bytes == sum(
            leaf.nbytes for leaf in sample.leaves if leaf.grad is not None
        )
        assert torch.equal(sample.leaves[1], before)
    following = samples.take()
    assert following is not sample
    assert [one.gradients_bytes for one in samples._made] == [0] * samples.count


def test_a_step_before_each_timed_one() -> None:
    """Of all sizes and contenders, and gradients of no other sample are in memory."""
    setting = SETTING._replace(labels=contenders.WARM)
    calls: list[int] = []

    class Counted(Samples):
        def take(self) -> Any:
            calls.append(1)
            return super().take()

    for key in ("masked", "fused-step"):
        samples = Counted(SETTING)
        samples.setting = setting  # as if it were large
        one = contenders._contender(STEP, BY_KEY[key], samples)
        samples.setting = SETTING
        calls.clear()
        one.before()
        assert len(calls) == 2


def test_what_does_not_fit_is_named_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, samples = group()
    needed = {c.key: c.memory for c in made.contenders}
    logits, gradients = 4 * 6 * 300, 4 * 8 * 306
    assert needed[OURS] == needed["fused-step"] == samples.bytes + gradients
    assert needed[PRODUCTS] == samples.bytes + logits + gradients
    assert needed["unfused"] == needed[OURS] + 2 * logits
    assert needed["scatter"] == needed[OURS] + 5 * logits
    check = check_bytes(SETTING, CPU)
    monkeypatch.setattr(CPU, "free_bytes", lambda: needed["unfused"] + check, raising=False)
    results = measure(made, samples, Limits(1)).results
    left_out = [result.contender for result in results if not result.fits]
    assert left_out == ["masked", "bce", "scatter"]
    assert all(r.seconds is not None for r in results if r.fits)
    report.show_group(report.Console(width=132), str(made), rows_of(made, results), 0)
    printed = capsys.readouterr().out
    assert "masked multiply does not fit: it needs some" in printed
    assert "6 x 8 x 300 float32 linear layer and loss, sparse labels, 5 in each row" in printed


@pytest.mark.parametrize(
    ("arguments", "target", "positives"),
    [((), "sparse", 5), (("--targets", "bool"), "bool", 5), (("--density", "0.5"), "sparse", 50)],
)
def test_what_three_numbers_ask_for(
    arguments: tuple[str, ...], target: str, positives: int
) -> None:
    given = __main__._parser().parse_args(["--shapes", "4x8x100", *arguments])
    (task,) = run._tasks(given, CPU)
    assert task.passes == (STEP, FORWARD)
    setting = task.setting
    assert (setting.rows, setting.features, setting.labels) == (4, 8, 100)
    assert (setting.target, setting.positives_per_row) == (target, positives)


def test_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(__main__, "_finish_when_interrupted", lambda _: None)
    keys = ["fused-step", "unfused", "masked", "scatter"]
    given = ["--quick", "--shapes", "4x8x200,8x50", "--rounds", "2", "--threads", "1"]
    given += ["--against", ",".join(keys)]
    assert __main__.main([*given, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    layers = [row for row in rows if row["features"]]
    without = [key for key in keys if key != "fused-step"]
    assert [row["contender"] for row in layers] == [PRODUCTS, OURS, *keys, PRODUCTS, OURS, *without]
    assert {(row["rows"], row["features"], row["labels"]) for row in layers} == {(4, 8, 200)}
    for row in layers:
        assert row["failed"] is None
        assert row["times_products"] > 0
        assert row["times_ours"] > 0
        assert row["times_copy"] is row["peak_gradients"] is row["gigabytes_per_second"] is None
        has_peak = row["pass"] == STEP and row["contender"] != PRODUCTS
        assert (row["beyond_bytes"] is not None) == has_peak
    for row in rows:
        assert (row["times_products"] is None) != bool(row["features"])
        assert (row["times_copy"] is None) == bool(row["features"])
    assert "4x8x200 float32 sparse 2.5% 1t step" in printed
    assert "Linear layer and loss: a step is" in printed
    monkeypatch.setattr(run, "peak", lambda *_: None)  # saves five processes
    assert __main__.main([*given, "--check", str(tmp_path), "--tolerance", "1e9"]) == 0


def test_a_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That is pretended. No graphs; what its allocator counts is the peak."""
    monkeypatch.setattr(run, "find", lambda _: Pretended())
    given = ["--device", "cuda", "--shapes", "4x8x200", "--rounds", "1", "--out", str(tmp_path)]
    assert __main__.main([*given, "--against", "fused-step,scatter"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert not any(row["graphs"] for row in rows)
    beyond = {(row["pass"], row["contender"]): row["beyond_bytes"] for row in rows}
    assert beyond[STEP, OURS] == max(0, PRETENDED_PEAK - 4 * 8 * 204)
    assert beyond[STEP, "fused-step"] == PRETENDED_PEAK - 4 * 8 * 4
    assert beyond[FORWARD, "scatter"] == PRETENDED_PEAK
    assert all(row["times_products"] > 0 for row in rows)


def test_peak_memory_is_beyond_the_gradients() -> None:
    from bench.peak import peak

    setting = Setting(64, 2**15, target="sparse", density=5 / 2**15, features=32)
    logits = setting.logits_bytes
    for key, gradients in ((OURS, setting.gradient_bytes), ("fused-step", 4 * 64 * 32)):
        found = peak(key, setting)
        assert found is not None
        assert found.gradients == gradients
        assert 0 <= found.bytes - gradients < logits / 2
    found = peak("unfused", setting)
    assert found is not None
    assert found.gradients == setting.gradient_bytes
    beyond = timing.Result("unfused").with_peak(found, setting).beyond_bytes
    assert beyond is not None
    # The gradients are made after the loss's backward, where the peak is.
    assert abs(beyond + setting.gradient_bytes - 2 * logits) < logits / 4
