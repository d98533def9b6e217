"""The registered ops: schemas, fakes and derivatives, by torch.library.opcheck and by number."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch

from weighted_bce import BCE, Focal
from weighted_bce._extension import extension

from .comparison import assert_grad
from .grids import one_at_a_time
from .tolerances import compute_dtype
from .truth import INPUT_DTYPES, REDUCTIONS, Case, labels, logits, sample_inputs

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

OPS = ("loss", "loss_and_grad", "loss_and_grad_", "update_grad_", "grad", "grad_", "unreduced")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def arguments(op: str, case: Case, needs_grad: bool) -> tuple[Any, ...]:
    x = case.input.detach().requires_grad_(needs_grad)
    one = torch.tensor(1.5, dtype=compute_dtype(x.dtype), device=x.device)
    if op == "unreduced":
        return (x, *case.op_args("none"))
    if op in ("grad", "grad_"):
        return (one, x, *case.op_args())
    if op == "update_grad_":
        return (one, one * 2, one.clone(), torch.zeros_like(x), x, *case.op_args())
    return (*((one,) if op.startswith("loss_and_grad") else ()), x, *case.op_args())


@one_at_a_time(op=OPS, dtype=DTYPES)
def test_opcheck(kernel_device: str, op: str, dtype: torch.dtype, runs_everything: bool) -> None:
    """A differentiable op has logits that need a gradient; with --all, others too."""
    overload = getattr(torch.ops.weighted_bce, op).default
    differentiable = op in ("loss", "unreduced", "grad")
    base = logits(6, 8, 10, dtype=dtype, device=kernel_device)
    views = [base.mT, base[:, ::2], base.mT[:, :, 1:5]]
    views += [] if op.endswith("d_") else [base[:1].expand(6, 8, 10)]  # cannot hold a gradient
    strided = [Case(x, torch.zeros_like(x, dtype=torch.bool)) for x in views]
    for case in (*sample_inputs(kernel_device, (dtype,)), *strided):
        if runs_everything or not differentiable:
            torch.library.opcheck(overload, arguments(op, case, False))
        if differentiable:
            torch.library.opcheck(overload, arguments(op, case, True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_of_the_ops(kernel_device: str, dtype: torch.dtype) -> None:
    for case in sample_inputs(kernel_device, (dtype,)):
        for op in ("loss", "unreduced"):
            args = arguments(op, case, True)
            result = getattr(torch.ops.weighted_bce, op)(*args)
            (grad,) = torch.autograd.grad(result, args[0], torch.full_like(result, -2.5))
            of_op = replace(case, reduction="none", normalizer=None) if op == "unreduced" else case
            assert_grad(grad, of_op, -2.5)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Small ones of each kind, and some that fill vectors and blocks."""
    yield from sample_inputs(device, (dtype,))
    shape = 33, 517
    x, hard = logits(*shape, dtype=dtype, device=device), labels(*shape, device=device)
    soft = labels(*shape, dtype=torch.float32, device=device)
    row, column = torch.rand(517, device=device) * 4, torch.rand(33, 1, device=device) + 0.5
    for loss, reduction in product((BCE(), Focal(2.0, 0.25)), REDUCTIONS[1:]):
        some = partial(Case, x, reduction=reduction, loss=loss)
        for sparse in (None, torch.int64):
            yield some(hard, pos_weight=3.0, sparse=sparse)
            yield some(hard, column, row, sparse=sparse)
        yield some(soft, pos_weight=3.0, label_smoothing=0.125)
        yield some(soft, pos_weight=3.0, ignore_index=0.0)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_all_ops_agree_to_the_bit(kernel_device: str, dtype: torch.dtype) -> None:
    """New tensors or in place, the gradient is that of grad_output, whatever was expected."""
    ops = torch.ops.weighted_bce
    for case in cases(kernel_device, dtype):
        x, args = case.input, case.op_args()
        expected = torch.ones((), dtype=compute_dtype(dtype), device=kernel_device)
        loss, grad, used = ops.loss_and_grad(expected, x, *args)
        assert torch.equal(ops.loss(x, *args), loss), case.name
        assert torch.equal(used, expected)
        if grad.numel():
            assert grad.data_ptr() not in (x.data_ptr(), case.target.data_ptr())
        for factor, expected_next in ((1.0, 1.0), (2.5, 2.5), (1.0, 1.0), (0.0, 1.0), (-4.0, -4.0)):
            grad_output = torch.full_like(expected, factor)
            ops.update_grad_(grad_output, used, expected, grad, x, *args)
            assert torch.equal(grad, ops.grad(grad_output, x, *args)), case.name
            assert (used.item(), expected.item()) == (factor, expected_next)
        over, other = x.clone(), x.clone()
        assert torch.equal(ops.loss_and_grad_(grad_output, over, *args), loss), case.name
        ops.grad_(grad_output, other, *args)
        assert torch.equal(over, grad), case.name
        assert torch.equal(other, grad), case.name
        changed = grad.add_(1).clone()  # what needs no update is left alone
        ops.update_grad_(grad_output, used, expected, grad, x, *args)
        assert torch.equal(grad, changed), case.name


def test_memory_for_a_gradient(kernel_device: str) -> None:
    for shape in ((0, 3), (5, 7), (600, 700)):
        for dtype in DTYPES:
            x = torch.empty(shape, dtype=dtype, device=kernel_device)
            for tensor in (x, x.mT, x[::2]):
                empty = torch.ops.weighted_bce.empty_grad(tensor)
                assert (empty.shape, empty.dtype) == (tensor.shape, tensor.dtype)
                if tensor.numel():
                    assert empty.stride() == torch.empty_like(tensor).stride()
                    assert empty.data_ptr() != tensor.data_ptr()
