"""The grad_output that the forward pass expects never changes a bit of the result."""

import math

import pytest
import torch
from torch import Tensor

from weighted_bce import _eager, weighted_bce_with_logits

from .comparison import outcome
from .linear_cases import grads_of
from .tolerances import compute_dtype
from .truth import INPUT_DTYPES, Case, labels, logits
from .ways import assert_grads, in_each_way, leaves_of, one_case

SCALES = (1.0, 65536.0, 65536.0, 1.0, -2.5, 0.0, 0.0, -0.0, 1.0, 3.7, 3.7, math.inf, 32768.0)


def number(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=compute_dtype(like.dtype), device=like.device)


def recomputed(case: Case, scale: float) -> Tensor:
    """The gradient by the op itself, which expects nothing."""
    args = number(scale, case.input), case.input, *case.op_args()
    grad: Tensor = torch.ops.weighted_bce.grad(*args)
    return grad


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("n", [16, 4100, 70001])
def test_any_order_of_scales_gives_the_same_bits(
    kernel_device: str, dtype: torch.dtype, n: int
) -> None:
    x = logits(1, n, dtype=dtype, device=kernel_device)
    y = labels(1, n, dtype=torch.float32, device=kernel_device)
    w = torch.rand(1, n, device=kernel_device)
    with_ignored = torch.where(w < 0.2, -1, y)
    for case in (
        Case(x, y),
        Case(x, y > 0, None, 7.0, "sum"),
        Case(x, y > 0, None, 7.0, sparse=torch.int64),
        Case(x, y, w, w + 1, "batchmean", 0.1),
        Case(x, y > 0, None, w + 1),
        Case(x, (y > 0).long(), None, 7.3),
        Case(x, y < 0, None, 7.3),
        Case(x, y >= 0, None, 7.3),
        Case(x, with_ignored, None, 3.0, ignore_index=-1),
    ):
        alone = case()
        for scale in SCALES:
            loss, grad = outcome(case, x, number(scale, x))
            assert torch.equal(loss, alone)
            expected = recomputed(case, scale)
            torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)
            is_number = ~expected.isnan()
            assert torch.equal(grad[is_number].signbit(), expected[is_number].signbit())  # of 0


def test_expected_gradients_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step may expect another; from the second on the forward pass did the work."""
    recomputations = []
    real = _eager.ops.update_grad_.default

    def counted(*args: object) -> None:
        recomputations.append(args)
        real(*args)

    class Ops:
        update_grad_ = type("update_grad_", (), {"default": staticmethod(counted)})

    monkeypatch.setattr(_eager, "ops", Ops)
    x, y = logits(50, 60).requires_grad_(), labels(50, 60)
    for scale, wrong in ((1.0, 0), (1.0, 0), (1024.0, 1), (1024.0, 1), (1024.0, 1), (512.0, 2)):
        weighted_bce_with_logits(x, y).backward(torch.tensor(scale))
        assert len(recomputations) == wrong, scale
    # A last, shorter batch is of the same kind.
    weighted_bce_with_logits(x[:3], y[:3]).backward(torch.tensor(512.0))
    assert len(recomputations) == 2


@in_each_way
def test_one_backward_pass_of_a_sum_of_losses(device: str, way: str) -> None:
    """Gradients of two losses of the same leaves meet in one buffer."""
    case = one_case(way, device)
    for _ in range(3):
        leaves = leaves_of(case)
        (case(*leaves) + 3 * case(*leaves)).backward()
        assert_grads(grads_of(leaves), case, 4)


def test_expectations_are_bounded() -> None:
    for n in range(1, 600):
        x = torch.zeros(2, n, requires_grad=True)
        weighted_bce_with_logits(x, x.detach().bool()).backward(torch.tensor(2.0))
    assert len(_eager._expected) == _eager._MOST_KINDS + 1  # which all others share
