"""Gradients in every way in which autograd can ask for them."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from weighted_bce import backend, weighted_bce_with_logits

from .truth import (
    REDUCTIONS,
    Case,
    assert_close,
    backends,
    check,
    divisor,
    labels,
    logits,
    sample_inputs,
    truth,
)

UPSTREAM = (0.0, 1.0, -2.5, 65536.0, 3.7)


def expected_grad(case: Case) -> tuple[Tensor, Tensor]:
    """The gradient for an upstream gradient of 1, and what its errors are relative to."""
    found = truth(case)
    by = divisor(case, found.count)
    return found.grad / by, found.terms / by


def assert_grad(actual: Tensor | None, case: Case, factor: float, what: str = "") -> None:
    assert actual is not None
    grad, size = expected_grad(case)
    assert_close(actual, grad * factor, size * abs(factor), what)


def cases(device: str) -> list[Case]:
    return [c for c in sample_inputs(device, (torch.float32, torch.bfloat16)) if c.input.numel()]


@pytest.mark.parametrize("upstream", UPSTREAM)
def test_upstream_gradients(device: str, upstream: float) -> None:
    for case in cases(device):
        for chosen in backends(device):
            for _ in range(3):  # unexpected first, expected then
                check(case, chosen, upstream)


def test_non_leaf_logits(device: str) -> None:
    for case in cases(device):
        for factor in UPSTREAM:
            leaf = case.input.detach().requires_grad_()
            (case(leaf * 1.0) * factor).backward()
            assert_grad(leaf.grad, case, factor, case.name)


def test_retained_graph_with_different_scales(device: str) -> None:
    for case in cases(device):
        leaf = case.input.detach().requires_grad_()
        loss = case(leaf * 1.0)
        for factor in (1.0, 1.0, -2.5, 1.0, 0.0, 65536.0):
            leaf.grad = None
            loss.backward(torch.full_like(loss, factor), retain_graph=True)
            assert_grad(leaf.grad, case, factor, case.name)
        leaf.grad = None
        loss.backward()
        assert_grad(leaf.grad, case, 1.0, case.name)


def test_hooks_that_modify_the_gradient_in_place(device: str) -> None:
    for case in cases(device):
        leaf = case.input.detach().requires_grad_()
        hidden = leaf * 1.0
        hidden.register_hook(lambda grad: grad.mul_(2))
        loss = case(hidden)
        for retain in (True, True, False):
            leaf.grad = None
            loss.backward(retain_graph=retain)
            assert_grad(leaf.grad, case, 2.0, case.name)


def test_gradients_accumulate(device: str) -> None:
    for case in cases(device):
        leaf = case.input.detach().float().requires_grad_()
        case.input = leaf.detach()
        for steps in range(1, 4):
            case(leaf).backward()
            assert_grad(leaf.grad, case, steps, case.name)
        loss = case(leaf)  # the gradient modified in place belongs to nobody else
        loss.backward(retain_graph=True)
        leaf.grad.mul_(100)
        leaf.grad = None
        loss.backward(retain_graph=True)
        assert_grad(leaf.grad, case, 1, case.name)


def test_nothing_is_modified(device: str) -> None:
    """Inputs, saved tensors and incoming gradients, by value and by version."""
    for case in cases(device):
        for factor in (1.0, 1.0, 65536.0):
            leaf = case.input.detach().requires_grad_()
            loss = case(leaf)
            upstream = torch.full_like(loss, factor)
            tensors = [leaf.detach(), case.target, case.weight, case.pos_weight, upstream]
            tensors = [t for t in tensors if isinstance(t, Tensor)]
            before = [(t.clone(), t._version) for t in tensors]
            loss.backward(upstream, retain_graph=True)
            loss.backward(upstream)
            for tensor, (value, version) in zip(tensors, before, strict=True):
                assert torch.equal(tensor, value)
                assert tensor._version == version


def _double(*, reduction: str, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    x, y = logits(3, 4, dtype=torch.float64) / 3, torch.rand(3, 4, dtype=torch.float64)
    w, p = torch.rand(3, 1, dtype=torch.float64) + 0.5, torch.rand(4, dtype=torch.float64) + 0.5

    def loss(x: Tensor, y: Tensor = y, w: Tensor = w, p: Tensor = p) -> Tensor:
        return weighted_bce_with_logits(x, y, w, p, reduction, **options)

    return loss, tuple(t.requires_grad_() for t in (x, y, w, p))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chosen", ["fused", "reference"])
def test_gradcheck(reduction: str, chosen: str) -> None:
    with backend(chosen):
        for options in ({}, {"label_smoothing": 0.2}):
            loss, (x, y, w, p) = _double(reduction=reduction, **options)
            inner = partial(loss, y=y.detach(), w=w.detach(), p=p.detach())
            assert gradcheck(inner, x)
            assert gradgradcheck(inner, x)
            # Whatever else requires a gradient gets the right one.
            assert gradcheck(loss, (x, y, w, p))
            assert gradgradcheck(loss, (x, y, w, p))


@pytest.mark.parametrize("wanted", ["target", "weight", "pos_weight"])
def test_gradient_of_another_argument_alone(device: str, wanted: str) -> None:
    x = logits(3, 4, dtype=torch.float64, device=device)
    rest = {n: torch.rand(3, 4).double().to(device) for n in ("target", "weight", "pos_weight")}
    leaf = rest[wanted].requires_grad_()
    weighted_bce_with_logits(x, **rest, reduction="sum").backward()
    a, b = torch.nn.functional.softplus(-x), torch.nn.functional.softplus(x)
    y, w, p = (t.detach() for t in rest.values())
    expected = {
        "target": w * (p * a - b),
        "weight": p * y * a + (1 - y) * b,
        "pos_weight": w * y * a,
    }[wanted]
    torch.testing.assert_close(leaf.grad, expected)


def test_double_backward_through_a_penalty(device: str) -> None:
    """A gradient penalty, with the ops and with the reference."""
    grads: list[Tensor] = []
    x = logits(5, 6, dtype=torch.float64, device=device).requires_grad_()
    for chosen in backends(device):
        with backend(chosen):
            loss = weighted_bce_with_logits(x, x.detach() > 0, pos_weight=3.0)
            (grad,) = torch.autograd.grad(loss * 7, x, create_graph=True)
            grads += torch.autograd.grad(grad.square().sum() + loss, x)
    torch.testing.assert_close(*grads)


def test_torch_func(device: str) -> None:
    x, y = logits(5, 6, device=device), labels(5, 6, device=device)
    case = Case(x, y, None, 3.0)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return weighted_bce_with_logits(x, y, pos_weight=3.0)

    assert_grad(torch.func.grad(loss)(x, y), case, 1, "grad")
    rows = torch.func.vmap(loss)(x, y)
    torch.testing.assert_close(rows, torch.stack([loss(*pair) for pair in zip(x, y, strict=True)]))
    per_row = torch.func.vmap(torch.func.grad(loss))(x, y)
    assert_grad(per_row / 5, case, 1, "per row")
    tangent = torch.randn_like(x)
    value, slope = torch.func.jvp(lambda x: loss(x, y), (x,), (tangent,))
    torch.testing.assert_close(value, loss(x, y))
    expected, _ = expected_grad(case)
    torch.testing.assert_close(slope.float(), (expected * tangent).sum().float())
    hessian = torch.func.hessian(lambda x: loss(x, y))(x).reshape(30, 30)
    s = torch.sigmoid(x)
    curvature = (s * (1 - s) * torch.where(y, 3.0, 1.0)).flatten() / 30
    torch.testing.assert_close(hessian, torch.diag(curvature))


def test_forward_mode(device: str) -> None:
    x, y = logits(5, 6, device=device), labels(5, 6, device=device)
    tangent = torch.randn_like(x)
    expected, _ = expected_grad(Case(x, y, None, 3.0))
    for leaf in (x, x.clone().requires_grad_()):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(leaf, tangent)
            loss = weighted_bce_with_logits(dual, y, pos_weight=3.0)
            slope = torch.autograd.forward_ad.unpack_dual(loss).tangent
        torch.testing.assert_close(slope.float(), (expected * tangent).sum().float())


def test_batched_upstream_gradients(device: str) -> None:
    """is_grads_batched runs backward under vmap."""
    for reduction in ("mean", "none"):
        case = Case(logits(4, 5, device=device), labels(4, 5, device=device), reduction=reduction)
        x = case.input.clone().requires_grad_()
        loss = case(x)
        factors = torch.tensor([1.0, -2.5, 3.0], device=device)
        upstream = factors.view(3, *(1,) * loss.dim()).expand(3, *loss.shape)
        (grads,) = torch.autograd.grad(loss, x, upstream, is_grads_batched=True)
        for grad, factor in zip(grads, factors.tolist(), strict=True):
            assert_grad(grad, case, factor, reduction)


def test_modified_logits_are_noticed(device: str) -> None:
    """What autograd saved and somebody changed is an error, not a wrong gradient."""
    x = logits(4, 5, device=device).requires_grad_()
    hidden = x * 1.0
    loss = weighted_bce_with_logits(hidden, labels(4, 5, device=device))
    hidden.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_many_threads_with_scales_of_their_own(device: str) -> None:
    shared = [Case(logits(64, 33, device=device), labels(64, 33, device=device), None, 3.0)]
    shared.append(Case(logits(700, 400, device=device), labels(700, 400, device=device), None, 3.0))

    def work(number: int) -> None:
        for step in range(20):
            case = shared[step % 2]
            leaf = case.input.clone().requires_grad_()
            factor = 2.0 ** (number if step < 10 else step)
            (case(leaf) * factor).backward()
            assert_grad(leaf.grad, case, factor)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))  # raises what a thread raised
