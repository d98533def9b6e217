"""What the benchmark times computes what it should, and the times are made right."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")


from bench import __main__, contenders, losses, makers, report, run, timing
from bench.contenders import Group
from bench.losses import BY_KEY, LOSSES, fitting, lack
from bench.names import COPY, FORWARD, OURS, STEP
from bench.records import rows_of
from bench.samples import Samples
from bench.settings import Setting
from bench.timing import Limits, measure

SETTING = Setting(6, 50, density=0.1)


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny inputs: threads would only wait for each other, and samples need not fill the cache."""
    torch.set_num_threads(1)
    monkeypatch.setattr("bench.samples.MOST", 3)


def test_no_loss_at_all_is_wrong_in_half_precision() -> None:
    """Although its sums may be off by more than float32's."""
    setting = Setting(16, 2**16, "bfloat16")
    nothing = BY_KEY["bce"]._replace(make=lambda *_: lambda logits, _: 0 * logits.sum())
    samples = Samples(setting)
    group = contenders.group(FORWARD, [nothing, BY_KEY["masked"]], samples)
    failures, _ = timing._checked(group, samples, lambda _: None)
    assert list(failures) == ["bce"]
    assert failures["bce"].disagrees


def test_peak_memory() -> None:
    from bench.peak import peak

    setting = Setting(64, 2**15)
    for key, gradients in ((OURS, 1), ("inplace", 0), ("bce", 4)):
        found = peak(key, setting)
        assert found is not None
        assert abs(found.bytes / setting.gradient_bytes - gradients) < 0.3
        assert found.gradients == setting.gradient_bytes
    assert peak("scatter", setting) is None  # it fails, for want of sparse labels


