"""The drop-ins are the formulas of other packages where those are right, and right elsewhere."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weighted_bce import (
    Asymmetric,
    AsymmetricLoss,
    MultilabelLoss,
    sigmoid_focal_loss,
)

from .comparison import outcome
from .originals import asymmetric, focal
from .truth import labels, logits, positives_of

GAMMAS = 0.0, 0.5, 2.0, 2.7


def moderate(device: str) -> tuple[Tensor, Tensor]:
    """Logits at which the original formulas have their digits, and targets of 0 and 1."""
    x = logits(9, 13, dtype=torch.float64, device=device).clamp(-8, 8)
    return x, (torch.rand(9, 13, device=device) < 0.3).double()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [-1, 0, 0.25, 1])
def test_focal(device: str, chosen: str, alpha: float, reduction: str) -> None:
    x, y = moderate(device)
    for gamma in GAMMAS:
        args = alpha, gamma, reduction
        actual = outcome(lambda x, args=args: sigmoid_focal_loss(x, y, *args), x)
        expected = outcome(lambda x, args=args: focal(x, y, *args), x)
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=0)
    default = sigmoid_focal_loss(x, y)
    torch.testing.assert_close(default, focal(x, y, 0.25, 2.0, "none"), rtol=1e-8, atol=0)
    assert torch.equal(sigmoid_focal_loss(inputs=x, targets=y.bool()), default)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("clip", [None, 0, 0.05])
def test_asymmetric(device: str, chosen: str, clip: float | None, detach: bool) -> None:
    x, y = moderate(device)
    for gamma_neg, gamma_pos in product(GAMMAS, GAMMAS):
        criterion = AsymmetricLoss(gamma_neg, gamma_pos, clip, 1e-8, detach)
        original = partial(asymmetric, y=y, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        loss, grad = outcome(lambda x, criterion=criterion: criterion(x, y), x)
        expected, slope = outcome(partial(original, detach=detach), x)
        torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
        # A power below 1 has an infinite slope at 0, where autograd multiplies it by 0.
        lost = slope.isnan()
        assert not lost.any() or (clip and 0 < gamma_neg < 1 and not detach)
        assert not grad[lost].any()
        torch.testing.assert_close(grad[~lost], slope[~lost], rtol=1e-8, atol=1e-15)


def test_asymmetric_with_options(device: str, chosen: str) -> None:
    """The defaults, reductions, weights and sparse labels are those of MultilabelLoss."""
    x, y = moderate(device)
    weight, pos_weight = torch.rand(9, 1, device=device), torch.rand(13, device=device) * 5
    torch.testing.assert_close(AsymmetricLoss()(x, y), asymmetric(x, y, 4, 1, 0.05))
    for reduction in ("none", "mean", "sum", "batchmean", torch.amax):
        given: Any = dict(reduction=reduction, weight=weight, pos_weight=pos_weight)
        for target in (y, y.bool(), positives_of(y)):
            actual = AsymmetricLoss(2, 0, 0.2, **given)(x, target)
            expected = MultilabelLoss(Asymmetric(2, 0, 0.2), **given)(x, y)
            torch.testing.assert_close(actual, expected)


def test_the_module_is_one_of_ours() -> None:
    criterion = AsymmetricLoss(pos_weight=torch.rand(5))
    assert repr(criterion) == (
        "AsymmetricLoss(Asymmetric(gamma_neg=4, gamma_pos=1, clip=0.05, detach_focus=False), "
        "pos_weight=tensor(5,), reduction='sum')"
    )
    assert set(criterion.state_dict()) == {"pos_weight"}
    for again in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert repr(again) == repr(criterion)
        assert again.loss == criterion.loss
        assert torch.equal(again.pos_weight, criterion.pos_weight)
    assert "clip=0.0, detach_focus=True" in repr(AsymmetricLoss(4, 1, None, 1e-8, True))


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        (partial(sigmoid_focal_loss, reduction="mean"), partial(focal, reduction="mean")),
        (AsymmetricLoss(), partial(asymmetric, gamma_neg=4, gamma_pos=1, clip=0.05)),
    ],
    ids=["focal", "asymmetric"],
)
def test_a_training_goes_the_same_way(device: str, chosen: str, ours: Any, original: Any) -> None:
    def trained(loss: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)).to(device).double()
        x, y = torch.randn(20, 12).to(device).double(), labels(20, 5, dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            loss(model(x), (y > 0).to(device, x.dtype)).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(trained(ours), trained(original), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: sigmoid_focal_loss(x, x, reduction="avg"), ValueError, "reduction must be"),
        (lambda x: sigmoid_focal_loss(x, x, alpha=1.5), ValueError, r"alpha must be in \[0, 1\]"),
        (lambda x: sigmoid_focal_loss(x, x, alpha="a"), TypeError, "alpha must be a number, got"),
        (lambda x: sigmoid_focal_loss(x, x, gamma=-1), ValueError, "gamma must be a finite"),
        (lambda x: sigmoid_focal_loss(x, x[0]), ValueError, "target must have shape"),
        (lambda x: AsymmetricLoss(clip=-0.1), ValueError, r"clip must be in \[0, 1\), got -0.1"),
        (lambda x: AsymmetricLoss(gamma_neg=-1), ValueError, "gamma_neg must be a finite"),
        (lambda x: AsymmetricLoss(reduction="avg"), ValueError, "reduction must be"),
        (lambda x: AsymmetricLoss(4, 1, 0.05, 1e-8, False, "mean"), TypeError, "positional"),
    ],
)
def test_errors(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(torch.zeros(2, 3))


def test_soft_targets_weigh_the_two_terms(device: str, chosen: str) -> None:
    x = logits(9, 13, dtype=torch.float64, device=device)
    y = torch.rand_like(x)
    ends = (torch.ones_like(y), torch.zeros_like(y))
    for loss in (sigmoid_focal_loss, AsymmetricLoss(reduction="none")):
        of_positive, of_negative = (loss(x, end) for end in ends)
        torch.testing.assert_close(loss(x, y), y * of_positive + (1 - y) * of_negative)
