"""The terms of the losses at infinite and huge logits, and at an edge."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from weighted_bce import Asymmetric, Focal, Hill, Poly1, SquaredHinge

from .truth import INPUT_DTYPES, Case, numpy_terms, terms

INF = math.inf


def at_infinity() -> Iterator[Any]:
    """Losses, the value and slope of the positive term at -inf, and of the negative one at inf.

    The curvature is 2 where the slope is infinite, else 0; at the other end all are 0.
    """
    for gamma in (0.0, 1e-3, 0.5, 1.0, 2.0, 1e4, 1e38, 1e100, 1e300):
        yield Focal(gamma), (INF, -1), (INF, 1)
    yield Focal(2.0, 0.0), (0, 0), (INF, 1)
    yield Focal(2.0, 1.0), (INF, -1), (0, 0)
    yield SquaredHinge(), (INF, -INF), (INF, INF)
    for epsilon in (1.0, -1.0, 1e30, -1e30):
        yield Poly1(epsilon), (INF, -1), (INF, 1)
    for lam, margin, gamma in ((1.5, 1.0, 2.0), (1.0, -1e30, 0.0), (-1e30, 1e30, 1e300)):
        yield Hill(lam, margin, gamma), (INF, -1), (lam - 1, 0)
    yield Asymmetric(4.0, 1.0, 0.0, True), (INF, -1), (INF, 1)
    for gamma, clip in ((0.0, 0.05), (0.5, 0.5), (4.0, 0.9999), (1e4, 1e-3), (1e300, 1e-30)):
        value = -math.exp(gamma * math.log1p(-clip)) * math.log(clip)
        yield Asymmetric(gamma, gamma, clip), (INF, -1), (value, 0)


AT_INFINITY = pytest.mark.parametrize(("loss", "of_positive", "of_negative"), [*at_infinity()])
Limit = tuple[float, float]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@AT_INFINITY
def test_terms_have_their_limits(
    loss: Any, of_positive: Limit, of_negative: Limit, dtype: torch.dtype
) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([INF, -INF, large, -large, 100, -100, 0, 1e-30], dtype=dtype)
    for term, sign, limits in zip(terms(loss), (-1, 1), (of_positive, of_negative), strict=True):
        value, slope, curvature = term.value(x), term.slope(x), term.curvature(x)
        assert not torch.stack((value, slope, curvature)).isnan().any()
        limits = (*limits, 2 if abs(limits[1]) == INF else 0)
        for actual, limit in zip((value, slope, curvature), limits, strict=True):
            assert actual[sign * x == INF].item() == pytest.approx(limit)
            assert actual[sign * x == -INF].item() == 0
        assert term.value(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@AT_INFINITY
def test_nan_logits_give_nan(
    chosen: str,
    device: str,
    loss: Any,
    of_positive: Limit,
    of_negative: Limit,
    dtype: torch.dtype,
) -> None:
    x = torch.full((20,), math.nan, dtype=dtype, device=device).requires_grad_()
    for target in (0.0, 1.0, 0.25):
        value = Case(x, torch.full_like(x, target).detach(), reduction="none", loss=loss)()
        (grad,) = torch.autograd.grad(value.sum(), x)
        assert value.isnan().all()
        assert grad.isnan().all()


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@AT_INFINITY
def test_infinite_and_huge_logits(
    chosen: str,
    device: str,
    loss: Any,
    of_positive: Limit,
    of_negative: Limit,
    dtype: torch.dtype,
) -> None:
    """Nothing is NaN, up to the third derivative, and what must vanish is exactly 0.

    The third derivative has gamma cubed in it: with the largest, only the first one is finite.
    """
    large = torch.finfo(dtype).max
    values = [INF, -INF, large, -large, min(large, 1e30), 1e3, -1e3, 90, -90, 0, -0.0]
    x = torch.tensor(values * 4, dtype=dtype, device=device).requires_grad_()
    for target in (0.0, 1.0, 0.25):
        case = Case(x, torch.full_like(x, target).detach(), loss=loss)
        for reduction in ("none", "sum"):
            result = replace(case, reduction=reduction)()
            assert not result.isnan().any()
            for order in range(3 if 1e300 not in vars(loss).values() else 1):
                (result,) = torch.autograd.grad(result.sum(), x, create_graph=True)
                assert not result.isnan().any(), order
                if not order:
                    slopes = (1 - target, of_negative[1]), (target, of_positive[1])
                    assert result[:2].tolist() == [a * slope if a else 0 for a, slope in slopes]
                    continue
                assert not result[:5].any() or loss == SquaredHinge(), order


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.5, 1e-9, 0.999])
def test_near_the_edge_of_a_clip(clip: float) -> None:
    """Values and slopes are as accurate as elsewhere, and exactly 0 below the edge."""
    edge = math.log(clip) - math.log1p(-clip)
    distance = 10.0 ** -torch.arange(7, dtype=torch.float64)
    for loss in (Asymmetric(0.0, clip=clip), Asymmetric(2.7, clip=clip)):
        _, term = terms(loss)
        x = edge + distance
        _, value, _, slope = map(torch.from_numpy, numpy_terms(loss, x.numpy()))
        torch.testing.assert_close(term.value(x), value, rtol=1e-11, atol=0)
        torch.testing.assert_close(term.slope(x), slope, rtol=1e-11, atol=0)
        for function in term:
            assert not function(edge - distance).any()
