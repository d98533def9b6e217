"""What the benchmark times computes what it should, and the times are made right."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import makers, report, timing
from bench import samples as samples_module
from bench.accuracy import truth
from bench.names import FORWARD, LOSSES, OURS, STEP
from bench.records import Row
from bench.samples import Samples
from bench.settings import Setting

from .bench_cases import LAYER, SETTING, checked, fitting, group, measured, with_make
from .grids import one_at_a_time

PEAK = timing.peak
FOCAL = SETTING._replace(loss="focal")
DENSE_LAYER, FOCAL_LAYER = LAYER._replace(target="bool"), LAYER._replace(loss="focal")


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny inputs: threads would only wait for each other, samples need not fill the cache, and
    one call is one step. Memory is measured in tests of it."""
    torch.set_num_threads(1)
    monkeypatch.setattr("bench.samples.MOST", 3)
    monkeypatch.setattr("bench.settings.MOST_STEPS", 1)
    monkeypatch.setattr(timing, "peak", lambda *_: None)


def eager(setting: Setting, pass_: str = STEP) -> list[str]:
    """All that need no compiler."""
    return [key for key in fitting(setting, pass_) if "compile" not in key]


@one_at_a_time(
    loss=LOSSES,
    dtype=["float32", "bfloat16", "float16", "float64"],
    target=["bool", "int64", "float", "sparse"],
    sizes=[(300, 700), (32, 16, 900)],
)
def test_all_compute_the_same(loss: str, dtype: str, target: str, sizes: tuple[int, ...]) -> None:
    """Against float64, step and forward; what compiles is in a test of its own."""
    rows, *features, labels = sizes
    setting = Setting(rows, labels, dtype, target, 0.05, features=sum(features), loss=loss)
    for pass_ in (STEP, FORWARD):
        known = checked(group(setting, eager(setting, pass_), pass_))
        assert {key: row.failed for key, row in known.items() if row.failed} == {}
        assert all(row.loss_error is not None for row in known.values())
        assert {OURS, "reference", loss if target != "sparse" else "scatter"} <= set(known)


@pytest.mark.exhaustive
@pytest.mark.parametrize("setting", [SETTING, LAYER, DENSE_LAYER, FOCAL])
def test_what_inductor_makes_computes_the_same(setting: Setting) -> None:
    chosen = [key for key in fitting(setting) if "compile" in key]
    assert {"ours-compiled", "compile"} <= set(chosen)
    assert not any(row.failed for row in checked(group(setting, chosen)).values())


def by_torch(setting: Setting, pos_weight: float) -> tuple[Tensor, ...]:
    """The mean loss and the gradients of the leaves, as PyTorch has them in float64."""
    sample = Samples(setting).take()
    leaves, y = [v.double().requires_grad_() for v in sample.values], sample.ready.double()
    logits = F.linear(*leaves) if setting.features else leaves[0]
    loss = F.binary_cross_entropy_with_logits(
        logits, y, pos_weight=torch.tensor(pos_weight).double(), reduction="none"
    )
    if setting.loss == "focal":
        loss = loss * torch.where(y > 0, torch.sigmoid(-logits), logits.sigmoid()) ** 2
    mean = loss.mean()
    return mean.detach(), *torch.autograd.grad(mean, leaves)


