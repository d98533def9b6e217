"""Transforms and second derivatives with torch.compile: right, or a clear error."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, vmap

from weighted_bce import weighted_bce_with_logits
from weighted_bce._extension import extension

from .transforms import TRANSFORMS, samples
from .truth import labels, logits
from .ways import in_each_way, leaves_of, one_case

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def loss(x: Tensor, y: Tensor) -> Tensor:
    return weighted_bce_with_logits(x, y, pos_weight=3.0)


def penalty(x: Tensor, y: Tensor) -> Tensor:
    """A penalty of the gradient, so that a gradient of it is a second derivative."""
    (slope,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    return slope.square().sum()


# Each of the others is made of these.
COMPILED = (
    *("grad", "vjp", "jvp", "dual level", "jacrev", "jacfwd", "hessian", "vmap", "vmap, dims"),
    *("vmap of grad", "grad of vmap", "grad of grad", "jvp of grad", "grad of pos_weight"),
)


@pytest.mark.parametrize("name", COMPILED)
def test_transforms_inside_the_graph(kernel_device: str, name: str) -> None:
    given = samples(kernel_device, pos_weight=3.0)
    compiled = torch.compile(TRANSFORMS[name], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(given), TRANSFORMS[name](given))


Function = Callable[..., Tensor]


def of_dual_numbers(loss: Function, x: Tensor, y: Tensor) -> Tensor:
    """Where the logits need a gradient; otherwise torch drops the tangent of any function."""
    with forward_ad.dual_level():
        return loss(forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x)), y)


def of_second_order(loss: Function, x: Tensor, y: Tensor, **options: Any) -> None:
    value = loss(x.requires_grad_(), y, **options).sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    slope.square().sum().backward()


@pytest.mark.parametrize(
    ("derivative", "words"),
    [
        *((lambda f, x, y, t=t: t(f)(x, y), "functorch") for t in (grad, vmap, hessian)),
        (of_dual_numbers, "jvp"),
        (of_second_order, "does not currently support double backward"),
        (partial(of_second_order, reduction="none"), "does not currently support double backward"),
    ],
)
def test_other_derivatives_of_a_compiled_loss_raise(
    kernel_device: str, derivative: Callable[..., Any], words: str
) -> None:
    """Torch compiles what is transformed, and does not transform what is compiled. The error comes
    in place of a gradient of which a term is missing."""
    x, y = logits(4, 5, device=kernel_device), labels(4, 5, device=kernel_device)
    compiled = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
    errors = torch._dynamo.exc.Unsupported, NotImplementedError, RuntimeError
    with pytest.raises(errors, match=words):
        derivative(compiled, x, y)


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="not in this torch"
)
@in_each_way
def test_second_order_inside_the_graph(kernel_device: str, way: str) -> None:
    """Where the compiler is told to trace torch.autograd.grad."""
    case = one_case(way, kernel_device)
    leaves = leaves_of(case)

    def penalized(*leaves: Tensor) -> Any:
        loss = case(*leaves)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return loss + sum(grad.square().sum() for grad in grads)

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(penalized, backend="aot_eager", fullgraph=True)
        results = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(results, torch.autograd.grad(penalized(*leaves), leaves))


@pytest.mark.parametrize("name", ["target", "weight", "pos_weight"])
def test_gradients_of_other_arguments(kernel_device: str, name: str) -> None:
    """They come from plain torch, in one graph as well."""
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)

    def gradient(loss: Callable[..., Tensor]) -> Tensor:
        leaf = torch.linspace(0, 1, 54, device=kernel_device).view(6, 9).requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, **{"target": y, name: leaf}), leaf)
        return slope

    compiled = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradient(compiled), gradient(weighted_bce_with_logits))
