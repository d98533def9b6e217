"""torch.func and forward-mode AD get fused ops and right derivatives, however they are nested."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu
from torch.func import functionalize, grad, hessian, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from weighted_bce import weighted_bce_with_logits
from weighted_bce._extension import extension

from .transforms import (
    DTYPES,
    LABELS,
    ROWS,
    SLOW_BATCHING,
    TRANSFORMS,
    Ops,
    hard_samples,
    loss,
    same,
    samples,
)
from .truth import REDUCTIONS, as_given, labels, logits

pytestmark = [pytest.mark.skipif(extension is None, reason="no extension"), SLOW_BATCHING]

OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"pos_weight": torch.rand(LABELS) + 0.5},
    "smoothing": {"label_smoothing": 0.2},
    "ignored": {"ignore_index": 1},
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("options", "dtype", "sparse"),
    [
        *product(["weights"], DTYPES, [None]),
        *product(OPTIONS, DTYPES[2:], [torch.int64]),
    ],
)
def test_all_transforms(
    kernel_device: str, reduction: str, options: str, dtype: torch.dtype, sparse: Any
) -> None:
    on = {k: v.to(kernel_device) if k == "pos_weight" else v for k, v in OPTIONS[options].items()}
    close = dict(rtol=0.02, atol=0.02) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-6)
    given = samples(kernel_device, dtype, sparse, reduction=reduction, **on)
    stack = hard_samples(kernel_device)
    dense = replace(given, ys=stack, y=stack[0])
    for name, transform in TRANSFORMS.items():
        result = same(partial(transform, given), **close)
        if sparse is not None:
            torch.testing.assert_close(result, transform(dense), msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("name", ["target", "weight", "pos_weight"])
def test_other_arguments(kernel_device: str, name: str) -> None:
    """Derivatives with respect to them are right at every level, and under every other one."""
    x = logits(3, 4, device=kernel_device)
    rest = {n: torch.rand(3, 4, device=kernel_device) for n in ("target", "weight", "pos_weight")}
    value, tangent = rest.pop(name), torch.rand(3, 4, device=kernel_device)

    def f(v: Tensor, x: Tensor = x) -> Tensor:
        return weighted_bce_with_logits(x, **{**rest, name: v})

    def mixed(v: Tensor) -> Tensor:
        return vmap(lambda x, v: grad(lambda x: f(v, x))(x).sum(), (None, 0))(x, v[None])

    def within(v: Tensor) -> Tensor:
        return vmap(lambda v: f(v))(v[None]).sum()

    def dual(v: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(v, tangent))).tangent

    def plain(v: Tensor) -> Tensor:
        v = v.clone().requires_grad_()
        (result,) = torch.autograd.grad(vmap(f)(v[None]).sum(), v)
        return result

    same(lambda: grad(f)(value))
    same(lambda: grad(lambda v: mixed(v).sum())(value))
    same(lambda: jvp(within, (value,), (tangent,)))
    same(lambda: grad(within)(value))
    same(lambda: dual(value))
    same(lambda: plain(value))


def test_dual_levels(kernel_device: str, sparse: torch.dtype | None) -> None:
    """They pass eager mode, also with logits that need a gradient, and backward alone."""
    given = samples(kernel_device, sparse=sparse, pos_weight=3.0)
    x, tangent = given.x, given.t
    expected = hessian(given.loss)(x).flatten(2).matmul(tangent.flatten())
    slope = (grad(given.loss)(x) * tangent).sum()
    for leaf in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level(), Ops() as names:
            dual = forward_ad.make_dual(leaf, tangent)
            value = given.loss(dual)
            torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, slope)
            assert names == ["loss", "grad"]
            if leaf.requires_grad:
                (gradient,) = torch.autograd.grad(value, dual)
                actual = forward_ad.unpack_dual(gradient).tangent
                torch.testing.assert_close(actual.flatten(), expected.flatten())
    value = given.loss(leaf)
    with forward_ad.dual_level():
        one = forward_ad.make_dual(torch.ones_like(value), torch.full_like(value, 2.5))
        (gradient,) = torch.autograd.grad(value, leaf, one)
        actual = forward_ad.unpack_dual(gradient).tangent
    torch.testing.assert_close(actual, 2.5 * grad(given.loss)(x))


def recorded(kind: str, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient of a loss recorded in some surroundings, as a function of grad_output."""
    leaf = x.clone().requires_grad_()
    surroundings: dict[str, Any] = {"hooks": save_on_cpu(), "mode": Ops()}
    with surroundings.get(kind, nullcontext()):
        losses = loss(leaf, y, reduction="none")

    def slope(grad_output: Tensor) -> Tensor:
        keep = dict(retain_graph=True, create_graph=kind == "created")
        (result,) = torch.autograd.grad(losses, leaf, grad_output, **keep)
        return result

    return vjp(lambda x: loss(x, y, reduction="none"), x)[1] if kind == "vjp" else slope


@pytest.mark.parametrize("kind", ["plain", "created", "hooks", "mode", "vjp"])
def test_transforms_of_backward(kernel_device: str, kind: str) -> None:
    """A gradient recorded before is linear in grad_output, under any transform."""
    x, y = logits(3, 4, device=kernel_device) / 3, labels(3, 4, device=kernel_device)
    u, t, s = torch.randn(3, 3, 4, device=kernel_device)
    slope = grad(lambda x: loss(x, y, reduction="sum"))(x)
    backward = recorded(kind, x, y)

    def f(u: Tensor) -> Tensor:
        result = backward(u)
        return result[0] if isinstance(result, tuple) else result

    torch.testing.assert_close(jvp(f, (u,), (t,)), (u * slope, t * slope))
    inner = jvp(lambda t: jvp(f, (u,), (t,))[1], (t,), (s,))
    torch.testing.assert_close(inner, (t * slope, s * slope))
    with forward_ad.dual_level():
        actual = forward_ad.unpack_dual(f(forward_ad.make_dual(u, t))).tangent
    torch.testing.assert_close(actual, t * slope)
    torch.testing.assert_close(vmap(f)(torch.stack([u, t])), torch.stack([u, t]) * slope)
    if kind in ("created", "vjp"):
        torch.testing.assert_close(grad(lambda u: (f(u) * s).sum())(u), s * slope)


@pytest.mark.parametrize("transform", [lambda f: f, grad], ids=["loss", "gradient"])
def test_functionalized_and_traced(
    device: str, chosen: str, sparse: torch.dtype | None, transform: Any
) -> None:
    x, y = logits(ROWS, LABELS, device=device), as_given(hard_samples(device)[0], sparse)
    function = transform(lambda x, y: loss(x, y))
    expected = function(x, y)
    torch.testing.assert_close(functionalize(function)(x, y), expected)
    torch.testing.assert_close(make_fx(function)(x, y)(x, y), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_grad_outputs_at_once(
    kernel_device: str, sparse: torch.dtype | None, reduction: str
) -> None:
    """torch.autograd maps over them in an old way, which would call an op once for each."""
    given = samples(kernel_device, sparse=sparse, reduction=reduction)
    x = given.x.requires_grad_()
    factors = torch.tensor([1.0, -2.5, 3.0], device=kernel_device).view(3, 1, 1)
    value = given.loss(x)
    many = factors.view(3, *(1,) * value.dim()).expand(3, *value.shape)
    with Ops() as names:
        (actual,) = torch.autograd.grad(value, x, many, is_grads_batched=True)
    assert names == []
    torch.testing.assert_close(actual, factors * grad(given.total)(x.detach()))
