"""The kernels of other losses than binary cross-entropy keep the bounds of csrc/losses.h."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from weighted_bce import Asymmetric, Focal, Hill, Poly1, SquaredHinge
from weighted_bce._extension import extension

from .tolerances import ulp
from .truth import Case, numpy_terms

GAMMAS = 0.0, 0.5, 1.0, 2.0, 2.7, 4.0, 10.0
LOSSES = [Focal(gamma, {0.0: 0.999, 2.0: 0.25}.get(gamma)) for gamma in GAMMAS]
LOSSES += [SquaredHinge(), Poly1(), Poly1(7.5), Hill(), Hill(2.0, -0.3, 2.7)]
LOSSES += [
    Asymmetric(gamma, 4.0 - min(gamma, 4.0), clip, detach)
    for gamma in GAMMAS[:-1]
    for clip, detach in ((0.0, False), (0.05, False), (0.2, True))
]

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")


@pytest.mark.parametrize("gamma", [1e30, 1e35, 1e300])
def test_huge_exponents_give_no_nan(level: str, gamma: float) -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 90.0, -90.0, 3e38, -3e38] * 9)
    for loss in (Focal(gamma), Hill(1.5, 1.0, gamma), Asymmetric(gamma, gamma)):
        for y in (0.0, 1.0):
            case = Case(x, torch.full_like(x, y), reduction="none", loss=loss)
            grad = torch.ops.weighted_bce.grad(torch.ones(()), x, *case.op_args())
            assert not torch.stack((case(), grad)).isnan().any()


@pytest.mark.parametrize("lam", [0.0, 1e-6, 1.0, 1.5, 3.0])
def test_hill_of_any_lam(level: str, lam: float) -> None:
    """Errors are relative to the sum of the absolute parts."""
    x = torch.linspace(-30, 30, 6001)
    u = torch.sigmoid(x.double())
    case = Case(x, torch.zeros_like(x), reduction="none", loss=Hill(lam))
    value, grad = case(), torch.ops.weighted_bce.grad(torch.ones(()), x, *case.op_args())
    v = torch.sigmoid(-x.double())
    for actual, expected, size in (
        (value, (lam - u) * u**2, (lam + u) * u**2),
        (grad, u**2 * v * (2 * lam - 3 * u), u**2 * v * (2 * lam + 3 * u)),
    ):
        assert ((actual.double() - expected).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_values_and_slopes_are_within_eight_ulp(level: str, loss: Any, dtype: torch.dtype) -> None:
    """Results below the smallest normal number are within 8 ulp of that."""
    most = 87 if dtype == torch.float32 else 700
    parts = (torch.linspace(-most, most, 20001), torch.linspace(-9, 9, 40001))
    x = torch.cat((*parts, torch.linspace(-1e-3, 1e-3, 501))).to(dtype)
    x += torch.rand(len(x), dtype=dtype) * 1e-3
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    terms = [torch.from_numpy(term) for term in numpy_terms(loss, x.double().numpy())]
    ops = torch.ops.weighted_bce
    for positive in (0, 1):
        value, slope = terms[1 - positive], terms[3 - positive]
        case = Case(x, torch.full_like(x, positive, dtype=torch.bool), reduction="sum", loss=loss)
        grad_outputs = (torch.ones((), dtype=dtype), torch.ones_like(x))
        grads = [ops.grad(grad_output, x, *case.op_args()) for grad_output in grad_outputs]
        unreduced = replace(case, reduction="none")()
        for actual, expected in ((unreduced, value), *((grad, slope) for grad in grads)):
            error = (actual.double() - expected).abs() / ulp(expected, dtype).clamp(min=least)
            assert error.max() <= 8, x[error.argmax()]