@pytest.mark.parametrize(
    "setting",
    [
        SETTING,
        Setting(8, 64, "float64", density=0.0),
        Setting(8, 64, density=1.0, pos_weight=0.0),
        LAYER,
        FOCAL,
        FOCAL_LAYER,
        Setting(7, 300, "float64", "sparse", 5 / 300, features=4),
    ],
)
def test_errors_are_against_float64(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are small, and the last one is smaller than the others."""
    monkeypatch.setattr("bench.accuracy.CHUNK", 500)
    sample = Samples(setting).take()
    eps = torch.finfo(getattr(torch, setting.dtype)).eps
    for pos_weight in (setting.pos_weight, 1.0):
        loss, *gradients = by_torch(setting, pos_weight)
        known_loss, known = truth(sample, setting, pos_weight)
        assert known_loss == pytest.approx(loss.item(), rel=1e-13)
        for got, wanted in zip(known, gradients, strict=True):
            torch.testing.assert_close(got.view_as(wanted), wanted, rtol=1e-10, atol=1e-17)
    for row in checked(group(setting, [OURS, setting.loss])).values():
        assert None not in (row.loss_error, row.gradient_error)
        assert 0 <= row.loss_error < 30 * eps
        assert 0 <= row.gradient_error < 1000 * eps
        if setting.dtype == "float32" and setting.pos_weight:  # some element is rounded
            assert row.gradient_error > 0


def test_no_more_of_the_gradient_is_compared_than_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.accuracy.CHUNK", 600)
    monkeypatch.setattr("bench.accuracy.MOST_CHECKED", 1000)
    _, known = truth(Samples(LAYER).take(), LAYER, 7.0)
    assert [len(gradient) for gradient in known] == [6, 200]
    assert not any(row.failed for row in checked(group(LAYER, eager(LAYER))).values())


def changed(change: Callable[..., Tensor]) -> Callable[..., Any]:
    """Makes what a change makes of the right loss and of what it is given."""

    def make(setting: Setting, device: str) -> Any:
        right = makers.ours(setting, device)
        return lambda *given: change(right(*given), *given)

    return make


def too_large(loss: Tensor, *_: Any) -> Tensor:
    return 1.0001 * loss


def not_a_number(loss: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    return loss + 0 * logits.log().sum()


def too_steep(which: int, loss: Tensor, *given: Any) -> Tensor:
    extra = given[which].sum()
    return loss + 1e-3 * (extra - extra.detach())


@pytest.mark.parametrize(
    ("setting", "change", "what"),
    [
        (SETTING, too_large, "loss"),
        (FOCAL, too_large, "loss"),
        (FOCAL_LAYER, too_large, "loss"),
        (SETTING, not_a_number, "loss"),
        # Sums of half precision may be off by more than float32's.
        (Setting(16, 2**16, "bfloat16"), lambda loss, *_: 0 * loss, "loss"),
        (SETTING, partial(too_steep, 0), "gradient"),
        (LAYER, partial(too_steep, 0), "gradient"),
        (LAYER, partial(too_steep, 1), "gradient"),
    ],
)
def test_what_is_wrong_is_not_timed(setting: Setting, change: Any, what: str) -> None:
    known = measured(group(setting, [OURS, with_make("masked", changed(change))]))
    assert [key for key, row in known.items() if row.disagrees] == ["masked"]
    assert known["masked"].seconds is None
    assert str(known["masked"].failed).startswith(
        (f"the {what} is", f"the {what} has a relative error")
    )


OVERFLOWS = "the loss or the gradient overflows float16"


def test_what_overflows_is_not_timed_and_no_fault_of_the_run() -> None:
    setting = Setting(6, 50, "float16", density=0.1, pos_weight=60000.0)
    known = measured(group(setting, [OURS, "bce"]))
    assert known[OURS].failed is None
    assert (known["bce"].failed, known["bce"].disagrees) == (OVERFLOWS, False)


def test_what_fails_is_reported_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("backend raised:\nno [compiler]\nat line 3")

    known = measured(group(SETTING, ["copy", OURS, with_make("masked", lambda *_: broken)]))
    assert [key for key, row in known.items() if row.seconds is None] == ["masked"]
    assert (known["masked"].failed, known["masked"].disagrees) == ("no [compiler]", False)
    report.show_group(report.Console(), [*known.values()])
    assert "masked multiply failed: no [compiler]" in capsys.readouterr().out


def test_what_is_faster_than_ours_has_a_star() -> None:
    ratios = {("bce", 0.95): "0.95x*", ("bce", 1.05): "1.05x", ("copy", 0.95): "0.95x"}
    ratios |= {("inplace", 0.95): "0.95x", ("bce", None): "-"}
    for (key, times), text in ratios.items():
        assert report.ratio(Row(SETTING, STEP, False, key, times_ours=times)) == text


@pytest.mark.parametrize(("limits", "rounds"), [((3,), 3), ((9, 0.0), 5)])
def test_rounds_end_with_the_time(limits: tuple[Any, ...], rounds: int) -> None:
    known = measured(group(SETTING, [OURS, "bce"]), *limits)
    assert {len(row.rounds) for row in known.values()} == {rounds}


def test_medians_of_rounds_and_of_their_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round in which the whole machine is slow does not count twice; the first one warms up."""
    ours, bce = group(SETTING, [OURS, "bce"])
    times = {
        ours: [99.0, 5.0, 1.0, 3.0, 2.0, 4.0, 6.0],
        bce: [1.0, 10.0, 2.0, 90.0, 4.0, 80.0, 6.0],
    }
    for one in times:
        one.seconds = partial(times[one].pop, 0)  # type: ignore[method-assign]
    timing.measure([ours, bce], 6)
    assert (ours.row.p20, ours.row.seconds, ours.row.p80) == (2.0, 3.5, 5.0)
    assert (bce.row.times_ours, ours.row.times_ours) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("setting", "key"), [(LAYER, "fused-step"), (SETTING, "bce"), (SETTING, "released")]
)
def test_an_untimed_step_comes_before_each_timed_one(setting: Setting, key: str) -> None:
    (one,) = group(setting, [key])
    steps: list[Any] = []
    one.step_before = steps.append
    sample = one.prepare()
    assert [before is sample for before in steps] == [False]


