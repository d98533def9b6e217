"""A GradScaler and a fused step take the steps that they take with an ordinary optimizer."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam

from weighted_bce import FusedAdam, FusedSGD, LinearWeightedBCEWithLogitsLoss

pytestmark = pytest.mark.usefixtures("one_thread")

FEATURES, LABELS = 12, 150


class Model(nn.Module):
    """An encoder and a criterion."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(FEATURES, FEATURES)
        self.criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, chunk_labels=64)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.encoder(x), y)
        return loss


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(7, FEATURES, generator=generator),
            torch.rand(7, LABELS, generator=generator) < 0.1,
        )
        for _ in range(number)
    ]


def overflow(x: Tensor, loss: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Returns an input or a loss that overflows as it says."""
    if how == "input":
        return torch.where(torch.arange(FEATURES) == 3, torch.inf, x), loss
    return x, loss * torch.tensor(torch.inf if how == "loss" else torch.nan)


def assert_same(before: list[Tensor], model: Model) -> None:
    torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)


KINDS = [(FusedSGD, SGD, {"lr": 0.5, "momentum": 0.9}), (FusedAdam, Adam, {"lr": 0.01})]


@pytest.mark.parametrize("of_torch", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("how", ["input", "loss", "nan"])
@pytest.mark.parametrize(("kind", "ordinary", "options"), KINDS)
def test_steps_that_overflow_are_left_out(
    device: str, kind: Any, ordinary: Any, options: Any, how: str, unscales: bool, of_torch: bool
) -> None:
    """Both protocols: with fused=True the optimizer gets found_inf, and otherwise the scaler leaves
    the step out. The first step overflows, and another one in the middle."""
    ends = []
    for chosen in (ordinary, kind):
        model = Model().to(device)
        # torch's fused SGD has no momentum after a first step that is left out (seen in 2.13).
        optimizer = chosen(model.parameters(), **options, fused=of_torch and chosen is kind)
        model.criterion.fused_step = optimizer if chosen is kind else None
        scaler = GradScaler(device, init_scale=2.0**10, growth_interval=2)
        for i, (x, y) in enumerate(batches(7)):
            before = [p.detach().clone() for p in model.parameters()]
            x, y = x.to(device), y.to(device)
            if i in (0, 3) and how == "input":
                x, _ = overflow(x.cpu(), x, how)
            loss = model(x.to(device), y)
            if i in (0, 3) and how != "input":
                _, loss = overflow(x, loss, how)
            scaler.scale(loss).backward()
            if unscales:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 1e-2)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if i in (0, 3):
                assert_same(before, model)
        ends.append(([p.detach() for p in model.parameters()], scaler.get_scale()))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["input", "loss", "factor", "penalty"])
def test_each_cause_of_an_overflow_is_seen(what: str) -> None:
    """The weight has the only gradient, and nothing else overflows."""
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, bias=False, chunk_labels=64)
    weight = criterion.linear.weight
    nn.init.constant_(weight, -1.0 if what == "input" else 10.0)
    optimizer = FusedSGD([weight], lr=1.0, accumulate=2)
    criterion.fused_step = optimizer
    scaler = GradScaler("cpu", init_scale=4.0)
    x, y = torch.ones(7, FEATURES), torch.zeros(7, LABELS)
    if what in ("input", "loss"):
        x[2, 3] = torch.inf if what == "input" else 1e38
    loss = criterion(x, y)
    assert loss.isfinite() == (what != "loss")
    before = weight.detach().clone()
    scaler.scale(loss * (torch.inf if what == "factor" else 1)).backward()
    if what == "penalty":
        scaler.scale(weight.sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert torch.equal(weight, before)


@pytest.mark.parametrize("of_torch", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("how", ["input", "loss", "nan", "penalty"])
def test_the_deferred_gradient_alone_shows_an_overflow(how: str, of_torch: bool) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, bias=False)
    optimizer = FusedAdam(criterion.parameters(), lr=0.1, fused=of_torch)
    criterion.fused_step = optimizer
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for i, (x, y) in enumerate(batches(3)):
        before = criterion.linear.weight.detach().clone()
        if i == 1 and how == "input":
            x, _ = overflow(x, x, how)
        loss = criterion(x, y)
        if i == 1 and how == "penalty":
            loss = loss + (criterion.linear.weight * torch.inf).sum().nan_to_num()
        elif i == 1 and how != "input":
            _, loss = overflow(x, loss, how)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, criterion.linear.weight) == (i == 1)
        assert torch.isfinite(criterion.linear.weight).all()
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("of_torch", [False, True], ids=["", "fused"])
def test_a_divisor_of_ones_own(of_torch: bool) -> None:
    """grad_scale divides all gradients once, survives copies, and is refused with a scaler."""
    ends = []
    for scale in (1.0, 1024.0):
        model = Model()
        optimizer = FusedSGD(model.parameters(), lr=0.5, fused=of_torch)
        if scale != 1:
            optimizer.grad_scale = scale
        model.criterion.fused_step = optimizer
        for x, y in batches(2):
            (scale * model(x, y)).backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[1], ends[0])
    assert copy.deepcopy(optimizer).grad_scale == 1024.0
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 0.5

    for unscales in (False, True):
        scaler = GradScaler("cpu", init_scale=1024.0)
        optimizer.grad_scale = 1024.0
        scaler.scale(model(x, y)).backward()
        if unscales:
            scaler.unscale_(optimizer)
        before = [p.detach().clone() for p in model.parameters()]
        message = "grad_scale must not be set if GradScaler.step() is called, which divides the "
        with pytest.raises(ValueError, match=re.escape(message)):
            scaler.step(optimizer)
        torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)
        optimizer.zero_grad()
        optimizer.__dict__.pop("found_inf", None)
    del optimizer.grad_scale
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("factor", [1e-42, 3e38])
def test_an_extreme_factor_leaves_the_next_step_alone(factor: float) -> None:
    """The gradients that are made in advance for it would be 0 or infinite."""
    grads = []
    for is_fused in (False, True):
        model = Model()
        model.criterion.reduction = "sum"
        if is_fused:
            model.criterion.fused_step = FusedSGD(model.parameters(), lr=1.0)
        for number, (x, y) in zip((factor, 1.0), batches(2), strict=True):
            model.zero_grad()
            (model(x, y) * number).backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)
