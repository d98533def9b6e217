"""Trainers end at the weights of the ordinary optimizer, with one optimizer object for a model.

They are accelerate, Lightning, its Fabric and Transformers as they are by default, and plain loops.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from weighted_bce import FusedAdam
from weighted_bce.linear._deferred import DeferredGrad

from ..linear_cases import assert_all_near
from .trainers import (
    BATCHES,
    KINDS,
    TRAINERS,
    Classifier,
    Run,
    lightning_module,
    lightning_trainer,
    loader,
    optimizer_of,
    transformers_trainer,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),  # such as that of a scheduler
    pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec"),
]
OPTIONS = [{}, {"clip": 1.0}, {"accumulate": 4}, {"accumulate": 4, "clip": 1.0}]


@pytest.fixture(autouse=True)
def _without_a_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs the gradient of the classifier's weight as one matrix."""

    def whole(self: DeferredGrad) -> None:
        raise AssertionError("the whole gradient of the weight was made")

    monkeypatch.setattr(DeferredGrad, "whole", whole)


def trained(name: str, kind: str, in_chunks: bool, folder: Path, **options: Any) -> Run:
    """Returns a run that has ended."""
    more = {"accumulate": options.get("accumulate", 1)} if in_chunks else {}
    model = Classifier()
    run = Run(model, optimizer_of(model, kind, in_chunks, **more), folder, **options)
    TRAINERS[name](run)
    return run


def of_both(train: Callable[[bool], Any]) -> tuple[Any, Any]:
    """Returns what comes of the fused optimizer, and of the ordinary one."""
    return train(True), train(False)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    pairs = ([p.detach() for p in model.parameters()] for model in (one, other))
    assert_all_near(*pairs, 1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINERS)
def test_same_weights_as_the_ordinary_optimizer(
    tmp_path: Path, name: str, kind: str, options: dict[str, Any]
) -> None:
    """The last group of micro-batches has 3 of 4. Hooks of the optimizer see each step once."""
    one, other = of_both(lambda in_chunks: trained(name, kind, in_chunks, tmp_path, **options))
    assert_same(one.model, other.model)
    assert one.steps == other.steps == 2 * (3 if "accumulate" in options else BATCHES)
    assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_clipping_above_clips(tmp_path: Path, kind: str) -> None:
    one, other = (trained("torch", kind, False, tmp_path, clip=clip) for clip in (1.0, None))
    with pytest.raises(AssertionError, match="not close"):
        assert_same(one.model, other.model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINERS)
def test_goes_on_from_a_checkpoint(tmp_path: Path, name: str, kind: str) -> None:
    trained(name, kind, True, tmp_path, epochs=1, saves=True)
    model = Classifier(seed=3)
    run = Run(model, optimizer_of(model, kind, True), tmp_path, resumes=True)
    TRAINERS[name](run)
    assert_same(model, trained(name, kind, False, tmp_path).model)
    assert run.steps == BATCHES