@pytest.mark.parametrize(("pass_", "outputs"), [(STEP, 3), (FORWARD, 1)])
def test_products(pass_: str, outputs: int) -> None:
    (products,) = group(LAYER, ["products"], pass_)
    assert products.samples.take().outputs == ()  # outputs are made when they are needed
    sample = products.prepare()
    for output in sample.outputs:
        output.zero_()
    products.run(sample)
    x, weight = sample.values
    logits = x @ weight.t()
    assert len(sample.outputs) == outputs
    for got, right in zip(sample.outputs, (logits, logits @ weight, logits.t() @ x), strict=False):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize(
    ("key", "has_gradient"), [(OURS, [True, True]), ("fused-step", [True, False])]
)
def test_steps_leave_the_weight_and_drop_gradients(key: str, has_gradient: list[bool]) -> None:
    (one,) = group(LAYER, [key])
    before = one.samples.take().values[1].clone()
    sample = one.prepare()
    assert sample.gradients_bytes == 0
    one.run(sample)
    assert [leaf.grad is not None for leaf in sample.leaves] == has_gradient
    assert sample.gradients_bytes > 0
    assert torch.equal(sample.leaves[1], before)
    assert one.samples.take() is not sample
    assert sample.gradients_bytes == 0


@pytest.mark.parametrize("target", ["bool", "float", "sparse"])
@pytest.mark.parametrize("features", [0, 8])
def test_samples_take_as_many_bytes_as_is_said(target: str, features: int) -> None:
    setting = SETTING._replace(target=target, features=features)
    sample = Samples(setting).take()
    given = [sample.target] if isinstance(sample.target, Tensor) else [*sample.target][:2]
    tensors = [*sample.values, *given, sample.ready, *sample.outputs]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    assert sum(held.values()) == setting.sample_bytes


ALONE = Setting(64, 2**15)
OF_LAYER = Setting(64, 2**15, target="sparse", density=5 / 2**15, features=32)


@pytest.mark.parametrize(
    ("setting", "key", "gradients", "beyond"),
    [
        (ALONE, OURS, 1, 0),
        (ALONE, "inplace", 1, -1),
        (ALONE, "bce", 1, 3),
        (OF_LAYER, OURS, 1, 0.1),
        (OF_LAYER, "fused-step", 64 / (64 + 2**15), 0.1),
        # The gradients are made after the loss's backward, where the peak is.
        (OF_LAYER, "unfused", 1, 2 - OF_LAYER.gradient_bytes / OF_LAYER.logits_bytes),
    ],
)
def test_peak_memory(setting: Setting, key: str, gradients: float, beyond: float) -> None:
    """The gradients are in units of all, what is beyond them in units of the logits."""
    peak, of_gradients = PEAK(key, setting) or (0, 0)
    assert of_gradients == round(gradients * setting.gradient_bytes)
    assert abs((peak - of_gradients) / setting.logits_bytes - beyond) <= 0.25


def test_the_peak_becomes_part_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PEAK("scatter", ALONE) is None  # it fails without sparse labels
    monkeypatch.setattr(timing, "peak", lambda *_: (1000, 300))
    monkeypatch.setattr(timing, "PEAKS", range(SETTING.elements, SETTING.elements + 1))
    row = measured(group(LAYER, [OURS]))[OURS]
    assert (row.peak_bytes, row.beyond_bytes, row.peak_gradients) == (1000, 700, None)
    known = measured(group(SETTING, ["copy", OURS]))
    assert known[OURS].peak_gradients == 1000 / SETTING.gradient_bytes
    assert known["copy"].peak_bytes is known[OURS].beyond_bytes is None
    others = group(SETTING._replace(rows=9), [OURS]), group(SETTING, [OURS], FORWARD)
    assert [measured(one)[OURS].peak_bytes for one in others] == [None, None]


@pytest.mark.parametrize("most", [0, 2**30])
def test_large_gradients_are_alone(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients take turns in memory only as far as weighted_bce keeps the memory of all."""
    monkeypatch.setattr(samples_module, "MOST_KEPT", most)
    samples = Samples(SETTING)
    samples.count = 3
    for _ in range(4):
        sample = samples.take()
        (leaf,) = sample.leaves
        leaf.grad = torch.zeros_like(leaf)
    held = [one.leaves[0].grad is not None for one in samples.all]
    assert sum(held) == (1 if most == 0 else 3)
