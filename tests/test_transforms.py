"""torch.func and forward-mode AD get fused ops and right derivatives, however they are nested."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_bce import backend, weighted_bce_with_logits
from weighted_bce._extension import extension

from .truth import REDUCTIONS, labels, logits

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


class Ops(TorchDispatchMode):
    """Remembers which of our ops ran."""

    def __enter__(self) -> list[str]:
        self.names: list[str] = []
        super().__enter__()
        return self.names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "weighted_bce":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _no_slow_batching() -> Iterator[None]:
    """A batching rule that is missing is a warning of torch about performance."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        yield


def same(fused: Callable[[], Any], rtol: float = 1e-5, atol: float = 1e-6) -> Any:
    """The result, which the reference gives as well."""
    with backend("reference"):
        expected = fused()
    with backend("fused"):
        result = fused()
    torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)
    return result


def loss(x: Tensor, y: Tensor, w: Tensor | None = None, p: Any = 3.0, **options: Any) -> Tensor:
    return weighted_bce_with_logits(x, y, w, p, **options)


# Where the samples of input, target, weight and pos_weight lie; None: all share one.
IN_DIMS = [
    *((0, 0, None, None), (1, 0, 1, 0), (0, None, None, None), (None, 1, None, None)),
    *((2, 2, 1, 1), (None, None, 0, None), (None, None, None, 0), (-1, 0, None, -1)),
]


