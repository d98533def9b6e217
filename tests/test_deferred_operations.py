"""A deferred gradient is a tensor: every operation gives what it gives with the gradient."""

import copy
import ctypes
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from weighted_bce.linear._deferred import DeferredGrad

from .fused_cases import FEATURES, LABELS, waiting

pytestmark = pytest.mark.usefixtures("one_thread")


def multiply_lists(g: Tensor) -> Tensor:
    """Multiplies an ordinary tensor by the gradient, and the gradient by an ordinary tensor."""
    ones, twos = (torch.full((LABELS, FEATURES), number) for number in (1.0, 2.0))
    torch._foreach_mul_([ones, g], [g.clone(), twos])
    return torch.stack((ones, g))


OPERATIONS: list[Callable[[Tensor], Any]] = [
    lambda g: g + torch.ones_like(g),
    lambda g: torch.full_like(g, 2.0) + g,
    lambda g: torch.full((LABELS, FEATURES), 2.0).add_(g, alpha=0.5),
    lambda g: torch.add(torch.full((LABELS, FEATURES), 2.0), g, alpha=3),
    lambda g: g.add_(g, alpha=3),
    lambda g: (g + g.clone()) * 3,
    lambda g: torch.tensor(2.0) * g / 4,
    lambda g: g.mul_(torch.rand(FEATURES, generator=torch.Generator().manual_seed(0))),
    lambda g: g.mul(torch.full((1, 1), 3.0)).div_(torch.tensor([7.0])),
    lambda g: g.div(1e-3, rounding_mode="floor"),
    lambda g: torch.isfinite(g.div_(0)),
    lambda g: g.div(torch.ones(LABELS, FEATURES)),
    lambda g: (torch._foreach_div_([g], [torch.full((FEATURES,), 2.0)]), g)[1],
    lambda g: g * torch.ones(1, 1, 1),
    lambda g: g * torch.ones(1, dtype=torch.float64),
    lambda g: -g,
    lambda g: g.norm(),
    lambda g: g.norm(dim=1),
    lambda g: torch.linalg.vector_norm(g, 3.0),
    lambda g: torch.linalg.vector_norm(g, 0),
    lambda g: torch.linalg.vector_norm(g, dtype=torch.float64),
    lambda g: torch._foreach_norm([g, torch.ones(2)], 2.0),
    lambda g: torch._foreach_norm([g, torch.ones(2)], 1.0, torch.float64),
    lambda g: (torch._foreach_mul_([g, torch.ones(2)], [2.0, 3.0]), g)[1],
    lambda g: (torch._foreach_mul_([torch.ones(2), g], torch.tensor(2.0)), g)[1],
    lambda g: (torch._foreach_div_([g], 4.0), g)[1],
    lambda g: (torch._foreach_add_([g], [torch.ones(LABELS, FEATURES)]), g)[1],
    lambda g: torch._foreach_add([g], 1.0)[0],
    multiply_lists,
    lambda g: g.abs().max(),
    lambda g: g.double(),
    lambda g: g.t() @ g,
    lambda g: g.zero_(),
    lambda g: copy.deepcopy(g),
    lambda g: torch.isfinite(g),
    lambda g: torch.from_numpy(g.numpy()),
    lambda g: torch.from_dlpack(g),
    lambda g: torch.tensor(g.tolist()),
    lambda g: torch.tensor(g.untyped_storage().tolist()),
    lambda g: torch.tensor(ctypes.string_at(g.data_ptr(), g.nbytes)[0]),
    lambda g: g.apply_(lambda value: 2 * value),
    lambda g: g.share_memory_(),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation: Callable[[Tensor], Any]) -> None:
    model, grad = waiting()
    actual = operation(model.linear.weight.grad)
    actual = actual.whole() if isinstance(actual, DeferredGrad) else actual
    torch.testing.assert_close(actual, operation(grad.clone()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model, grad = waiting(dtype=dtype)
    deferred = model.linear.weight.grad
    assert torch.equal(deferred.clone().whole(), grad)
    norm = torch.linalg.vector_norm(deferred)
    assert norm.dtype == dtype
    torch.testing.assert_close(norm, torch.linalg.vector_norm(grad))


def test_extensions_get_an_error() -> None:
    """They read the memory without calling an operator, and there is none until it is whole."""
    model, grad = waiting()
    deferred = model.linear.weight.grad
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):
        to_dlpack(deferred)
    deferred.data = deferred.sign()
    assert torch.equal(torch.from_dlpack(to_dlpack(deferred)), grad.sign())


def test_it_is_a_tensor() -> None:
    model, grad = waiting()
    deferred = model.linear.weight.grad
    assert repr(deferred) == "DeferredGrad(shape=(150, 12), dtype=torch.float32)"
    assert (deferred.shape, deferred.dtype, deferred.device) == (
        grad.shape,
        grad.dtype,
        grad.device,
    )
    assert deferred.data_ptr() == deferred.whole().data_ptr()
    file = io.BytesIO()
    torch.save(deferred, file)
    file.seek(0)
    assert torch.equal(torch.load(file), grad)
    model.double()
    torch.testing.assert_close(model.linear.weight.grad, grad.double())
    assert model.linear.weight.grad.sum().dtype == torch.float64
    model.fused_step.step()
