"""Compares what a case gives with the truth."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from weighted_bce import backend
from weighted_bce._extension import extension

from .tolerances import assert_close, compute_dtype
from .truth import Case, Truth, truth


def divisor(case: Case, count: int) -> float:
    if case.normalizer is not None:
        return float(case.normalizer) or math.inf  # for 0 the result is 0
    if case.reduction == "mean":
        # Nothing that counts among something gives 0, the mean of nothing at all NaN.
        return max(count, 1) if case.input.numel() else 0
    return len(case.input) if case.reduction == "batchmean" else 1


def assert_grad(
    actual: Tensor | None,
    case: Case,
    grad_output: float | Tensor = 1.0,
    what: str = "",
    expected: Truth | None = None,
) -> None:
    """The gradient that a case gives for this grad_output."""
    assert actual is not None, what
    expected = expected or truth(case)
    factor = grad_output / (divisor(case, expected.count) or 1)
    assert_close(actual, expected.grad * factor, expected.terms * abs(factor), what or case.name)


def outcome(
    loss: Callable[[Tensor], Tensor], x: Tensor, grad_output: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss of some logits, and the gradient that `grad_output` becomes."""
    leaf = x.detach().requires_grad_()
    result = loss(leaf)
    if not isinstance(grad_output, Tensor):
        grad_output = torch.full_like(result, grad_output)
    (grad,) = torch.autograd.grad(result, leaf, grad_output)
    return result.detach(), grad


def check(case: Case, chosen: str | None = None, grad_output: float = 1.0) -> None:
    """Loss, dtype and gradient of a case against the truth."""
    expected = truth(case)
    by = divisor(case, expected.count)
    x = case.input
    what = f"{case.name} {chosen} {x.dtype} {case.target.dtype} {case.reduction} {tuple(x.shape)}"
    with backend(chosen) if chosen else nullcontext():
        loss, grad = outcome(case, x, grad_output)
        with torch.no_grad():
            unneeded = case()
    if case.reduction == "none":
        assert (loss.dtype, loss.shape) == (x.dtype, x.shape), what
        assert_close(loss, expected.loss, expected.size, f"loss: {what}")
    else:
        assert (loss.dtype, loss.shape) == (compute_dtype(x.dtype), ()), what
        total, size = expected.loss.sum() / by, expected.size.sum() / by
        assert_close(loss, total, size, f"loss: {what}")
    assert torch.equal(loss.nan_to_num(), unneeded.nan_to_num()), what
    assert grad.dtype == x.dtype, what
    assert_grad(grad, case, grad_output, f"gradient: {what}", expected)


def backends(device: str) -> tuple[str, str]:
    built = extension is not None and (device == "cpu" or extension.cuda_archs)
    return ("fused" if built else "auto", "reference")
