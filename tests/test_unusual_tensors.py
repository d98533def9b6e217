"""Tensors and surroundings that a kernel must not take for plain ones."""

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor

from weighted_bce import (
    BCE,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)

from .comparison import check, outcome
from .truth import INPUT_DTYPES, REDUCTIONS, SUM, Case, labels, logits, sample_inputs

INF = float("inf")


def negated(values: torch.Tensor) -> torch.Tensor:
    """The same values, as a view of their negatives with the negative bit set."""
    view = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_negated_views(kernel_device: str, reduction: str) -> None:
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    w = torch.rand(6, 9, device=kernel_device) + 0.5
    check(Case(negated(x), y, w, w, reduction), "fused")
    check(Case(x, negated(y.float()), negated(w), negated(w[0]), reduction), "fused")


@pytest.mark.parametrize("dims", [32, 33, 40, 41, 64, 65, 100])
def test_many_dimensions(device: str, dims: int) -> None:
    shape = [1] * (dims - 1) + [7]
    x, y = logits(7, device=device), labels(7, device=device)
    check(Case(x.view(shape), y.view(shape)))


@pytest.mark.parametrize("dims", [31, 32, 39, 40, 41])
def test_many_dimensions_under_vmap(dims: int) -> None:
    x, y = logits(3, 7), labels(3, 7)
    shape = [3, *[1] * (dims - 1), 7]
    losses = torch.vmap(weighted_bce_with_logits)(x.view(shape), y.view(shape))
    torch.testing.assert_close(losses, torch.vmap(weighted_bce_with_logits)(x, y))


def test_target_of_a_subclass() -> None:
    x, y = logits(7), labels(7)
    loss = weighted_bce_with_logits(x, TwoTensor(y, y))
    assert isinstance(loss, TwoTensor)
    torch.testing.assert_close(loss.a, weighted_bce_with_logits(x, y))


class Named(torch.Tensor):
    """A subclass with the __torch_function__ that all of them inherit."""


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_subclasses_with_torch_function(kernel_device: str, reduction: str) -> None:
    """The results are of their class; see test_multilabel_loss.py for what they are told."""
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    case = Case(x, y, reduction=reduction)
    actual = outcome(case, x.as_subclass(Named))
    assert all(type(t) is Named for t in actual)
    plain = tuple(t.as_subclass(torch.Tensor) for t in actual)
    torch.testing.assert_close(plain, outcome(case, x))


