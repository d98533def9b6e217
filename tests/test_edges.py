"""Infinities, NaN, ignored elements, nothing at all, zero weights, tiny scales."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import weighted_bce_with_logits

from .comparison import check, outcome
from .truth import INPUT_DTYPES, REDUCTIONS, TARGET_DTYPES, Case, labels, logits

INF, NAN = math.inf, math.nan


def both(x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The unreduced loss and the gradient of its sum."""
    return outcome(partial(weighted_bce_with_logits, target=y, reduction="none", **options), x)


SOFT, HARD, ENDS = [0.25, 0.25], [1, 0], [INF, -INF]
ZERO, FEW = torch.zeros(()), torch.tensor([1.0, 1, 0, 0])
# Logits, targets and options; the losses and the gradients.
INFINITE: list[tuple[list[float], list[float], dict[str, Any], list[float], list[float]]] = [
    (ENDS * 2, [1, 0, 0, 1], {"pos_weight": 3.0}, [0, 0, INF, INF], [0, 0, 1, -3]),
    (ENDS * 2, [1, 0, 0, 1], {"weight": torch.tensor(2.0)}, [0, 0, INF, INF], [0, 0, 2, -2]),
    (ENDS, SOFT, {"pos_weight": 2.0}, [INF, INF], [0.75, -0.5]),
    (ENDS, HARD, {"label_smoothing": 0.5}, [INF, INF], [0.25, -0.25]),
    *((ENDS * 2, [1, 0, 0, 1], {"weight": w}, [0] * 4, [0] * 4) for w in (ZERO, FEW)),
    *(
        (ENDS * 2, [1, 0, 0, 1], {"pos_weight": p}, [0, 0, INF, 0], [0, 0, 1, 0])
        for p in (0.0, 0, ZERO, ZERO.expand(4))
    ),
]


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_infinite_logits(device: str, chosen: str, dtype: torch.dtype) -> None:
    """Soft targets have both terms; a weight of 0 makes even an infinite loss 0."""
    for values, target, options, losses, slopes in INFINITE:
        x = torch.tensor(values, dtype=dtype, device=device)
        given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
        for target_dtype in TARGET_DTYPES if target != SOFT else INPUT_DTYPES:
            y = torch.tensor(target, device=device).to(target_dtype)
            loss, grad = both(x, y, **given)
            assert loss.tolist() == losses, target_dtype
            assert grad.tolist() == slopes, target_dtype
    for y in (torch.tensor([1, 0, 0, 1], dtype=t, device=device) for t in TARGET_DTYPES):
        x = torch.tensor(ENDS * 2, dtype=dtype, device=device)
        for reduction in ("mean", "sum"):
            check(Case(x[:2], y[:2], None, 3.0, reduction))
            check(Case(x, y, None, 3.0, reduction))


