"""Gradients of the loss of a linear layer, in every way in which autograd can ask for them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from weighted_bce import (
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    backend,
    linear_weighted_bce_with_logits,
    weighted_bce_with_logits,
)
from weighted_bce.linear import _passes

from .linear_cases import (
    DTYPES,
    FEATURES,
    LABELS,
    REDUCTIONS,
    LinearCase,
    assert_near,
    assert_right,
    base,
    expected,
    tolerance,
)
from .truth import backends

pytestmark = pytest.mark.usefixtures("one_thread")
UPSTREAM = (1.0, -2.5, 65536.0, 0.0, 3.7)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was computed in chunks: "loss", "gradients"."""
    seen: list[str] = []

    def counted(name: str, what: str) -> None:
        function = getattr(_passes, name)

        def call(*args: Any) -> Any:
            seen.append(what)
            return function(*args)

        monkeypatch.setattr(_passes, name, call)

    counted("loss", "loss")
    counted("loss_and_gradients", "gradients")
    return seen


def both(device: str) -> Iterator[LinearCase]:
    for dtype in DTYPES:
        case = base(dtype, device)
        yield case
        yield replace(case, sparse=torch.int64)


def assert_grads(leaves: tuple[Tensor, ...], case: LinearCase, upstream: float) -> None:
    _, grads = expected(case, upstream)
    for leaf, wanted in zip(leaves, grads, strict=True):
        assert_near(leaf.grad, wanted, tolerance(leaf.dtype), case.name)


@pytest.mark.parametrize("upstream", UPSTREAM)
def test_upstream_gradients(device: str, upstream: float) -> None:
    for case in both(device):
        for chosen in backends(device):
            with backend(chosen):
                for _ in range(3):  # unexpected first, expected then
                    assert_right(case, upstream)


def test_one_pass_where_the_guess_is_right(passes: list[str]) -> None:
    case = base()
    for upstream in (1.0, 4.0, 4.0, 0.0, 4.0):
        leaves = case.leaves()
        loss = case(leaves)
        loss.backward(torch.full_like(loss, upstream))
        assert_grads(leaves, case, upstream)
    again = ["gradients"]  # made for the upstream gradient that came
    assert passes == ["gradients"] + 2 * again + ["gradients"] + 2 * again + ["gradients"]


def test_guessing_changes_no_bit() -> None:
    for dtype in DTYPES:
        case = base(dtype)
        found = []
        for _ in range(3):
            leaves = case.leaves()
            loss = case(leaves)
            found.append(torch.autograd.grad(loss, leaves, torch.full_like(loss, 3.7)))
        for one in found[1:]:
            assert all(map(torch.equal, one, found[0]))


def test_only_what_is_needed(device: str) -> None:
    case = base(torch.float32, device)
    for chosen in range(8):
        wanted = [bool(chosen >> i & 1) for i in range(3)]
        leaves = tuple(t.requires_grad_(n) for t, n in zip(case.leaves(), wanted, strict=True))
        loss = case(leaves)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        for leaf, needed, grad in zip(leaves, wanted, expected(case)[1], strict=True):
            assert (leaf.grad is not None) == needed
            if needed:
                assert_near(leaf.grad, grad, 1e-5)


def test_products_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, ...]] = []
    original = _passes.product

    def product(a: Tensor, b: Tensor, out: Tensor) -> None:
        counted.append(tuple(out.shape))
        original(a, b, out)

    monkeypatch.setattr(_passes, "product", product)
    case = base()
    x, weight, bias = case.leaves()
    case((x, weight.detach(), bias.detach())).backward()
    assert not counted  # of the gradient of the weight
    case((x.detach(), weight, bias)).backward()
    assert sum(rows for rows, _ in counted) == LABELS


def test_the_gradient_becomes_that_of_the_weight_without_a_copy() -> None:
    x, weight, bias = base().leaves()
    loss = base()((x, weight, bias))
    made = [g.data_ptr() for g in loss.grad_fn.gradients]  # type: ignore[union-attr]
    loss.backward()
    assert [t.grad.data_ptr() for t in (x, weight, bias) if t.grad is not None] == made


