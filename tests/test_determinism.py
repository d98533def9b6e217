"""The same input gives the same bits, whatever the threads and however often."""

import pytest
import torch
from torch import Tensor

from .truth import INPUT_DTYPES, Case, compute_dtype, labels, logits


def outcome(case: Case) -> tuple[Tensor, Tensor]:
    x = case.input.clone().requires_grad_()
    loss = case(x)
    loss.backward(torch.ones_like(loss))
    assert x.grad is not None
    return loss.detach(), x.grad


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_any_number_of_threads_gives_the_same_bits(device: str, dtype: torch.dtype) -> None:
    x, y = logits(37, 20011, dtype=dtype, device=device), labels(37, 20011, device=device)
    marked = torch.where(torch.rand(37, 20011, device=device) < 0.1, -1, y.long())
    w = torch.rand(20011, device=device)
    for case in (
        Case(x, y),
        Case(x, y, w, 7.0, "sum"),
        Case(x, y.float(), None, w, "none", 0.1),
        Case(x.t(), y.t(), None, 7.0),
        Case(x[:, ::2], y[:, ::2], None, 7.0),
        Case(x, marked, None, 7.0, ignore_index=-1),
    ):
        torch.set_num_threads(1)
        first = outcome(case)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for _ in range(3):
                for one, other in zip(first, outcome(case), strict=True):
                    assert torch.equal(one, other), (threads, case.reduction)
            with torch.no_grad():
                assert torch.equal(case(), first[0]), threads


def test_rows_give_the_same_bits_wherever_they_lie(kernel_device: str) -> None:
    """Whole vectors, tails, other offsets: an element's loss and gradient depend on it alone."""
    for dtype in INPUT_DTYPES:
        x, y = logits(1000, dtype=dtype, device=kernel_device), labels(1000, device=kernel_device)
        whole = outcome(Case(x, y, None, 7.0, "none"))
        for start, stop in ((0, 1), (1, 18), (3, 300), (500, 1000), (999, 1000)):
            part = outcome(Case(x[start:stop], y[start:stop], None, 7.0, "none"))
            for one, other in zip(whole, part, strict=True):
                assert torch.equal(one[start:stop], other), (dtype, start)


def test_gradient_alone_has_the_bits_of_one_pass(kernel_device: str) -> None:
    """So that a wrong guess of the upstream gradient cannot be told from a right one."""
    for dtype in INPUT_DTYPES:
        x, y = logits(70001, dtype=dtype, device=kernel_device), labels(70001, device=kernel_device)
        for target in (y, y.float(), y.long(), torch.zeros_like(y), ~y):
            args = Case(x, target, None, 7.3).op_args("mean")
            for scale in (1.0, 3.7, 65536.0):
                upstream = torch.tensor(scale, dtype=compute_dtype(dtype), device=kernel_device)
                loss, grad, _ = torch.ops.weighted_bce.loss_and_grad(upstream, x, *args)
                assert torch.equal(grad, torch.ops.weighted_bce.grad(upstream, x, *args))
                assert torch.equal(loss, torch.ops.weighted_bce.loss(x, *args))
