"""Every dtype, reduction, weight form and option gives the loss and gradient of float64."""

import math

import numpy as np
import pytest
import torch

from .comparison import check
from .truth import (
    INPUT_DTYPES,
    REDUCTIONS,
    TARGET_DTYPES,
    Case,
    labels,
    logits,
    numpy_truth,
    sample_inputs,
    truth,
)

# Around the numbers of elements at which the kernels change what they do.
SIZES = (
    *(0, 1, 3),  # nothing, and less than any vector
    *(7, 8, 9, 15, 16, 17),  # a vector of AVX2, of AVX-512
    *(63, 64, 65, 127, 128, 129),  # a cache line of byte targets
    *(383, 384, 385),  # a block of the baseline
    *(767, 768, 769),  # a block of AVX2 and AVX-512
    4097,  # many blocks and a tail of one
    *(32767, 32768, 32769),  # the chunk that a thread takes
    70001,  # three chunks, the last one odd
)


def test_two_truths_agree() -> None:
    for case in sample_inputs("cpu"):
        loss, grad = numpy_truth(case)
        torch_says = truth(case)
        np.testing.assert_allclose(torch_says.loss.numpy(), loss, rtol=1e-13, err_msg=case.name)
        size = torch_says.terms.numpy()
        assert np.all(np.abs(torch_says.grad.numpy() - grad) <= 1e-13 * size), case.name


def test_samples(device: str, chosen: str) -> None:
    for case in sample_inputs(device):
        check(case)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_every_target_dtype_and_reduction(device: str, chosen: str, dtype: torch.dtype) -> None:
    x = logits(7, 37, dtype=dtype, device=device)
    for target_dtype in TARGET_DTYPES:
        y = labels(7, 37, dtype=target_dtype, device=device)
        for reduction in REDUCTIONS:
            check(Case(x, y, None, 3.5, reduction))
            check(Case(x, y, reduction=reduction))


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("shape", [(6, 37), (2, 3, 4, 5)])
def test_every_weight_form(
    device: str, chosen: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = logits(*shape, dtype=dtype, device=device)
    y = labels(*shape, dtype=torch.float32, device=device)
    full = torch.rand(shape, device=device) * 4 + 0.25
    labels_first = full[:1, :, :1, :1].reshape(-1, 1, 1) if len(shape) == 4 else full[:1]
    forms = {
        "none": None,
        "0-d": full.flatten()[0],
        "one": full.flatten()[:1],
        "per label": full[(0,) * (len(shape) - 1)],
        "per sample": full[(slice(None), *(slice(0, 1),) * (len(shape) - 1))],
        "per channel": labels_first,
        "full": full,
        "double": full.double(),
        "half": full.half(),
        "integer": (full * 2).ceil().to(torch.int32),
    }
    for name, weight in forms.items():
        for other, pos_weight in [*forms.items(), ("float", 7.0)]:
            reduction = REDUCTIONS[(len(name + other + chosen)) % len(REDUCTIONS)]
            check(Case(x, y, weight, pos_weight, reduction, name=f"{name}/{other}"))


@pytest.mark.parametrize("target_dtype", TARGET_DTYPES)
@pytest.mark.parametrize("ignored", [None, 0, 1, -1, 2, 255, 300, -1.5, 0.1, math.nan])
def test_smoothing_and_ignored(
    device: str, chosen: str, target_dtype: torch.dtype, ignored: float | None
) -> None:
    floating = target_dtype.is_floating_point
    if ignored is not None and math.isnan(ignored) and not floating:
        pytest.skip("integers are not NaN")
    y = labels(5, 41, dtype=target_dtype, device=device)
    if ignored is not None and target_dtype != torch.bool:
        representable = torch.tensor(ignored, dtype=torch.float64).to(target_dtype)
        if float(representable) == ignored or floating:
            positions = torch.rand(5, 41, device=device) < 0.3
            # torch 2.11 has no `where` for uint16.
            y = torch.where(positions, representable.to(device).double(), y.double())
            y, ignored = y.to(target_dtype), float(representable)
    for dtype in (torch.float32, torch.bfloat16):
        x = logits(5, 41, dtype=dtype, device=device)
        for smoothing in (0.0, 0.125):
            for reduction in REDUCTIONS:
                check(Case(x, y, None, 3.0, reduction, smoothing, ignored, f"ignored {ignored}"))


@pytest.mark.parametrize("n", SIZES)
def test_every_size(device: str, chosen: str, n: int) -> None:
    for dtype in INPUT_DTYPES:
        x = logits(n, dtype=dtype, device=device)
        for target_dtype in (torch.bool, torch.int64, torch.float32):
            y = labels(n, dtype=target_dtype, device=device)
            for reduction in ("none", "mean", "sum"):
                check(Case(x, y, None, 7.0, reduction))
                if n and chosen == "fused":
                    check(Case(x, y, x.double().abs(), y.double() + 1, reduction))
                    check(Case(x, y.to(dtype), x.abs() / 8, x.abs() / 8, reduction, 0.1, 0))


@pytest.mark.parametrize("position", [0, 1, 15, 16, 17, 127, 511, 512, 32767, 32768, 40000])
def test_a_single_positive_counts(device: str, position: int) -> None:
    """The kernels look for positives before they take the short path for negatives."""
    y = torch.zeros(40001, device=device)
    y[position] = 1
    x = logits(40001, device=device)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        check(Case(x, y.to(dtype), None, 1000.0))
        check(Case(x.double(), y.to(dtype), None, 1000.0))


def test_large_sum_is_right(device: str) -> None:
    """The sums of chunks add up in more than float32."""
    x = torch.full((2_000_000,), 3.3, device=device)
    check(Case(x, torch.zeros_like(x, dtype=torch.bool), reduction="sum"))
