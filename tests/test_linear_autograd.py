"""Gradients of the loss of a linear layer, in every way in which autograd can ask for them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from weighted_bce import SparseLabels, backend, weighted_bce_with_logits

from .linear_cases import (
    FEATURES,
    LABELS,
    REDUCTIONS,
    ROWS,
    LinearCase,
    assert_all_near,
    assert_grads,
    assert_loss,
    assert_near,
    assert_right,
    base,
    dense_and_sparse,
    expected,
    grads_of,
)
from .truth import backends

pytestmark = pytest.mark.usefixtures("one_thread")
Leaves = tuple[Tensor, ...]


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

    for module in ("_chunks", "_passes"):
        monkeypatch.setattr(f"weighted_bce.linear.{module}.product", product)
    return seen


@pytest.mark.parametrize("grad_output", [1.0, -2.5, 65536.0, 0.0, 3.7])
def test_any_grad_output(device: str, grad_output: float) -> None:
    for case in dense_and_sparse(device):
        for chosen in backends(device):
            with backend(chosen):
                # Unexpected first, expected then, which changes no bit.
                results = [assert_right(case, grad_output) for _ in range(3)]
            if device == "cpu":
                assert all(all(map(torch.equal, one, results[0])) for one in results[1:])


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


def test_the_gradients_that_are_made_are_those_of_the_parameters() -> None:
    """Autograd copies none of them, as it would if anybody else held one."""
    case = base()
    leaves = case.leaves()
    made: dict[int, int] = {}
    for i, leaf in enumerate(leaves):
        leaf.register_hook(lambda grad, i=i: made.update({i: grad.data_ptr()}))
    case(*leaves).backward()
    assert made == {
        i: leaf.grad.data_ptr() for i, leaf in enumerate(leaves) if leaf.grad is not None
    }


def test_a_graph_that_is_kept(device: str) -> None:
    """What an earlier backward returned may have been changed."""
    for case in dense_and_sparse(device):
        leaves = case.leaves()
        loss = case(*leaves)
        large = 2.0 if case.input.dtype == torch.float16 else 65536.0
        for grad_output in (1.0, 1.0, -2.5, 0.0, large):
            grads = torch.autograd.grad(
                loss, leaves, torch.full_like(loss, grad_output), retain_graph=True
            )
            assert_grads(grads, case, grad_output)
            for grad in grads:
                grad.fill_(torch.nan)


def test_a_weight_that_changes_before_backward_raises() -> None:
    case = base()
    x, weight, bias = case.leaves()
    loss = case(x, weight, bias)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def accumulated(case: LinearCase, leaves: Leaves) -> None:
    for _ in range(3):
        (case(*leaves) / 3).backward()


def two_losses_in_anomaly_mode(case: LinearCase, leaves: Leaves) -> None:
    with torch.autograd.detect_anomaly(check_nan=True):
        (case(*leaves) / 4 + 3 * case(*leaves) / 4).backward()


def saved_on_the_cpu(case: LinearCase, leaves: Leaves) -> None:
    with torch.autograd.graph.save_on_cpu():
        loss = case(*leaves)
    loss.backward()


def from_inference_mode(case: LinearCase, leaves: Leaves) -> None:
    with torch.inference_mode():
        assert_loss(case(), case)
        target = (
            case.target.clone() if case.sparse is None else SparseLabels.from_dense(case.target)
        )
        pos_weight = torch.ones(LABELS, device=case.input.device)
    case(*leaves, target=target, pos_weight=pos_weight).backward()


def by_a_grad_scaler(case: LinearCase, leaves: Leaves) -> None:
    scaler = torch.amp.GradScaler(case.input.device.type, init_scale=1024.0)
    optimizer = torch.optim.SGD(leaves, 0.1)
    for _ in range(2):  # the scale is unexpected, then expected
        optimizer.zero_grad()
        scaler.scale(case(*leaves)).backward()
    scaler.unscale_(optimizer)


WAYS = (
    *(accumulated, two_losses_in_anomaly_mode, saved_on_the_cpu, from_inference_mode),
    by_a_grad_scaler,
)


@pytest.mark.parametrize("sparse", [None, torch.int64])
@pytest.mark.parametrize("backward", WAYS)
def test_gradients(
    device: str, backward: Callable[[LinearCase, Leaves], None], sparse: torch.dtype | None
) -> None:
    case = replace(base(torch.float32, device), sparse=sparse)
    leaves = case.leaves()
    backward(case, leaves)
    assert_grads(grads_of(leaves), case)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(device: str, products: Products, reentrant: bool) -> None:
    case = replace(base(torch.float32, device), sparse=torch.int64)
    leaves = case.leaves()
    checkpoint(case, *leaves, use_reentrant=reentrant).backward()
    assert_grads(grads_of(leaves), case)
    assert products.weight_grads() == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction: str) -> None:
    case = base(torch.float64, "cpu", 2, 7, chunk_labels=3, pos_weight=3.0, reduction=reduction)
    case, leaves = replace(case, sparse=torch.int64), case.leaves()
    assert gradcheck(case, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(case, leaves, check_fwd_over_rev=True)


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


def test_many_gradients_at_once() -> None:
    case = base(torch.float64)
    leaves = case.leaves()
    grad_outputs = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    grads = torch.autograd.grad(case(*leaves), leaves, grad_outputs, is_grads_batched=True)
    for grad_output, *own in zip(grad_outputs.tolist(), *grads, strict=True):
        assert_grads(own, case, grad_output)


@pytest.mark.parametrize("name", ["weight", "pos_weight", "target"])
def test_gradients_of_the_other_tensors(device: str, name: str) -> None:
    case = base(torch.float64, device)
    other = torch.rand(case.target.shape, dtype=torch.float64, device=device).requires_grad_()
    leaves = case.leaves()
    logits = F.linear(*leaves)
    wanted = weighted_bce_with_logits(logits, **{"target": case.target, name: other})
    assert_all_near(
        torch.autograd.grad(case(*leaves, **{name: other}), (*leaves, other)),
        torch.autograd.grad(wanted, (*leaves, other)),
        1e-12,
    )


def test_half_precision_is_not_rounded_where_all_logits_are_held(device: str) -> None:
    case = base(torch.bfloat16, device, pos_weight=torch.full((LABELS,), 3.0, device=device))
    pos_weight = case.options["pos_weight"].clone().requires_grad_()
    for x in (case.input, case.input.float()):
        with torch.autocast(device, torch.bfloat16, enabled=x.dtype == torch.float32):
            loss = case(x, *case.layer[1:], pos_weight=pos_weight)
        assert_loss(loss, case)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast(device: str, half: torch.dtype) -> None:
    """The gradients have the dtypes of what they belong to; half precision and float32 may mix."""
    single, double = base(torch.float32, device), base(torch.float64, device)
    mixed = replace(single, input=single.input.to(half))
    close = None if device == "cpu" else 0.02
    for case, relative in ((single, close), (mixed, 0.02), (double, None)):
        leaves = case.leaves()
        with torch.autocast(device, half):
            loss = case(*leaves)
        loss.backward()
        assert_loss(loss, case, relative)
        assert_grads(grads_of(leaves), case, 1.0, relative)
