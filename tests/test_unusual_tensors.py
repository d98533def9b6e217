"""Tensors and surroundings that a kernel must not take for plain ones."""

import numpy as np
import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from weighted_bce import backend, weighted_bce, weighted_bce_with_logits

from .truth import Case, backends, check, labels, logits

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


@pytest.mark.parametrize("dims", [64, 65, 100])
def test_many_dimensions(device: str, dims: int) -> None:
    shape = [1] * (dims - 1) + [7]
    x, y = logits(7, device=device), labels(7, device=device)
    expected = weighted_bce_with_logits(x, y)
    leaf = x.view(shape).requires_grad_()
    loss = weighted_bce_with_logits(leaf, y.view(shape))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert leaf.grad is not None
    assert leaf.grad.shape == leaf.shape


def test_subclass_beside_plain_logits() -> None:
    x, y = logits(7), labels(7)
    loss = weighted_bce_with_logits(x, TwoTensor(y, y))
    assert isinstance(loss, TwoTensor)
    torch.testing.assert_close(loss.a, weighted_bce_with_logits(x, y))


def test_default_device_is_not_the_logits_device(kernel_device: str) -> None:
    x, y = logits(7, device=kernel_device).requires_grad_(), labels(7, device=kernel_device)
    with torch.device("meta"):
        loss = weighted_bce_with_logits(x, y)
        loss.backward(torch.tensor(2.0, device=kernel_device))
    assert x.grad is not None
    check(Case(x.detach(), y), "fused", 2.0)


def test_checkpoint_beside_another_scale(device: str) -> None:
    """The second forward of a checkpoint meets another expectation than the first."""
    y = labels(8, 5, device=device)
    first, second = (logits(8, 5, device=device).requires_grad_() for _ in range(2))
    losses = [
        checkpoint(weighted_bce_with_logits, x, y, use_reentrant=False) for x in (first, second)
    ]
    (losses[0] + 0.5 * losses[1]).backward()
    for x, scale in ((first, 1.0), (second, 0.5)):
        plain = x.detach().requires_grad_()
        (scale * weighted_bce_with_logits(plain, y)).backward()
        assert x.grad is not None
        assert torch.equal(x.grad, plain.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    y = labels(7)
    traced = torch.jit.trace(lambda x: weighted_bce_with_logits(x, y), (logits(7),))
    x = logits(7)
    torch.testing.assert_close(traced(x), weighted_bce_with_logits(x, y))


def test_any_byte_of_a_bool_is_true(device: str) -> None:
    x = logits(70, device=device)
    y = torch.full((70,), 2, dtype=torch.uint8, device=device).view(torch.bool)
    for chosen in backends(device):
        with backend(chosen):
            ours = weighted_bce_with_logits(x, y, reduction="sum")
            torch.testing.assert_close(ours, weighted_bce_with_logits(x, y | True, reduction="sum"))


@pytest.mark.parametrize("position", [None, 5, 40])
def test_infinite_weight_of_a_label_without_positives(device: str, position: int | None) -> None:
    x, y = logits(64, device=device), torch.zeros(64, dtype=torch.bool, device=device)
    if position is not None:
        y[position] = True
    p = torch.ones(64, device=device)
    p[3] = INF
    finite = p.clamp(max=1)
    for chosen in backends(device):
        with backend(chosen):
            ours, expected = (weighted_bce_with_logits(x, y, pos_weight=t) for t in (p, finite))
            assert torch.equal(ours, expected)


def test_infinite_upstream_gradient_of_an_element(device: str) -> None:
    x = torch.tensor([1.0, -1, 2], device=device, requires_grad=True)
    loss = weighted_bce_with_logits(x, torch.tensor([1, 0, 0], device=device), reduction="none")
    loss.backward(torch.tensor([INF, INF, 0.0], device=device))
    assert x.grad is not None
    assert x.grad.tolist() == [-INF, INF, 0]


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
    with pytest.raises(NotImplementedError, match="weighted_bce_with_logits has"):
        torch.ops.weighted_bce.loss(*tensors, 1.0, 0.0, None, "sum")
