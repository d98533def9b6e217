"""When a fused step may be taken, and what may change before it."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss

from .fused_cases import FEATURES, LABELS, ROWS, batch, criterion, step, waiting

pytestmark = pytest.mark.usefixtures("one_thread")


def test_another_backward_pass_needs_a_step() -> None:
    """It raises before anything has changed; asking for other gradients is no such pass."""
    model, _ = waiting()
    bias_grad = model.linear.bias.grad.clone()
    x, y = batch(model)
    torch.autograd.grad(model(x.requires_grad_(), y), x)
    message = "fused_step must take a step() after 1 backward pass, as its argument accumulate says"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        model(x, y).backward()
    assert x.grad is None
    assert torch.equal(model.linear.bias.grad, bias_grad)
    model.fused_step.step()
    model(x, y).backward()
    assert torch.equal(
        model.linear.bias.grad, torch.autograd.grad(model(x, y), model.linear.bias)[0]
    )


def test_as_many_backward_passes_as_announced() -> None:
    """Two calls in one loss are one pass."""
    model = criterion()
    model.fused_step = FusedSGD(model.parameters(), lr=1.0, accumulate=2)
    for _ in range(2):
        for _ in range(2):
            (model(*batch(model)) + model(*batch(model))).backward()
        with pytest.raises(
            RuntimeError, match="must take a step\\(\\) after 2 backward passes, as"
        ):
            model(*batch(model)).backward()
        model.fused_step.step()


def test_a_second_step_changes_nothing() -> None:
    model, _ = waiting()
    model.fused_step.step()
    before = [p.clone() for p in model.parameters()]
    model.fused_step.step()
    torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["weight", "bias", "target", "pos_weight"])
def test_what_it_is_computed_from_must_not_change(name: str) -> None:
    model = criterion()
    model.pos_weight = torch.rand(LABELS)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    model(x, y).backward()
    tensors = {"target": y, "pos_weight": model.pos_weight}
    parameters = dict(model.linear.named_parameters())
    with torch.no_grad():
        (tensors | parameters)[name].fill_(1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="must not be modified between the forward pass and the"):
        model.fused_step.step()
    torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)
    assert model.linear.weight.grad is not None
    model.zero_grad()
    model(x, y).backward()
    model.fused_step.step()
    assert not torch.equal(before[0], model.linear.weight)


def test_memory_of_the_input_and_the_factor_may_be_used_again() -> None:
    model, other = criterion(), criterion()
    x, y = batch(model)
    factor = torch.tensor(2.0)
    other(x, y).backward(factor)
    step(other, SGD(other.parameters(), lr=1.0))
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    model(x, y).backward(factor)
    x.zero_()
    factor.zero_()
    model.fused_step.step()
    assert torch.equal(model.linear.weight, other.linear.weight)


def test_the_weight_of_another_layer_is_an_input() -> None:
    """One optimizer has both, and updates that layer first."""
    ends = []
    for kind in (SGD, FusedSGD):
        torch.manual_seed(0)
        first, second = criterion(), criterion()
        optimizer = kind([*first.parameters(), *second.parameters()], lr=1.0)
        first.fused_step = second.fused_step = optimizer if kind is FusedSGD else None
        x, y = batch(first)
        step(first, optimizer, first(x, y) + second(first.linear.weight[:ROWS], y))
        ends.append([p.detach() for p in (*first.parameters(), *second.parameters())])
    torch.testing.assert_close(ends[0], ends[1])


def test_no_rows_and_no_labels() -> None:
    model = criterion(reduction="sum")
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    before = model.linear.weight.detach().clone()
    x, y = batch(model, 0)
    model(x.requires_grad_(), y).backward()
    assert clip_grad_norm_(model.parameters(), 1.0) == 0
    model.fused_step.step()
    assert torch.equal(model.linear.weight, before)
    empty = LinearWeightedBCEWithLogitsLoss(FEATURES, 0, reduction="sum")
    empty.fused_step = FusedSGD(empty.parameters(), lr=1.0)
    empty(torch.randn(2, FEATURES), torch.zeros(2, 0)).backward()
    assert clip_grad_norm_(empty.parameters(), 1.0) == 0
    empty.fused_step.step()


def test_half_precision_is_rounded_once() -> None:
    """A loss scale of a GradScaler is divided out before the gradient is rounded."""
    model = criterion(dtype=torch.float16)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    x = x.half()
    (wanted,) = torch.autograd.grad(model(x, y), model.linear.weight)
    (model(x, y) * 2.0**30).backward()
    assert not torch.isfinite(model.linear.weight.grad.clone().whole()).all()
    model.linear.weight.grad /= 2.0**30
    assert torch.equal(model.linear.weight.grad.whole(), wanted)


def test_the_weight_need_not_be_contiguous() -> None:
    model, other = criterion(), criterion()
    for made in (model, other):
        weight = made.linear.weight.detach().t().contiguous().t()
        made.linear.weight = nn.Parameter(weight)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    model(x, y).backward()
    assert model.linear.weight.grad.stride() == model.linear.weight.stride()
    assert model.linear.weight.grad.clone().whole().stride() == model.linear.weight.stride()
    model.fused_step.step()
    step(other, SGD(other.parameters(), lr=1.0), other(x, y))
    assert torch.equal(model.linear.weight, other.linear.weight)


def test_a_gradient_that_was_replaced_has_as_many_backward_passes() -> None:
    model = criterion()
    model.fused_step = FusedSGD(model.parameters(), lr=1.0, accumulate=2)
    weight, (x, y) = model.linear.weight, batch(model)
    for _ in range(2):
        model(x, y).backward()
        weight.grad = weight.grad / 2
    with pytest.raises(RuntimeError, match="got another backward pass"):
        model(x, y).backward()
    model.fused_step.zero_grad()
    model(x, y).backward()