@pytest.mark.parametrize("target", ["bool", "int64", "float", "sparse"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_all_compute_the_same(dtype: str, target: str) -> None:
    """Against float64, step and forward; what compiles is in a test of its own."""
    setting = Setting(300, 700, dtype, target, 0.05)
    for pass_ in (STEP, FORWARD):
        chosen = [
            loss
            for loss in fitting(setting, pass_, "cpu")
            if not (loss.compiles or lack(loss.needs))
        ]
        samples = Samples(setting)
        group = contenders.group(pass_, chosen, samples)
        failures, found = timing._checked(group, samples, lambda _: None)
        assert failures == {}
        assert len(found) == len(chosen)


@pytest.mark.exhaustive
def test_what_inductor_makes_computes_the_same() -> None:
    chosen = [loss for loss in LOSSES if loss.compiles]
    samples = Samples(SETTING)
    group = contenders.group(STEP, chosen, samples)
    assert timing._checked(group, samples, lambda _: None)[0] == {}


EDGES = (
    SETTING,
    Setting(8, 64, "float64", density=0.0),
    Setting(8, 64, density=1.0, pos_weight=0.0),
)


@pytest.mark.parametrize("setting", EDGES)
def test_errors_are_against_float64(setting: Setting) -> None:
    samples = Samples(setting)
    group = contenders.group(STEP, [BY_KEY[OURS], BY_KEY["bce"]], samples)
    _, found = timing._checked(group, samples, lambda _: None)
    eps = torch.finfo(getattr(torch, setting.dtype)).eps
    for error in found.values():
        assert 0 <= error.loss < 2 * eps
        assert error.gradient is not None
        assert 0 <= error.gradient < 100 * eps
    x = samples.take().values[0].double().requires_grad_()
    y, p = samples.take().ready.double(), torch.tensor(setting.pos_weight, dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(x, y, pos_weight=p)
    known = timing.truth(samples.take(), setting.pos_weight, True)
    assert known.loss == pytest.approx(loss.item(), rel=1e-14)
    slope = torch.autograd.grad(loss, x)[0].flatten()
    torch.testing.assert_close(known.gradients[0], slope, rtol=1e-12, atol=1e-17)


def with_loss(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Group, Samples]:
    samples = Samples(SETTING)
    other = BY_KEY["timm"]._replace(make=lambda *_: function)
    chosen = [BY_KEY[key] for key in (OURS, "masked", "bce")]
    return contenders.group(STEP, [*chosen, other], samples), samples


def right_loss(logits: Tensor, target: Tensor) -> Tensor:
    return makers.bce(SETTING, "cpu")(logits, target)


def other_loss(logits: Tensor, target: Tensor) -> Tensor:
    p = torch.tensor(7.01)
    return F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=p)


def other_gradient(logits: Tensor, target: Tensor) -> Tensor:
    loss = right_loss(logits, target)
    return loss + 1e-3 * (loss - loss.detach())


def not_a_number(logits: Tensor, target: Tensor) -> Tensor:
    return right_loss(logits, target) + 0 * logits.log().sum()


@pytest.mark.parametrize(
    ("function", "what"),
    [(other_loss, "loss"), (other_gradient, "gradient"), (not_a_number, "loss")],
)
def test_what_is_wrong_is_not_timed(
    function: Callable[[Tensor, Tensor], Tensor], what: str
) -> None:
    *others, wrong = measure(*with_loss(function), Limits(1)).results
    assert wrong.disagrees
    assert wrong.seconds is None
    assert wrong.failed is not None
    assert wrong.failed.startswith(f"the {what} is")
    assert not any(result.disagrees for result in others)


def test_what_overflows_is_not_timed_and_no_fault_of_the_run() -> None:
    setting = Setting(6, 50, "float16", density=0.1, pos_weight=60000.0)
    samples = Samples(setting)
    group = contenders.group(STEP, [BY_KEY[OURS], BY_KEY["bce"]], samples)
    *_, ours, other = measure(group, samples, Limits(1)).results
    assert ours.failed is None
    assert (other.failed, other.disagrees) == ("it overflows float16", False)


def test_a_wrong_contender_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", lambda x, *_, **__: x.sum())
    given = ["--quick", "--shapes", "8x50", "--rounds", "1", "--against", "bce"]
    assert __main__.main(given) == 1
    printed = capsys.readouterr()
    assert "F.bce_with_logits failed: the loss is" in printed.out
    assert "something else" in printed.err


def test_what_fails_is_reported_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("backend raised:\nno [compiler]\nat line 3")

    group, samples = with_loss(broken)
    measured = measure(group, samples, Limits(1))
    *others, failed = measured.results
    assert (failed.contender, failed.failed, failed.seconds) == ("timm", "no [compiler]", None)
    assert not failed.disagrees
    assert all(result.seconds is not None for result in others)
    report.show_group(report.Console(), "", rows_of(group, measured.results), 0.5)
    printed = capsys.readouterr().out
    assert "timm BinaryCrossEntropy failed: no [compiler]" in printed
    assert "Other programs took 50% of the CPU" in printed


def test_what_is_faster_than_ours_is_marked() -> None:
    head = {"failed": None, "fits": True}
    faster = {**head, "contender": "bce", "times_ours": 0.95}
    assert report.ratio(faster) == "0.95x*"
    assert report.ratio({**faster, "times_ours": 1.05}) == "1.05x"
    assert report.ratio({**faster, "contender": COPY}) == "0.95x"


def test_rounds_end_with_the_time() -> None:
    group, samples = with_loss(right_loss)
    for limits, rounds in ((Limits(3), 3), (Limits(9, 0.0), 5)):
        results = measure(group, samples, limits).results
        assert {len(result.rounds) for result in results} == {rounds}


@pytest.mark.parametrize("package", [None, "raise RuntimeError('of another torch')"])
def test_what_cannot_be_imported_is_skipped_by_name(
    package: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    name, why = "not_there", "not_there is not installed"
    if package is not None:
        name, why = "broken_one", "broken_one does not import: of another torch"
        (tmp_path / f"{name}.py").write_text(package)
        monkeypatch.syspath_prepend(tmp_path)
    changed = tuple(loss._replace(needs=name) if loss.key == "timm" else loss for loss in LOSSES)
    monkeypatch.setattr(losses, "LOSSES", changed)
    monkeypatch.setattr(run, "LOSSES", changed)
    given = ["--quick", "--shapes", "8x50", "--rounds", "1", "--against", "timm,bce"]
    assert __main__.main(given) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"timm BinaryCrossEntropy: skipped, {why}" in printed
    assert "torchvision" not in printed.partition("Times of ours")[0]


def focal_loss(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> Any:
    """As torchvision documents it."""
    matrix = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    assert (gamma, reduction) == (0.0, "mean")
    return ((alpha * targets + (1 - alpha) * (1 - targets)) * matrix).mean()


def test_what_torchvision_would_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed."""
    pretended = SimpleNamespace(sigmoid_focal_loss=focal_loss)
    monkeypatch.setattr(makers, "import_module", lambda _: pretended)
    samples = Samples(SETTING)
    group = contenders.group(STEP, [BY_KEY["torchvision"]], samples)
    assert timing._checked(group, samples, lambda _: None)[0] == {}


def test_ratios_are_of_each_round() -> None:
    """A round in which the whole machine is slow does not count twice."""
    assert timing.median_ratio([2.0, 40.0, 9.0], [1.0, 20.0, 3.0]) == 2.0
    assert timing.median_ratio([1.0], None) is None


def test_percentiles() -> None:
    assert timing.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 5.0)
    assert timing.percentiles([7.0]) == (7.0, 7.0)