@pytest.mark.parametrize("announced", [1, 2])
@pytest.mark.parametrize("name", TRAINERS)
def test_accumulation_that_was_not_announced(tmp_path: Path, name: str, announced: int) -> None:
    model = Classifier()
    before = copy.deepcopy(model)
    optimizer = optimizer_of(model, "adam", True, accumulate=announced)
    run = Run(model, optimizer, tmp_path, accumulate=4)
    with pytest.raises(RuntimeError, match="make the optimizer with a larger accumulate"):
        TRAINERS[name](run)
    assert_same(model, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_grad_scaler_skips_a_step_that_overflows(kind: str, fused: bool, is_alone: bool) -> None:
    """Both of its protocols: it divides the gradients, or an optimizer with fused=True does.

    A weight that is alone has the only gradient.
    """

    def train(in_chunks: bool) -> tuple[Classifier, list[float]]:
        model, scales = Classifier(), []
        if is_alone:
            model.encoder.requires_grad_(False)
            model.criterion.linear.bias = None
        more = {"accumulate": 2} if in_chunks else {}
        optimizer = optimizer_of(model, kind, in_chunks, fused=fused, **more)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        for i, (x, labels) in enumerate(2 * [*loader()], 1):
            x = torch.full_like(x, torch.inf) if i == 9 else x
            scaler.scale(model(x, labels)["loss"] / 2).backward()
            if i % 2 == 0:
                if not fused:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                scales.append(scaler.get_scale())
        return model, scales

    (one, scales), (other, wanted) = of_both(train)
    assert scales == wanted == [1024.0] * 2 + [2048.0] * 2 + [1024.0] * 3 + [2048.0] * 3 + [4096.0]
    assert all(p.isfinite().all() for p in one.parameters())
    assert_same(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_model", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad_drops_what_was_accumulated(kind: str, by_model: bool, set_to_none: bool) -> None:
    def train(in_chunks: bool) -> Classifier:
        model = Classifier()
        optimizer = optimizer_of(model, kind, in_chunks)
        for x, labels in loader():
            model(-x, labels)["loss"].backward()
            (model if by_model else optimizer).zero_grad(set_to_none)
            model(x, labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    assert_same(*of_both(train))


@pytest.mark.parametrize("fused", [False, True])
def test_lightning_in_half_precision(tmp_path: Path, fused: bool) -> None:
    """The first steps overflow, which torch's scheduler notices where they are skipped."""
    precision = pytest.importorskip("lightning.pytorch.plugins").MixedPrecision

    def train(in_chunks: bool) -> tuple[Classifier, float]:
        model, scaler = Classifier(), torch.amp.GradScaler("cpu", init_scale=2.0**20)
        optimizer = optimizer_of(model, "adam", in_chunks, fused=fused)
        more = {"plugins": precision("16-mixed", "cpu", scaler)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            run = Run(model, optimizer, tmp_path, clip=None if fused else 1.0, more=more)
            TRAINERS["lightning"](run)
        return model, scaler.get_scale()

    (one, scale), (other, wanted) = of_both(train)
    assert scale == wanted < 2.0**20
    assert_same(one, other)


def test_lightning_with_two_optimizers(tmp_path: Path) -> None:
    def train(in_chunks: bool) -> Classifier:
        model = Classifier()
        module = lightning_module(model, [*optimizer_of(model, "chained", in_chunks).optimizers])
        lightning_trainer(tmp_path, max_epochs=2).fit(module, loader())
        return model

    assert_same(*of_both(train))


def test_lightning_with_an_average_of_the_weights(tmp_path: Path) -> None:
    """It becomes the model at the end of the training."""
    average = pytest.importorskip("lightning.pytorch.callbacks").EMAWeightAveraging

    def train(in_chunks: bool) -> Classifier:
        more = {"callbacks": [average(decay=0.9)]}
        return trained("lightning", "adam", in_chunks, tmp_path, more=more).model

    assert_same(*of_both(train))


def test_transformers_makes_the_optimizer(tmp_path: Path) -> None:
    """By its own defaults: it clips, the rate falls, and biases do not decay."""

    def train(in_chunks: bool) -> Classifier:
        model = Classifier()
        adam = FusedAdam, {"lr": 0.01, "decoupled_weight_decay": True}
        arguments = {"learning_rate": 0.01, "weight_decay": 0.5, "save_strategy": "no"}
        more = {"optimizer_cls_and_kwargs": adam} if in_chunks else {}
        transformers_trainer(model, tmp_path, arguments, **more).train()
        return model

    one, other = of_both(train)
    groups = one.criterion.fused_step.param_groups
    for p, decay in ((one.criterion.linear.weight, 0.5), (one.criterion.linear.bias, 0.0)):
        assert [g["weight_decay"] for g in groups if any(p is q for q in g["params"])] == [decay]
    assert_same(one, other)


def test_a_wrapper_is_no_fused_step() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = Classifier()
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer_of(model, "adam", True))
    model.criterion.fused_step = wrapped
    with pytest.raises(TypeError, match="or a function, got AcceleratedOptimizer"):
        model(*next(iter(loader())))


def test_copies_and_averages_have_no_step() -> None:
    """A copy takes no part in the training, and computes the loss of its own weights."""

    def train(in_chunks: bool) -> tuple[Classifier, AveragedModel]:
        model = Classifier()
        optimizer = optimizer_of(model, "adam", in_chunks)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        for x, labels in loader():
            model(x, labels)["loss"].backward()
            copied = copy.deepcopy(model)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
        for each in (copied, average.module):
            assert each.criterion.fused_step is None
        return model, average

    (one, average), (other, wanted) = of_both(train)
    assert_same(one, other)
    assert_same(average, wanted)
    before = copy.deepcopy(one)
    batch = next(iter(loader()))
    losses = [each.eval()(*batch)["loss"] for each in (average, wanted)]
    assert_all_near([losses[0].detach()], [losses[1].detach()], 1e-5)
    losses[0].backward()
    assert type(average.module.criterion.linear.weight.grad) is torch.Tensor
    assert one.criterion.linear.weight.grad is None
    assert_same(one, before)
