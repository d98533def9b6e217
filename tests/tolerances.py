"""How near a result must be to the truth: the one table of tolerances."""

import math

import torch
from torch import Tensor

# By dtype of the logits. `compute`: relative error of the arithmetic, a few roundings of float32
# (eps 1.2e-7) or float64 (2.2e-16). `rounding`: of the one last rounding to the dtype itself.
# `least`: the distance of its smallest numbers. `absolute`: where exp(-|x|) is that small and is
# then multiplied by a weight. `digits`: of its significand.
COLUMNS = ("compute", "rounding", "least", "absolute", "digits")
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    dtype: dict(zip(COLUMNS, values, strict=True))
    for dtype, *values in (
        (torch.float16, 1e-6, 2.0**-11, 2.0**-24, 2.0**-24, 11),
        (torch.bfloat16, 1e-6, 2.0**-8, 2.0**-133, 2.0**-133, 8),
        (torch.float32, 1e-6, 2.0**-24, 2.0**-149, 2.0**-139, 24),
        (torch.float64, 4e-15, 2.0**-53, 2.0**-1074, 2.0**-1064, 53),
    )
}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between the numbers of `dtype` around each value, in float64."""
    known = TOLERANCES[dtype]
    exponent = torch.frexp(values.double())[1].double()
    return torch.exp2(exponent - known["digits"]).clamp(min=known["least"])


def ulps_off(actual: Tensor, expected: Tensor) -> float:
    """The largest error in units of the last place of actual's dtype; inf where one is NaN."""
    error = (actual.double() - expected).abs()
    error = torch.where(actual.double() == expected, 0, error)  # infinities that agree
    return float((error / ulp(expected, actual.dtype)).nan_to_num(nan=math.inf).max())


def assert_close(actual: Tensor, expected: Tensor, size: Tensor, what: str) -> None:
    """`size` is what the errors of the arithmetic are relative to."""
    known = TOLERANCES[actual.dtype]
    bound = known["compute"] * size + known["rounding"] * expected.abs() + known["absolute"]
    error = (actual.double() - expected).abs()
    # What is too large for the dtype is infinite in it.
    same = (actual == expected.to(actual.dtype)) | (actual.isnan() & expected.isnan())
    excess = torch.where(same, -1, (error - bound).nan_to_num(nan=math.inf))
    if excess.numel() and float(excess.max()) > 0:
        i = int(excess.argmax())
        values = (float(t.expand(expected.shape).flatten()[i]) for t in (actual, expected, size))
        got, wanted, scale = values
        raise AssertionError(f"{what}: at {i} got {got}, expected {wanted}, size {scale}")