@pytest.mark.parametrize("n", [1, 16, 100, 33000])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_one_special_logit_among_many(device: str, chosen: str, n: int, value: float) -> None:
    """It is in each place of a vector, among negatives and next to a positive."""
    for position, neighbour in product({0, n - 1}, (False, True)):
        x = torch.randn(n, device=device)
        x[position] = value
        y = torch.zeros(n, dtype=torch.bool, device=device)
        y[(position + 1) % n] = neighbour
        for reduction in ("none", "mean"):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                check(Case(x.to(dtype), y, None, 5.0, reduction))


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_nan_logits_and_targets_are_nan(device: str, chosen: str, dtype: torch.dtype) -> None:
    x = torch.tensor([NAN, NAN, 1.0, 2.0], dtype=dtype, device=device)
    y = torch.tensor([1.0, 0.0, NAN, 0.0], device=device)
    for result in both(x, y):
        assert result.isnan().tolist() == [True, True, True, False]
    assert weighted_bce_with_logits(x, y).isnan()


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("ignored", [-1.0, NAN, 0.5])
def test_ignored_elements_may_hold_anything(
    device: str, chosen: str, dtype: torch.dtype, ignored: float
) -> None:
    x = torch.tensor([NAN, INF, -INF, 3.0, 1.0, -2.0], dtype=dtype, device=device)
    y = torch.tensor([ignored, ignored, ignored, ignored, 1.0, 0.0], device=device)
    for reduction in REDUCTIONS:
        check(Case(x, y, None, 3.0, reduction, 0.0, ignored))
        check(Case(x, y, x.abs(), x.abs(), reduction, 0.0, ignored))
        # Many more, for the vector loops.
        check(Case(x.repeat(999), y.repeat(999), None, 3.0, reduction, 0.0, ignored))


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Nothing at all, nothing that counts, no dimension, large integers, nothing but zeros."""
    for shape in ((0,), (0, 5), (5, 0), (2, 0, 3)):
        nothing = torch.zeros(shape, dtype=dtype, device=device)
        for ignored in (None, -1):
            yield Case(nothing, nothing.bool(), None, 2.0, ignore_index=ignored)
    x = torch.tensor([1.0, NAN, INF], dtype=dtype, device=device)
    for target_dtype, ignored in ((torch.int64, -1), (torch.int8, -1), (torch.float32, NAN)):
        y = torch.full((3,), ignored, dtype=target_dtype, device=device)
        yield Case(x, y, None, 2.0, ignore_index=ignored)
    for target_dtype in TARGET_DTYPES:
        x, y = torch.tensor([1.5, 1], device=device)
        x, y = x.to(dtype), y.to(target_dtype)
        yield Case(x, y, None, 3.0)
        yield Case(x, y, x, x, "mean", 0.1, 0)
    # An ignore_index is compared in the target's dtype: large integers are not truncated.
    x = torch.tensor([1.0, 2.0, 3.0], dtype=dtype, device=device)
    for target_dtype, ignored in (
        (torch.int64, -(2**40)),
        (torch.int32, -(2**31)),
        (torch.uint32, 2**32 - 1),
    ):
        y = torch.tensor([0, 1, ignored], device=device).to(target_dtype)
        yield Case(x, y, ignore_index=ignored)
    # The logits of an untrained layer: each 1 + exp(-|x|) is 2, and no product of them overflows.
    x = torch.zeros(40_000, dtype=dtype, device=device)
    yield Case(x, torch.zeros_like(x, dtype=torch.bool))


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_cases_on_the_edge(device: str, chosen: str, dtype: torch.dtype) -> None:
    for case in cases(device, dtype):
        for reduction in REDUCTIONS[: 4 if case.input.numel() and case.input.dim() else 3]:
            check(replace(case, reduction=reduction))


def test_half_gradient_survives_a_loss_scale(device: str) -> None:
    """1/N is below the smallest float16; times the loss scale it is not."""
    n = 1 << 26
    x = torch.zeros(n, dtype=torch.float16, device=device, requires_grad=True)
    y = torch.zeros(1, dtype=torch.bool, device=device).expand(n)

    def scaled(x: Tensor) -> Tensor:
        return weighted_bce_with_logits(x, y) * 65536

    def backward(x: Tensor) -> Tensor:
        return torch.autograd.grad(scaled(x), x)[0]

    for gradient in (backward, backward, torch.func.grad(scaled)):  # expected the second time
        low, high = gradient(x).aminmax()
        assert low == high == 0.5 * 65536 / n


@pytest.mark.parametrize(
    ("dtype", "ignore_index"),
    [(torch.float32, 1e-50), (torch.bfloat16, 1.001), (torch.float16, 0.9999)],
)
def test_ignore_index_that_the_targets_dtype_rounds(
    kernel_device: str, dtype: torch.dtype, ignore_index: float
) -> None:
    """Targets equal to what their dtype makes of it do not count, be they hard."""
    x = logits(40, 50, device=kernel_device)
    y = labels(40, 50, device=kernel_device).to(dtype)
    rounded = torch.tensor(ignore_index, dtype=dtype).item()
    assert rounded in (0, 1)
    given, expected = (
        weighted_bce_with_logits(x, y, pos_weight=3.0, ignore_index=index)
        for index in (ignore_index, rounded)
    )
    assert torch.equal(given, expected)