@pytest.mark.parametrize("in_dims", IN_DIMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, -1])
def test_vmap_over_any_dimension(
    kernel_device: str, in_dims: tuple[int | None, ...], reduction: str, ignore_index: int | None
) -> None:
    """The loss and, sample by sample, its gradient."""
    x, y = logits(4, 5), labels(4, 5).long()
    y = torch.where(torch.rand(4, 5) < 0.2, -1, y) if ignore_index is not None else y
    w, p = torch.rand(5) + 0.5, torch.rand(4, 1) + 0.5

    def stacked(t: Tensor, dim: int | None) -> Tensor:
        many = torch.stack([t.roll(i, 0) for i in range(3)])
        return t if dim is None else many.movedim(0, dim)

    args = [stacked(t, dim).to(kernel_device) for t, dim in zip((x, y, w, p), in_dims, strict=True)]

    def one(*args: Tensor) -> Tensor:
        return loss(*args, reduction=reduction, ignore_index=ignore_index, label_smoothing=0.1)

    def scaled(*args: Tensor) -> Tensor:
        return (one(*args) * torch.arange(1, 6, device=kernel_device)).sum()

    result = same(lambda: vmap(one, in_dims)(*args))
    rows = [
        one(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(3)
    ]
    torch.testing.assert_close(result, torch.stack(rows))
    same(lambda: vmap(grad(scaled), in_dims)(*args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_sample_gradients_are_one_call(kernel_device: str, dtype: torch.dtype) -> None:
    x, y = logits(64, 9, dtype=dtype, device=kernel_device), labels(64, 9, device=kernel_device)
    for target in (y.float(), y):  # of which only the logits are differentiated
        with Ops() as names:
            rows = vmap(grad(loss))(x, target)
        assert names == ["unreduced", "grad"]
    singles = [loss(*row) for row in zip(x, y, strict=True)]
    torch.testing.assert_close(vmap(loss)(x, y), torch.stack(singles), rtol=1e-5, atol=1e-6)
    x.requires_grad_()
    loss(x, y).backward()
    torch.testing.assert_close(rows / 64, x.grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_transforms(kernel_device: str, reduction: str, dtype: torch.dtype) -> None:
    device = kernel_device
    x, y = logits(3, 4, dtype=dtype, device=device) / 3, labels(3, 4, device=device)
    t, u = torch.randn(2, 3, 4, dtype=dtype, device=device)
    p = torch.rand(4, device=device) + 0.5
    close = dict(rtol=0.02, atol=0.02) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-6)

    def f(x: Tensor) -> Tensor:
        return loss(x, y, None, p, reduction=reduction)

    def total(x: Tensor) -> Tensor:
        return f(x).sum()

    for transformed in (
        lambda: grad(total)(x),
        lambda: jvp(f, (x,), (t,)),
        lambda: vjp(f, x)[1](torch.ones_like(f(x))),
        lambda: jacrev(f)(x),
        lambda: jacfwd(f)(x),
        lambda: hessian(total)(x),
        lambda: jacrev(jacfwd(total))(x),
        lambda: jacfwd(jacfwd(total))(x),
        lambda: jvp(grad(total), (x,), (t,)),
        lambda: grad(lambda x: jvp(total, (x,), (t,))[1])(x),
        lambda: grad(lambda x: grad(total)(x).square().sum())(x),
        lambda: jvp(lambda x: jvp(f, (x,), (t,))[1], (x,), (u,)),
        lambda: vmap(lambda t: jvp(f, (x,), (t,))[1])(torch.stack([t, u])),
        lambda: vmap(lambda x: hessian(lambda x: loss(x, y[0], reduction="sum"))(x))(x),
        lambda: grad(lambda x: vmap(grad(lambda x, y: loss(x, y)))(x, y).square().sum())(x),
        lambda: grad(lambda x: vmap(loss)(x, y).square().sum())(x),
        lambda: vmap(vmap(grad(loss)))(x, y),
    ):
        same(transformed, **close)


def test_third_derivative(kernel_device: str) -> None:
    x = torch.tensor(0.7, dtype=torch.float64, device=kernel_device)
    y = torch.tensor(True, device=kernel_device)
    s = torch.sigmoid(x)
    third = grad(grad(grad(lambda x: loss(x, y))))(x)
    torch.testing.assert_close(third, 3 * s * (1 - s) * (1 - 2 * s))


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


def test_dual_levels(kernel_device: str) -> None:
    """In eager mode, with logits that need a gradient as well, and in backward alone."""
    x, y = logits(3, 4, device=kernel_device), labels(3, 4, device=kernel_device)
    tangent = torch.randn_like(x)
    expected = hessian(lambda x: loss(x, y))(x).flatten(2).matmul(tangent.flatten())
    slope = (grad(loss)(x, y) * tangent).sum()
    for leaf in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level(), Ops() as names:
            dual = forward_ad.make_dual(leaf, tangent)
            value = loss(dual, y)
            torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, slope)
            assert names == ["loss", "grad"]
            if leaf.requires_grad:
                (gradient,) = torch.autograd.grad(value, dual)
                found = forward_ad.unpack_dual(gradient).tangent
                torch.testing.assert_close(found.flatten(), expected.flatten())
    value = loss(leaf, y)
    with forward_ad.dual_level():
        one = forward_ad.make_dual(torch.ones_like(value), torch.full_like(value, 2.5))
        (gradient,) = torch.autograd.grad(value, leaf, one)
        found = forward_ad.unpack_dual(gradient).tangent
    torch.testing.assert_close(found, 2.5 * grad(loss)(x, y))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chosen", ["fused", "reference"])
@pytest.mark.parametrize("ignore_index", [None, 0.0])
def test_gradcheck_of_every_kind(reduction: str, chosen: str, ignore_index: float | None) -> None:
    x = (logits(3, 4, dtype=torch.float64) / 3).requires_grad_()
    y, p = torch.rand(3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    y[0, :2] = 0.0

    def f(x: Tensor) -> Tensor:
        return loss(x, y, p + 1, p, reduction=reduction, ignore_index=ignore_index)

    with backend(chosen):
        forward = dict(check_forward_ad=True, check_batched_forward_grad=True)
        assert gradcheck(f, x, check_batched_grad=True, **forward)
        assert gradgradcheck(
            f, x, check_batched_grad=True, check_fwd_over_rev=True, check_rev_over_rev=True
        )


def recorded(kind: str, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient of a loss recorded in some surroundings, as a function of the upstream one."""
    leaf = x.clone().requires_grad_()
    surroundings: dict[str, Any] = {"hooks": save_on_cpu(), "mode": Ops()}
    with surroundings.get(kind, nullcontext()):
        losses = loss(leaf, y, reduction="none")

    def slope(upstream: Tensor) -> Tensor:
        keep = dict(retain_graph=True, create_graph=kind == "created")
        (result,) = torch.autograd.grad(losses, leaf, upstream, **keep)
        return result

    return vjp(lambda x: loss(x, y, reduction="none"), x)[1] if kind == "vjp" else slope


@pytest.mark.parametrize("kind", ["plain", "created", "hooks", "mode", "vjp"])
def test_transforms_of_backward(kernel_device: str, kind: str) -> None:
    """A gradient recorded before is linear in the upstream one, under any transform."""
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
        found = forward_ad.unpack_dual(f(forward_ad.make_dual(u, t))).tangent
    torch.testing.assert_close(found, t * slope)
    torch.testing.assert_close(vmap(f)(torch.stack([u, t])), torch.stack([u, t]) * slope)
    if kind in ("created", "vjp"):
        torch.testing.assert_close(grad(lambda u: (f(u) * s).sum())(u), s * slope)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_samples(kernel_device: str, reduction: str) -> None:
    x = torch.zeros(0, 3, device=kernel_device)
    y = x.bool()

    def f(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, y, reduction=reduction)

    assert vmap(f)(x, y).shape == ((0, 3) if reduction == "none" else (0,))
    assert grad(lambda x: vmap(f)(x, y).sum())(x).shape == (0, 3)
    assert vmap(grad(lambda x, y: f(x, y).sum()))(x, y).shape == (0, 3)


def test_functionalize(kernel_device: str) -> None:
    x, y = logits(3, 4, device=kernel_device), labels(3, 4, device=kernel_device)
    for f in (loss, grad(loss)):
        torch.testing.assert_close(functionalize(f)(x, y), f(x, y))


def test_many_upstream_gradients_at_once(kernel_device: str) -> None:
    """torch.autograd maps over them in an old way, which would call an op once for each."""
    x, y = logits(3, 4, device=kernel_device).requires_grad_(), labels(3, 4, device=kernel_device)
    upstream = torch.tensor([1.0, -2.5, 3.0], device=kernel_device)
    value = loss(x, y)
    with Ops() as names:
        (many,) = torch.autograd.grad(value, x, upstream, is_grads_batched=True)
    assert names == []
    torch.testing.assert_close(many, upstream.view(3, 1, 1) * grad(loss)(x.detach(), y))


def test_per_sample_gradients_of_a_network(kernel_device: str) -> None:
    model = torch.nn.Linear(5, 7).to(kernel_device)
    parameters = dict(model.named_parameters())
    x, y = torch.randn(6, 5, device=kernel_device), labels(6, 7, device=kernel_device)

    def of_sample(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, parameters, (x[None],)), y[None])

    result = same(lambda: vmap(grad(of_sample), (None, 0, 0))(parameters, x, y))
    loss(model(x), y).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(result[name].mean(0), parameter.grad)
