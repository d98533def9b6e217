"""Gradients of a linear layer: the products they take, those of all its logits, and its ops."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from weighted_bce import weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce.linear import _tiles

from .linear_cases import (
    FEATURES,
    LABELS,
    REDUCTIONS,
    ROWS,
    assert_all_near,
    assert_grads,
    assert_loss,
    assert_near,
    assert_right,
    base,
    cases,
    dense_and_sparse,
    expected,
    grads_of,
)
from .ways import one_case

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.weighted_bce


class Products(list[tuple[int, ...]]):
    """The shapes of the products that chunks are made of."""

    def logits(self) -> int:
        """Returns how many times all logits were made."""
        return sum(columns for rows, columns in self if rows == ROWS) // LABELS

    def weight_grads(self) -> int:
        """Returns how many times the whole gradient of the weight was made."""
        return sum(rows for rows, columns in self if columns == FEATURES) // LABELS


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    seen = Products()

    def product(a: Tensor, b: Tensor, out: Tensor) -> None:
        seen.append(tuple(out.shape))
        torch.mm(a, b, out=out)

    of_kernels = _tiles._pass

    def by_kernels(kernels: Any, layer: Any, *others: Any) -> Tensor:
        *_, gradients = others
        seen.append((ROWS, LABELS))
        if gradients.weight is not None:
            seen.append((LABELS, FEATURES))
        return of_kernels(kernels, layer, *others)

    for module in ("_chunks", "_passes"):
        monkeypatch.setattr(f"weighted_bce.linear.{module}.product", product)
    monkeypatch.setattr(_tiles, "_pass", by_kernels)
    return seen


def test_one_pass_where_the_expected_grad_output_comes(products: Products) -> None:
    case = base()
    for grad_output, passes in ((1.0, 1), (4.0, 2), (4.0, 1), (0.0, 2), (4.0, 1)):
        products.clear()
        assert_right(case, grad_output)
        assert products.logits() == products.weight_grads() == passes


def test_only_what_is_needed(device: str, products: Products) -> None:
    case = base(torch.float32, device)
    for chosen in range(8):
        needs = [bool(chosen >> i & 1) for i in range(3)]
        leaves = [t.requires_grad_(n) for t, n in zip(case.leaves(), needs, strict=True)]
        products.clear()
        loss = case(*leaves)
        assert loss.requires_grad == any(needs)
        if any(needs):
            loss.backward()
        assert products.weight_grads() == needs[1]
        assert [grad is not None for grad in grads_of(leaves)] == needs
        for grad, wanted in zip(grads_of(leaves), expected(case)[1], strict=True):
            if grad is not None:
                assert_near(grad, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_second_forward_of_a_checkpoint_makes_the_gradient(
    device: str, products: Products, reentrant: bool
) -> None:
    case = one_case("linear, sparse", device)
    checkpoint(case, *case.leaves(), use_reentrant=reentrant).backward()
    assert products.weight_grads() == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction: str) -> None:
    options = {"rows": 2, "labels": 7, "chunk_labels": 3, "reduction": reduction}
    case = one_case("linear, sparse", "cpu", torch.float64, **options)
    assert gradcheck(case, case.leaves(), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(case, case.leaves(), check_fwd_over_rev=True)


def test_second_derivatives_of_half_precision() -> None:
    case = base(torch.bfloat16)
    leaves, wide = case.leaves(), [t.double().requires_grad_() for t in case.layer]
    for loss, own in (
        (case(*leaves), leaves),
        (weighted_bce_with_logits(F.linear(*wide), case.target), wide),
    ):
        grads = torch.autograd.grad(loss, own, create_graph=True)
        sum(g.double().square().sum() for g in grads).backward()
    assert_all_near(grads_of(leaves), [w.grad for w in wide if w.grad is not None], 0.05)


def test_torch_func() -> None:
    case = base(torch.float64, "cpu", 4, 20, chunk_labels=8)
    x, weight, bias = case.layer
    assert_grads(torch.func.grad(case, argnums=(0, 1, 2))(*case.layer), case)
    many = torch.randn(3, *x.shape, dtype=torch.float64)
    losses = torch.func.vmap(lambda x: case(x, weight, bias))(many)
    assert_all_near(losses, [case(x, weight, bias) for x in many])
    hessian = torch.func.hessian(lambda bias: case(x, weight, bias))(bias)
    wanted = torch.autograd.functional.hessian(lambda bias: case(x, weight, bias), bias)
    assert_near(hessian, wanted, 1e-12)


def test_half_precision_is_not_rounded_where_all_logits_are_held(device: str) -> None:
    case = base(torch.bfloat16, device, pos_weight=torch.full((LABELS,), 3.0, device=device))
    pos_weight = case.options["pos_weight"].clone().requires_grad_()
    for x in (case.input, case.input.float()):
        with torch.autocast(device, torch.bfloat16, enabled=x.dtype == torch.float32):
            loss = case(x, *case.layer[1:], pos_weight=pos_weight)
        assert_loss(loss, case)


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
        of_grads = grad_output, *args[:14], needs, *args[14:]
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
    assert (loss.shape, loss.device.type) == ((), device)
    for leaf, grad in zip(leaves, grads_of(leaves), strict=True):
        assert grad is not None
        assert grad.shape == leaf.shape


def test_make_fx() -> None:
    case = base()
    graph = make_fx(lambda *layer: case(*layer))(*case.layer)
    assert torch.equal(graph(*case.layer), case())