def test_retained_graph_with_different_scales(device: str) -> None:
    for case in both(device):
        leaves = case.leaves()
        loss = case(leaves)
        for factor in (1.0, 1.0, -2.5, 0.0, 65536.0 if case.input.dtype != torch.float16 else 2.0):
            for leaf in leaves:
                leaf.grad = None
            loss.backward(torch.full_like(loss, factor), retain_graph=True)
            assert_grads(leaves, case, factor)


def test_what_was_given_away_may_be_changed() -> None:
    case = base()
    leaves = case.leaves()
    loss = case(leaves)
    for _ in range(2):
        found = torch.autograd.grad(loss, leaves, retain_graph=True)
        for grad, wanted in zip(found, expected(case)[1], strict=True):
            assert_near(grad, wanted, 1e-5)
            grad.fill_(torch.nan)


def test_inputs_are_left_alone(device: str) -> None:
    for case in both(device):
        leaves = case.leaves()
        before = [leaf.detach().clone() for leaf in leaves]
        upstream = torch.tensor(2.0, dtype=case().dtype, device=device)
        case(leaves).backward(upstream)
        assert all(map(torch.equal, leaves, before))
        assert upstream.item() == 2.0


def test_accumulation() -> None:
    case = base()
    leaves = case.leaves()
    for _ in range(3):
        (case(leaves) / 3).backward()
    assert_grads(leaves, case, 1.0)


def test_a_weight_that_changes_before_backward_raises() -> None:
    case = base()
    x, weight, bias = case.leaves()
    loss = case((x, weight, bias))
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def _function(case: LinearCase) -> Callable[..., Tensor]:
    return lambda *layer: case(layer)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction: str) -> None:
    case = replace(base(torch.float64, rows=2, labels=7), sparse=torch.int64)
    case = case.with_options(reduction=reduction, chunk_labels=3, pos_weight=3.0)
    function, leaves = _function(case), case.leaves()
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True)


def test_second_derivatives_of_half_precision() -> None:
    case = base(torch.bfloat16)
    leaves, wide = case.leaves(), [t.double().requires_grad_() for t in case.layer]
    truth = weighted_bce_with_logits(F.linear(*wide), case.target)
    for loss, own in ((case(leaves), leaves), (truth, wide)):
        grads = torch.autograd.grad(loss, own, create_graph=True)
        sum(g.double().square().sum() for g in grads).backward()
    for leaf, wanted in zip(leaves, wide, strict=True):
        assert wanted.grad is not None
        assert_near(leaf.grad, wanted.grad, 0.05)


def test_torch_func() -> None:
    case = base(torch.float64, rows=4, labels=20).with_options(chunk_labels=8)
    function, layer = _function(case), case.layer
    grads = torch.func.grad(function, argnums=(0, 1, 2))(*layer)
    for actual, wanted in zip(grads, expected(case)[1], strict=True):
        assert_near(actual, wanted, 1e-12)
    many = torch.randn(3, *case.input.shape, dtype=torch.float64)
    losses = torch.func.vmap(lambda x: function(x, *layer[1:]))(many)
    for loss, x in zip(losses, many, strict=True):
        assert_near(loss, function(x, *layer[1:]), 1e-12)
    hessian = torch.func.hessian(lambda b: function(*layer[:2], b))(layer[2])
    wanted = torch.autograd.functional.hessian(lambda b: function(*layer[:2], b), layer[2])
    assert_near(hessian, wanted, 1e-12)


@pytest.mark.parametrize("name", ["weight", "pos_weight", "target"])
def test_gradients_of_the_other_tensors(device: str, name: str) -> None:
    case = base(torch.float64, device)
    other = torch.rand(case.target.shape, dtype=torch.float64, device=device).requires_grad_()
    leaves = case.leaves()
    options = {name: other} if name != "target" else {}
    target = other if name == "target" else case.target
    x, weight, bias = leaves
    loss = linear_weighted_bce_with_logits(x, weight, target, linear_bias=bias, **options)
    wanted = weighted_bce_with_logits(F.linear(x, weight, bias), target, **options)
    found = torch.autograd.grad(loss, (*leaves, other))
    for actual, grad in zip(found, torch.autograd.grad(wanted, (*leaves, other)), strict=True):
        assert_near(actual, grad, 1e-12)


