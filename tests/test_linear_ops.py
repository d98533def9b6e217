"""The registered ops of a linear layer: schemas, fakes, traces and derivatives."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from weighted_bce._extension import extension

from .linear_cases import LABELS, assert_grads, base, cases, dense_and_sparse, grads_of

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.weighted_bce


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize(("dtype", "every"), [(torch.float32, 5), (torch.bfloat16, 11)])
def test_opcheck(device: str, dtype: torch.dtype, every: int) -> None:
    some = [case for case in cases(device, dtype) if case.target.numel()][::every]
    for case in some:
        x, weight, bias, *rest = args = case.op_args()
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
        torch.library.opcheck(ops.linear_loss.default, args)
        torch.library.opcheck(ops.linear_loss.default, (*leaves, *rest))
        grad_output = torch.ones_like(ops.linear_loss(*args))
        needs = [True, False, bias is not None]
        *before, loss, parameters = args
        of_grads = grad_output, *before, needs, loss, parameters
        torch.library.opcheck(ops.linear_grads.default, of_grads)
    torch.library.opcheck(ops.linear_topk.default, (x, weight, bias, 1, None, 3))


def test_the_ops_have_gradients(device: str) -> None:
    for case in dense_and_sparse(device):
        leaves = case.leaves()
        rest = case.op_args()[3:]
        loss = ops.linear_loss(*leaves, *rest)
        assert_grads(torch.autograd.grad(loss, leaves), case)
    wrong = torch.ones(LABELS, device=device, requires_grad=True)
    with pytest.raises(NotImplementedError, match="has no gradient with respect to target"):
        ops.linear_loss(*case.layer, *rest[:2], wrong, *rest[3:])


@pytest.mark.parametrize(("device", "mode"), [("cpu", FakeTensorMode), ("meta", nullcontext)])
def test_tensors_without_numbers(device: str, mode: Any) -> None:
    with mode():
        case = base(torch.float32, device)
        leaves = case.leaves()
        loss = case(*leaves)
        loss.backward()
    assert loss.shape == ()
    assert loss.device.type == device
    for leaf, grad in zip(leaves, grads_of(leaves), strict=True):
        assert grad is not None
        assert grad.shape == leaf.shape


def test_make_fx() -> None:
    case = base()
    graph = make_fx(lambda *layer: case(*layer))(*case.layer)
    assert torch.equal(graph(*case.layer), case())
