"""Targets that a linear layer's loss ignores: not in the loss, the gradients or the count."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import (
    BCE,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    _reference,
    backend,
)

from .comparison import backends
from .linear_cases import (
    FEATURES,
    LABELS,
    REDUCTIONS,
    ROWS,
    LinearCase,
    assert_loss,
    assert_near,
    assert_right,
    base,
)
from .truth import TARGET_DTYPES

pytestmark = pytest.mark.usefixtures("one_thread")


def with_ignored(ignore_index: float, dtype: torch.dtype, device: str = "cpu") -> LinearCase:
    """Returns a case of which some targets, in each chunk another number, are ignored.

    They are soft where the dtype allows.
    """
    case = base(torch.float32, device, ignore_index=ignore_index)
    target = case.target.float()
    if dtype.is_floating_point:
        target = torch.where(torch.rand_like(target) < 0.2, 0.75, target)
    ignored = torch.rand_like(target) < torch.linspace(0.9, 0.1, LABELS, device=device)
    return replace(case, target=target.masked_fill(ignored, ignore_index).to(dtype))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_target(device: str, reduction: str) -> None:
    for dtype in TARGET_DTYPES:
        negatives = (-1, math.nan, 0.75) if dtype.is_floating_point else ()
        signed = (-100,) if dtype.is_signed else ()
        for ignore_index in (0, 1, *negatives, *signed):
            case = with_ignored(ignore_index, dtype, device).with_options(reduction=reduction)
            for chosen in backends(device):
                with backend(chosen):
                    assert_right(case, 2.5)


@pytest.mark.parametrize("sparse", [torch.int32, torch.int64])
def test_sparse_labels(device: str, sparse: torch.dtype) -> None:
    """They are 0 and 1."""
    for ignore_index in (0, 1, -1, 0.5, math.nan):
        for reduction in REDUCTIONS:
            case = base(torch.float32, device, ignore_index=ignore_index, reduction=reduction)
            for chosen in backends(device):
                with backend(chosen):
                    assert_right(replace(case, sparse=sparse))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [0, math.nan])
def test_all_ignored(device: str, reduction: str, ignore_index: float) -> None:
    """The loss and the gradients are 0, even of infinite logits."""
    case = base(torch.float32, device, reduction=reduction, ignore_index=ignore_index)
    case.input[0] = math.inf
    case.target = torch.full_like(case.target, ignore_index, dtype=torch.float32)
    x, weight, bias = case.leaves()
    loss = case(x, weight, bias)
    grads = torch.autograd.grad(loss.sum(), (x, bias))  # that of the weight is 0 times infinity
    for result in (loss, *grads):
        assert torch.equal(result, torch.zeros_like(result))


def test_a_target_that_no_kernel_reads(device: str) -> None:
    """0.3 is ignored as a float8 holds it, in second derivatives as well."""
    case = base(torch.float32, device, ignore_index=0.3)
    target = torch.where(torch.rand_like(case.target, dtype=torch.float32) < 0.5, 0.3, 1.0)
    target = target.to(torch.float8_e4m3fn)
    results = []
    for given, index in ((target, 0.3), (target.float(), float(target.float().min()))):
        leaves = case.leaves()
        loss = case(*leaves, target=given, ignore_index=index)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        again = torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)
        results.append((loss, *grads, *again))
    torch.testing.assert_close(*results)


def test_each_chunk_is_counted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask of all targets is made, in either pass. The kernels make none."""
    shapes: set[tuple[int, ...]] = set()
    ignored = _reference.ignored

    def seen(options: Any) -> Tensor | None:
        shapes.add(tuple(options.target.shape))
        return ignored(options)

    monkeypatch.setattr(_reference, "ignored", seen)
    with backend("reference"):
        assert_right(with_ignored(-1, torch.int64))
    assert shapes == {(ROWS, 64), (ROWS, LABELS % 64)}
    shapes.clear()
    for reduction in ("sum", "none", "batchmean"):  # nothing is counted
        assert_right(with_ignored(-1, torch.int64).with_options(reduction=reduction))
    assert_right(with_ignored(-1, torch.int64))
    assert not shapes


def test_the_count_may_be_large() -> None:
    """Beyond 2^24, where float32 has no odd numbers."""
    rows, labels = 2**12, 2**12 + 1
    x, weight = torch.zeros(rows, 1), torch.zeros(labels, 1)
    case = LinearCase(x, weight, torch.zeros(rows, labels, dtype=torch.uint8))
    case.target[0, 0] = 2
    loss = case(ignore_index=2, reduction="mean")
    assert_near(loss, torch.tensor(math.log(2)), 1e-7)


def test_modules() -> None:
    case = with_ignored(-1, torch.int64)
    for criterion in (
        LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, ignore_index=-1, chunk_labels=64),
        LinearMultilabelLoss(FEATURES, LABELS, BCE(), ignore_index=-1, chunk_labels=64),
    ):
        with torch.no_grad():
            criterion.linear.weight.copy_(case.linear_weight)
            assert case.linear_bias is not None
            criterion.linear.bias.copy_(case.linear_bias)
        assert criterion.ignore_index == -1
        assert "ignore_index=-1" in repr(criterion)
        assert_loss(criterion(case.input, case.target).detach(), case)
        criterion.ignore_index = None
        assert_near(
            criterion(case.input, case.target.clamp(0, 1)).detach(),
            case.with_options(ignore_index=None)(target=case.target.clamp(0, 1)),
        )
