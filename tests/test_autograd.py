"""Gradients in every way in which autograd can ask for them."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from weighted_bce import weighted_bce_with_logits

from .truth import REDUCTIONS, Case, as_given, assert_grad, check, labels, logits, sample_inputs

GRAD_OUTPUTS = (0.0, 1.0, -2.5, 65536.0, 3.7)


def cases(device: str) -> list[Case]:
    return [c for c in sample_inputs(device, (torch.float32, torch.bfloat16)) if c.input.numel()]


@pytest.mark.parametrize("grad_output", GRAD_OUTPUTS)
def test_grad_outputs(device: str, chosen: str, grad_output: float) -> None:
    for case in cases(device):
        for _ in range(3):  # unexpected first, expected then
            check(case, grad_output=grad_output)


def test_non_leaf_logits(device: str) -> None:
    for case in cases(device):
        for factor in GRAD_OUTPUTS:
            leaf = case.input.detach().requires_grad_()
            (case(leaf * 1.0) * factor).backward()
            assert_grad(leaf.grad, case, factor)


def test_retained_graph_with_different_scales(device: str) -> None:
    for case in cases(device):
        leaf = case.input.detach().requires_grad_()
        loss = case(leaf * 1.0)
        for factor in (1.0, 1.0, -2.5, 1.0, 0.0, 65536.0):
            leaf.grad = None
            loss.backward(torch.full_like(loss, factor), retain_graph=True)
            assert_grad(leaf.grad, case, factor)
        leaf.grad = None
        loss.backward()
        assert_grad(leaf.grad, case)


def test_hooks_that_modify_the_gradient_in_place(device: str) -> None:
    for case in cases(device):
        leaf = case.input.detach().requires_grad_()
        hidden = leaf * 1.0
        hidden.register_hook(lambda grad: grad.mul_(2))
        loss = case(hidden)
        for retain in (True, True, False):
            leaf.grad = None
            loss.backward(retain_graph=retain)
            assert_grad(leaf.grad, case, 2.0)


def test_gradients_accumulate(device: str) -> None:
    for case in cases(device):
        leaf = case.input.detach().float().requires_grad_()
        case.input = leaf.detach()
        for steps in range(1, 4):
            case(leaf).backward()
            assert_grad(leaf.grad, case, steps)
        loss = case(leaf)  # the gradient modified in place belongs to nobody else
        loss.backward(retain_graph=True)
        leaf.grad.mul_(100)
        leaf.grad = None
        loss.backward(retain_graph=True)
        assert_grad(leaf.grad, case)


def test_nothing_is_modified(device: str) -> None:
    """Inputs, saved tensors and grad_output stay, by value and by version."""
    for case in cases(device):
        for factor in (1.0, 1.0, 65536.0):
            leaf = case.input.detach().requires_grad_()
            loss = case(leaf)
            grad_output = torch.full_like(loss, factor)
            tensors = [leaf.detach(), case.target, case.weight, case.pos_weight, grad_output]
            tensors = [t for t in tensors if isinstance(t, Tensor)]
            before = [(t.clone(), t._version) for t in tensors]
            loss.backward(grad_output, retain_graph=True)
            loss.backward(grad_output)
            for tensor, (value, version) in zip(tensors, before, strict=True):
                assert torch.equal(tensor, value)
                assert tensor._version == version


@pytest.mark.parametrize("device", ["cpu"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("sparse", "options"),
    [
        (None, {}),
        (None, {"label_smoothing": 0.2}),
        (None, {"ignore_index": 0.0}),
        (torch.int64, {"label_smoothing": 0.2, "ignore_index": 1}),
    ],
)
def test_gradcheck(chosen: str, reduction: str, sparse: Any, options: dict[str, Any]) -> None:
    x, y = logits(3, 4, dtype=torch.float64) / 3, torch.rand(3, 4, dtype=torch.float64)
    if "ignore_index" in options:
        y[0, :2] = 0.0
    w, p = torch.rand(3, 1, dtype=torch.float64) + 0.5, torch.rand(4, dtype=torch.float64) + 0.5
    given = y if sparse is None else as_given(y < 0.4, sparse)

    def loss(x: Tensor, w: Tensor = w, p: Tensor = p, y: Any = given) -> Tensor:
        return weighted_bce_with_logits(x, y, w, p, reduction, **options)

    x.requires_grad_()
    forward = dict(check_forward_ad=True, check_batched_forward_grad=True)
    assert gradcheck(partial(loss, w=w, p=p), x, check_batched_grad=True, **forward)
    second = dict(check_fwd_over_rev=True, check_rev_over_rev=True)
    assert gradgradcheck(partial(loss, w=w, p=p), x, check_batched_grad=True, **second)
    # Whatever else requires a gradient gets the right one.
    others = (w, p) if "ignore_index" in options else (w, p, y)
    leaves = (x, *(t.clone().requires_grad_() for t in others))
    assert gradcheck(loss, leaves)
    assert gradgradcheck(loss, leaves)


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


@pytest.mark.parametrize("shape", [(), (9,), (6, 1), (6, 9)])
def test_gradients_of_factors_of_sparse_labels(device: str, shape: tuple[int, ...]) -> None:
    x, y = logits(6, 9, device=device), labels(6, 9, device=device)
    grads = []
    for sparse in (None, torch.int64):
        factors = [torch.full(shape, v, device=device, requires_grad=True) for v in (2.0, 3.0)]
        loss = weighted_bce_with_logits(x, as_given(y, sparse), *factors, label_smoothing=0.1)
        grads.append(torch.autograd.grad(loss, factors))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("changed", ["logits", "dense target", "col_indices", "crow_indices"])
def test_what_is_modified_before_backward_is_noticed(device: str, changed: str) -> None:
    """What autograd saved and somebody changed is an error, not a wrong gradient."""
    y = labels(4, 5, device=device)
    target = as_given(y, torch.int64 if "indices" in changed else None)
    hidden = logits(4, 5, device=device).requires_grad_() * 1.0
    loss = weighted_bce_with_logits(hidden, target)
    saved = {"logits": hidden.detach(), "dense target": y}
    (saved[changed] if changed in saved else getattr(target, changed)).zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss * 2).backward()


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
