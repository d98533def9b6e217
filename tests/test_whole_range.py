"""The drop-ins are right for every finite logit of every dtype; the original formulas are not."""

import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, NamedTuple

import hypothesis
import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import strategies as st
from torch import Tensor

from weighted_bce import Asymmetric, AsymmetricLoss, Focal, sigmoid_focal_loss

from . import originals
from .comparison import outcome
from .draws import drawn
from .tolerances import TOLERANCES, assert_close
from .truth import INPUT_DTYPES, numpy_terms

GAMMAS = st.one_of(st.sampled_from((0.0, 0.5, 1.0, 2.0, 2.7, 4.0)), st.floats(0, 10))
# A slope is divided by a clip, also where exp(-|x|) is too small to have all its digits.
CLIPS = st.one_of(st.sampled_from((0.0, 0.05, 0.2)), st.floats(1e-3, 0.95))
Losses = Callable[[Tensor, Tensor], Tensor]  # of each element


class Drawn(NamedTuple):
    """Logits, their targets of 0 and 1, and two ways to compute the loss of both."""

    x: Tensor
    y: Tensor
    loss: Asymmetric | Focal
    ours: Losses
    original: Losses


@st.composite
def elements(draw: st.DrawFn, dtype: torch.dtype, more: int) -> tuple[Tensor, Tensor]:
    """A finite logit, more of them where the terms are not at their limits, and one target."""
    width = 16 if dtype == torch.float16 else 64 if dtype == torch.float64 else 32
    finite = partial(st.floats, allow_nan=False, allow_infinity=False, width=width)
    x = torch.tensor([draw(st.one_of(finite(), finite(-128, 128)))], dtype=dtype)
    hypothesis.assume(x.isfinite().all())  # bfloat16 may round to infinity
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = torch.cat((x, (torch.rand(more) * 220 - 110).to(dtype)))
    return x, torch.full_like(x, draw(st.sampled_from((0.0, 1.0))))


@st.composite
def focal(draw: st.DrawFn, dtype: torch.dtype, more: int = 0) -> Drawn:
    gamma, alpha = draw(GAMMAS), draw(st.sampled_from((-1, 0.25, 0.0, 1.0)))
    x, y = draw(elements(dtype, more))
    ours, original = (
        partial(function, alpha=alpha, gamma=gamma)
        for function in (sigmoid_focal_loss, originals.focal)
    )
    return Drawn(x, y, Focal(gamma, None if alpha < 0 else alpha), ours, original)


@st.composite
def asymmetric(draw: st.DrawFn, dtype: torch.dtype, more: int = 0) -> Drawn:
    gammas, clip, detach = (draw(GAMMAS), draw(GAMMAS)), draw(CLIPS), draw(st.booleans())
    x, y = draw(elements(dtype, more))
    if clip:  # right at the edge the truth has too few digits
        edge = math.log(clip) - math.log1p(-clip)
        hypothesis.assume(((x.double() - edge).abs() > 1e-6).all())
    ours = AsymmetricLoss(*gammas, clip, 1e-8, detach, reduction="none")
    original = partial(
        originals.asymmetric,
        gamma_neg=gammas[0],
        gamma_pos=gammas[1],
        clip=clip,
        detach=detach,
        reduction="none",
    )
    return Drawn(x, y, Asymmetric(*gammas, clip, detach), ours, original)


def check(example: Drawn, losses: Losses, device: str = "cpu", error: float = 0) -> None:
    """The value and the gradient are those of the truth, and finite where it is in the dtype.

    A relative error larger than that of the tolerances may be given.
    """
    x, y, loss, *_ = example
    value, grad = (t.cpu() for t in outcome(lambda x: losses(x, y.to(device)), x.to(device)))
    times: float | Tensor = 1
    if error:
        times = error / TOLERANCES[x.dtype]["compute"]
    elif x.dtype == torch.float64:  # a power has the errors of its exponent
        times = 3 + max(loss._parameters[:2]) * x.abs().clamp(max=1000)
    terms = numpy_terms(loss, x.double().numpy())
    for name, actual, of_both in (("value", value, terms[:2]), ("gradient", grad, terms[2:])):
        expected = torch.from_numpy(of_both[1 - int(y[0])])
        assert_close(actual, expected, times * expected.abs(), f"{name} of {x}, {loss}")


def is_wrong(example: Drawn, losses: Losses, error: float = 0) -> bool:
    try:
        check(example, losses, error=error)
    except AssertionError:
        return True
    return False


KINDS = pytest.mark.parametrize("kind", [focal, asymmetric])
DTYPES = pytest.mark.parametrize("dtype", INPUT_DTYPES)


@KINDS
@DTYPES
@drawn(few=100, many=2000)
@hypothesis.given(data=st.data())
def test_ours(device: str, chosen: str, kind: Any, dtype: torch.dtype, data: st.DataObject) -> None:
    example = data.draw(kind(dtype, more=50))
    check(example, example.ours, device)


@KINDS
@DTYPES
def test_original_formulas(kind: Any, dtype: torch.dtype) -> None:
    """What holds for ours does not hold for them, not even with errors of one in twenty."""
    found = hypothesis.find(
        kind(dtype),
        lambda example: is_wrong(example, example.original, error=0.05),
        settings=hypothesis.settings(max_examples=500, database=None, deadline=None),
        random=Random(0),
    )
    assert not is_wrong(found, found.ours)