class Listener(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.heard.append(function)
        return function(*args, **(kwargs or {}))


def test_function_modes_see_the_loss(kernel_device: str) -> None:
    """And change nothing."""
    for case in sample_inputs(kernel_device, (torch.float32,)):
        with Listener() as mode:
            check(case, "fused", 3.0)
        is_bce = case.loss == BCE()
        assert (weighted_bce_with_logits if is_bce else multilabel_loss_with_logits) in mode.heard


OPTIONS: tuple[dict[str, Any], ...] = ({}, {"ignore_index": -1}, {"label_smoothing": 0.1})


MODULES = (WeightedBCEWithLogitsLoss, WeightedBCELoss)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("kind", ["meta", "fake", "mixed"])
def test_tensors_without_data(device: str, dtype: torch.dtype, kind: str) -> None:
    """Shapes, dtypes and devices of loss and gradient; "mixed": fake logits, real weights."""
    for module, reduction, options in product(MODULES, (*REDUCTIONS, torch.sum), OPTIONS):
        criterion = module(torch.ones(9), torch.ones(9), reduction, **options).to(device)
        real = torch.rand(6, 9, device=device).to(dtype)
        y = labels(6, 9, dtype=torch.int64, device=device)
        expected = criterion(real, y)
        if kind == "meta":
            x = torch.empty_like(real, device="meta").requires_grad_()
            loss = copy.deepcopy(criterion).to("meta")(x, y.to("meta"))
            assert loss.is_meta
        else:
            with FakeTensorMode(allow_non_fake_inputs=kind == "mixed") as mode:
                x = torch.empty(6, 9, dtype=dtype, device=device, requires_grad=True)
                weights = [criterion.weight, criterion.pos_weight]
                if kind == "fake":
                    y, *weights = (mode.from_tensor(t) for t in (y, *weights))
                loss = module(*weights, reduction, **options)(x, y)
            assert isinstance(loss, FakeTensor)
            assert loss.device == expected.device
        assert (loss.shape, loss.dtype) == (expected.shape, expected.dtype)
        loss.backward(torch.ones_like(loss))
        assert x.grad.is_meta if kind == "meta" else isinstance(x.grad, FakeTensor)
        assert (x.grad.shape, x.grad.dtype) == (real.shape, dtype)
        assert x.grad.stride() == real.stride()


def test_default_device_is_not_the_logits_device(kernel_device: str) -> None:
    x, y = logits(7, device=kernel_device).requires_grad_(), labels(7, device=kernel_device)
    with torch.device("meta"):
        loss = weighted_bce_with_logits(x, y)
        loss.backward(torch.tensor(2.0, device=kernel_device))
    assert x.grad is not None
    check(Case(x.detach(), y), "fused", 2.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    y = labels(7)
    traced = torch.jit.trace(lambda x: weighted_bce_with_logits(x, y), (logits(7),))
    x = logits(7)
    torch.testing.assert_close(traced(x), weighted_bce_with_logits(x, y))


def test_any_byte_of_a_bool_is_true(device: str, chosen: str) -> None:
    x = logits(70, device=device)
    y = torch.full((70,), 2, dtype=torch.uint8, device=device).view(torch.bool)
    ours, expected = (weighted_bce_with_logits(x, t, reduction="sum") for t in (y, y | True))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("position", [None, 5, 40])
def test_infinite_weight_of_a_label_without_positives(
    device: str, chosen: str, position: int | None
) -> None:
    x, y = logits(64, device=device), torch.zeros(64, dtype=torch.bool, device=device)
    if position is not None:
        y[position] = True
    p = torch.ones(64, device=device)
    p[3] = INF
    finite = p.clamp(max=1)
    ours, expected = (weighted_bce_with_logits(x, y, pos_weight=t) for t in (p, finite))
    assert torch.equal(ours, expected)


def test_infinite_grad_output_of_an_element(device: str) -> None:
    x, y, grad_output = torch.tensor([[1.0, -1, 2], [1, 0, 0], [INF, INF, 0]], device=device)
    _, grad = outcome(Case(x, y, reduction="none"), x, grad_output)
    assert grad.tolist() == [-INF, INF, 0]


def test_probability_without_dimensions(device: str) -> None:
    half, one = torch.tensor(0.5, device=device), torch.tensor(1, device=device)
    for reduction in ("none", "mean", "sum"):
        assert weighted_bce(half, one, reduction=reduction).item() == pytest.approx(0.6931472)


def test_numbers_of_numpy() -> None:
    x, y = logits(7), labels(7)
    ours = weighted_bce_with_logits(x, y, pos_weight=np.float32(7), label_smoothing=np.float64(0.1))
    assert torch.equal(ours, weighted_bce_with_logits(x, y, pos_weight=7, label_smoothing=0.1))


@pytest.mark.parametrize("position", [1, 2, 3])
def test_ops_do_not_drop_a_gradient_silently(kernel_device: str, position: int) -> None:
    x, y = logits(7, device=kernel_device), labels(7, device=kernel_device).float()
    tensors = [x, y, torch.ones_like(x), torch.ones_like(x)]
    tensors[position].requires_grad_()
    x, y, *factors = tensors
    with pytest.raises(NotImplementedError, match="use weighted_bce"):
        torch.ops.weighted_bce.loss(x, y, None, *factors, 1.0, 0.0, None, None, SUM)


def test_tensors_without_memory_are_an_error(kernel_device: str) -> None:
    """torch's zeros that are made only when they are read."""
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    zeros = torch._efficientzerotensor((6, 9), device=kernel_device)
    for args in ((zeros, y), (x, zeros), (x, y, zeros), (x, y, None, zeros)):
        with pytest.raises(RuntimeError, match="a tensor that has no memory"):
            weighted_bce_with_logits(*args)