def test_half_precision_is_not_rounded_where_all_logits_are_held(device: str) -> None:
    case = base(torch.bfloat16, device).with_options(
        pos_weight=torch.full((LABELS,), 3.0).to(device)
    )
    wanted, _ = expected(case)
    weight = case.options["pos_weight"].clone().requires_grad_()
    for layer in (case.layer, (case.input.float(), *case.layer[1:])):
        with torch.autocast(device, torch.bfloat16, enabled=layer[0].dtype == torch.float32):
            loss = case(layer, pos_weight=weight)
        assert_near(loss, wanted, 5e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(device: str, passes: list[str], reentrant: bool) -> None:
    case = replace(base(torch.float32, device), sparse=torch.int64)
    leaves = case.leaves()
    checkpoint(lambda *layer: case(layer), *leaves, use_reentrant=reentrant).backward()
    assert_grads(leaves, case, 1.0)
    assert passes.count("gradients") == 1


def test_saved_tensor_hooks(device: str) -> None:
    case = base(torch.float32, device)
    leaves = case.leaves()
    with torch.autograd.graph.save_on_cpu():
        loss = case(leaves)
    loss.backward()
    assert_grads(leaves, case, 1.0)


def test_inference_mode(device: str) -> None:
    case = base(torch.float32, device)
    with torch.inference_mode():
        assert_near(case(), expected(case)[0], 1e-5)
        targets = case.target.clone(), SparseLabels.from_dense(case.target)
        weights = torch.ones(LABELS, device=device)
    x, weight, bias = case.leaves()
    for target in targets:
        loss = linear_weighted_bce_with_logits(
            x, weight, target, linear_bias=bias, pos_weight=weights
        )
        x.grad = weight.grad = bias.grad = None
        loss.backward()
        assert_grads((x, weight, bias), case, 1.0)


def test_anomaly_mode_and_several_losses() -> None:
    case = base()
    leaves = case.leaves()
    with torch.autograd.detect_anomaly(check_nan=True):
        (case(leaves) + 2 * case(leaves)).backward()
    assert_grads(leaves, case, 3.0)


def test_many_gradients_at_once() -> None:
    case = base(torch.float64)
    leaves = case.leaves()
    vectors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = torch.autograd.grad(case(leaves), leaves, vectors, is_grads_batched=True)
    for actual, wanted in zip(found, expected(case)[1], strict=True):
        for factor, one in zip(vectors, actual, strict=True):
            assert_near(one, wanted * factor, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(device: str, dtype: torch.dtype) -> None:
    """The gradients have the dtypes of what they belong to; half precision and float32 may mix."""
    case = base(torch.float32, device)
    for x in (case.input, case.input.to(dtype)):
        here = replace(case, input=x)
        leaves = here.leaves()
        with torch.autocast(device, dtype):
            loss = here(leaves)
        assert loss.dtype == torch.float32
        loss.backward()
        close = 5e-6 if x.dtype == torch.float32 and device == "cpu" else 0.02
        assert_near(loss, expected(here)[0], close)
        for leaf, wanted in zip(leaves, expected(here)[1], strict=True):
            assert leaf.grad is not None
            assert leaf.grad.dtype == leaf.dtype
            assert_near(leaf.grad, wanted, max(close, tolerance(leaf.dtype)))


def test_autocast_with_float64(device: str) -> None:
    case = base(torch.float64, device)
    with torch.autocast(device, torch.bfloat16):
        assert_right(case)


def test_grad_scaler(device: str) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, chunk_labels=64, device=device)
    plain = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
    plain.load_state_dict(criterion.state_dict())
    case = base(torch.float32, device)
    optimizer = torch.optim.SGD(criterion.parameters(), 0.1)
    other = torch.optim.SGD(plain.parameters(), 0.1)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=2)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(criterion(case.input, case.target)).backward()
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        weighted_bce_with_logits(plain.logits(case.input), case.target).backward()
        other.step()
    assert scaler.get_scale() == 4096.0
    for actual, wanted in zip(criterion.parameters(), plain.parameters(), strict=True):
        assert_near(actual, wanted.double(), 1e-5)
