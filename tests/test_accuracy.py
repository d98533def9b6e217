"""The accuracy that the documentation promises, in units of the last place."""

import pytest
import torch

from weighted_bce import backend

from .comparison import outcome
from .grids import one_at_a_time
from .tolerances import ulp, ulps_off
from .truth import Case, logits, truth

# Against float64, which as its own truth is some ulp off as well. A GPU approximates 2^x and 1 / x
# in float32, at most 2 ulp and 1 ulp off: both at their worst make 9 ulp of a gradient.
ULPS = {
    "cpu": {torch.float32: 4, torch.float64: 6},
    "cuda": {torch.float32: 9, torch.float64: 6},
}


def grid(
    device: str, dtype: torch.dtype = torch.float32, steps: int = 1_000_001, end: float = 100
) -> Case:
    """Logits over [-end, end], once as a positive and once as a negative."""
    x = torch.linspace(-end, end, steps, dtype=torch.float64).to(dtype)
    x = torch.cat([x, torch.randn(steps).to(dtype), torch.tensor([0.0, -0.0], dtype=dtype)])
    y = torch.tensor([[1], [0]]).expand(2, len(x)).bool()
    return Case(x.expand(2, -1).contiguous().to(device), y.to(device), reduction="sum")


@one_at_a_time(target=["bool", "soft", "positives"], pos_weight=[7.0, None])
def test_mean_of_ten_million_logits_within_1_ulp(
    kernel_device: str, target: str, pos_weight: float | None
) -> None:
    x = logits(10_000_000, device=kernel_device)
    y = torch.rand(len(x), device=kernel_device)
    y = y if target == "soft" else (y < (0.005 if target == "bool" else 0.9))
    case = Case(x, y, pos_weight=pos_weight)
    expected = truth(case).loss.mean()
    assert ulps_off(case(), expected) <= 1
    assert ulps_off(case(x.requires_grad_()).detach(), expected) <= 1


@one_at_a_time(
    dtype=[torch.float32, torch.float64],
    pos_weight=[None, 7.0],
    target_dtype=[torch.bool, torch.float32, torch.int64],
)
def test_gradient_within_4_ulp(
    kernel_device: str, dtype: torch.dtype, pos_weight: float | None, target_dtype: torch.dtype
) -> None:
    # A weight multiplies the rounding error of exp(-|x|), which from 87.3 on is a denormal float32.
    case = grid(kernel_device, dtype, end=87 if pos_weight else 100)
    case.target, case.pos_weight = case.target.to(target_dtype), pos_weight
    expected = truth(case)
    for reduction in ("sum", "mean", "none"):
        case.reduction = reduction
        loss, grad = outcome(case, case.input)
        by = grad.numel() if reduction == "mean" else 1
        assert ulps_off(grad, expected.grad / by) <= ULPS[kernel_device][dtype], reduction
        if reduction == "none":
            assert ulps_off(loss, expected.loss) <= ULPS[kernel_device][dtype]


@pytest.mark.parametrize("grad_output", [65536.0, 2.0**-10, 3.7])
def test_scaled_gradient_within_4_ulp(kernel_device: str, grad_output: float) -> None:
    """Where exp(-|x|) is a normal number, its digits survive any scale."""
    case = grid(kernel_device, end=87)
    expected = truth(case).grad * float(torch.tensor(grad_output))
    for _ in range(2):  # recomputed at first, then as expected
        _, grad = outcome(case, case.input, grad_output)
        assert ulps_off(grad, expected) <= ULPS[kernel_device][torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_gradient_is_off_by_little_of_the_larger_term(
    kernel_device: str, dtype: torch.dtype, smoothing: float
) -> None:
    case = grid(kernel_device, dtype, 300_001, end=87)
    case.target, case.label_smoothing = torch.rand_like(case.input), smoothing
    case.pos_weight = 7.0
    expected = truth(case)
    _, grad = outcome(case, case.input)
    error = (grad.double() - expected.grad).abs() / ulp(expected.terms, dtype)
    assert error.max() <= ULPS[kernel_device][dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chosen", ["fused", "reference"])
def test_every_half_is_rounded_once(kernel_device: str, dtype: torch.dtype, chosen: str) -> None:
    """All 65536 logits: the truth rounded to half precision, or its neighbour."""
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[x.isfinite()].to(kernel_device)
    for y in (torch.zeros_like(x, dtype=torch.bool), torch.ones_like(x, dtype=torch.bool)):
        case = Case(x, y, None, 3.0, "none")
        expected = truth(case)
        with backend(chosen):
            results = outcome(case, x)
        for actual, wanted in zip(results, (expected.loss, expected.grad), strict=True):
            finite = actual.isfinite()  # above 65504 there is only infinity
            assert torch.equal(finite, wanted.to(dtype).isfinite())
            assert ulps_off(actual[finite], wanted.to(dtype).double()[finite]) <= 1
            # float32 is so much finer that hardly any is not the nearest.
            assert (actual == wanted.to(dtype)).double().mean() > 0.999


@pytest.mark.parametrize("chosen", ["fused", "reference"])
def test_tails_mirror(kernel_device: str, chosen: str) -> None:
    """(x, 1) and (-x, 0) are the same case."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = grid(kernel_device, dtype, 100_001).input[0]
        y = torch.ones_like(x, dtype=torch.bool)
        with backend(chosen):
            one, zero = (
                outcome(Case(s * x, y & (s > 0), None, 1.0, "none"), s * x) for s in (1, -1)
            )
        assert torch.equal(one[0], zero[0])
        assert torch.equal(one[1], -zero[1])


def test_confident_positives_keep_their_gradient(
    kernel_device: str, sparse: torch.dtype | None
) -> None:
    """F.binary_cross_entropy_with_logits gives 0 for them."""
    x = torch.tensor([[20.0, 30.0, 50.0, 80.0]], device=kernel_device)
    case = Case(x, torch.ones_like(x, dtype=torch.bool), reduction="sum", sparse=sparse)
    loss, grad = outcome(case, x)
    torch.testing.assert_close(loss.double(), truth(case).loss.sum(), rtol=1e-6, atol=0)
    assert ulps_off(grad, truth(case).grad) <= ULPS[kernel_device][torch.float32]
