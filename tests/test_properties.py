"""Whatever shape, dtype, layout and options hypothesis thinks of."""

import math

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from .comparison import check
from .draws import drawn
from .truth import INPUT_DTYPES, REDUCTIONS, TARGET_DTYPES, Case

SHAPES = st.one_of(
    st.lists(st.integers(1, 9), max_size=5),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.tuples(st.integers(1, 3), st.integers(1, 1100)),
)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-30, -1e-30, 88.0, -104.0, 3e4, -3e4)


def rearranged(draw: st.DrawFn, t: Tensor) -> Tensor:
    """The same values with other strides."""
    how = draw(st.sampled_from(("as it is", "permuted", "sliced", "expanded")))
    if how == "permuted" and t.dim() > 1:
        order = draw(st.permutations(range(t.dim())))
        back = sorted(range(t.dim()), key=lambda d: order[d])
        return t.permute(order).contiguous().permute(back)
    if how == "sliced" and t.dim():
        return torch.stack([t, t], -1)[..., draw(st.integers(0, 1))]
    if how == "expanded" and t.dim() and t.shape[0]:
        return t[:1].expand(t.shape)
    return t


@st.composite
def factors(draw: st.DrawFn, shape: tuple[int, ...], device: str) -> Tensor | None:
    """Something that broadcasts to the shape, or nothing."""
    if draw(st.booleans()):
        return None
    kept = shape[draw(st.integers(0, len(shape))) :]
    sizes = [n if draw(st.booleans()) else 1 for n in kept]
    dtype = draw(st.sampled_from((*INPUT_DTYPES, torch.int64)))
    values = torch.rand(sizes) * 4
    if draw(st.booleans()):
        values[torch.rand(sizes) < 0.3] = 0
    return values.to(device, dtype)


@st.composite
def cases(draw: st.DrawFn, device: str) -> Case:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shape = tuple(draw(SHAPES))
    x = torch.randn(shape) * draw(st.sampled_from((0.1, 4.0, 30.0)))
    if draw(st.booleans()):
        chosen = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape)]
        x = torch.where(torch.rand(shape) < 0.1, chosen, x)
    target_dtype = draw(st.sampled_from(TARGET_DTYPES))
    soft = target_dtype.is_floating_point and draw(st.booleans())
    rate = draw(st.sampled_from((0.0, 0.01, 0.5, 1.0)))
    y = (torch.rand(shape) if soft else (torch.rand(shape) < rate).float()).to(target_dtype)
    ignore = draw(st.sampled_from((None, None, 0.0, 1.0, -1.0, 100.0, math.nan)))
    holds = ignore is not None and target_dtype != torch.bool
    if holds and not target_dtype.is_floating_point:
        holds = ignore >= (-math.inf if target_dtype.is_signed else 0)  # type: ignore[operator]
    if holds:
        ignored = torch.tensor(ignore).to(target_dtype).double()
        y = torch.where(torch.rand(shape) < 0.3, ignored, y.double()).to(target_dtype)
    p = draw(st.one_of(st.none(), st.sampled_from((0.0, 0.5, 7.0, 7)), factors(shape, device)))
    x = rearranged(draw, x.to(device, draw(st.sampled_from(INPUT_DTYPES))))
    return Case(
        x,
        rearranged(draw, y.to(device)),
        draw(factors(shape, device)),
        p,
        draw(st.sampled_from(REDUCTIONS if shape and shape[0] else REDUCTIONS[:3])),
        draw(st.sampled_from((0.0, 0.0, 0.1, 0.9))),
        ignore,
    )


@pytest.mark.parametrize("chosen", ["fused", "reference"])
@drawn(few=60, many=1000)
@given(data=st.data(), grad_output=st.sampled_from((1.0, 0.25, -2.5, 0.0)))
def test_any_case(kernel_device: str, chosen: str, data: st.DataObject, grad_output: float) -> None:
    case = data.draw(cases(kernel_device))
    # NaN in an integer target would be compared after a cast: only floats hold it.
    if case.ignore_index is not None and math.isnan(case.ignore_index):
        case.target = case.target.float()
    check(case, chosen, grad_output)
