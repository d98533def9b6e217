"""Optimizers that update the classifier within the backward pass end where the ordinary ones do."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
)

from .linear_cases import FEATURES, LABELS, assert_near, base, expected

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS: list[tuple[Any, Any, dict[str, Any]]] = [
    (FusedSGD, torch.optim.SGD, {"lr": 2.0}),
    (FusedSGD, torch.optim.SGD, {"lr": 2.0, "momentum": 0.9, "weight_decay": 0.01}),
    (FusedSGD, torch.optim.SGD, {"lr": 2.0, "momentum": 0.9, "dampening": 0.5}),
    (FusedSGD, torch.optim.SGD, {"lr": 2.0, "momentum": 0.9, "nesterov": True}),
    (FusedSGD, torch.optim.SGD, {"lr": 2.0, "momentum": 0.9, "maximize": True, "foreach": True}),
    (FusedSGD, torch.optim.SGD, {"lr": 2.0, "momentum": 0.9, "dampening": 0.5, "fused": True}),
    (FusedAdam, torch.optim.Adam, {"lr": 0.01}),
    (FusedAdam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (FusedAdam, torch.optim.AdamW, {"lr": 0.01, "betas": (0.5, 0.9), "foreach": True}),
    (FusedAdam, torch.optim.Adam, {"lr": 0.01, "eps": 1e-4, "fused": True, "amsgrad": True}),
]


def pair(dtype: torch.dtype = torch.float32, bias: bool = True, device: str = "cpu") -> Any:
    """Two equal classifiers."""
    one = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, bias, pos_weight=3.0, chunk_labels=40, device=device, dtype=dtype
    )
    return one, copy.deepcopy(one)


def batches(
    number: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[tuple[Tensor, SparseLabels]]:
    made = [base(dtype, device) for _ in range(number)]
    return [(b.input, SparseLabels.from_dense(b.target)) for b in made]


def make_step(kind: Any, classifier: nn.Module, options: dict[str, Any]) -> Any:
    if issubclass(kind, FusedAdam) and options.get("betas"):  # of AdamW here
        options = {"weight_decay": 0.01, "decoupled_weight_decay": True} | options
    return kind(classifier.linear.parameters(), **options)


def ordinary(classifier: Any, optimizer: Any, data: Any) -> list[Tensor | None]:
    found = []
    for x, target in data:
        x = x.clone().requires_grad_()
        optimizer.zero_grad()
        classifier(x, target).backward()
        optimizer.step()
        found.append(x.grad)
    return found


def fused(classifier: Any, data: Any) -> list[Tensor | None]:
    found = []
    for x, target in data:
        x = x.clone().requires_grad_()
        classifier(x, target).backward()
        assert all(p.grad is None for p in classifier.parameters())
        found.append(x.grad)
    return found


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("kind", "plain", "options"), OPTIMIZERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_weights_as_the_ordinary_step(
    device: str, kind: Any, plain: Any, options: dict[str, Any], bias: bool, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and options.get("fused") and device == "cpu":
        return  # torch's own are far off where whole vectors are (2.13)
    one, other = pair(dtype, bias, device)
    before = one.linear.weight.detach().clone()
    data = batches(4, dtype, device)
    one.fused_step = make_step(kind, one, options)
    found = fused(one, data)
    wanted = ordinary(other, plain(other.parameters(), **options), data)
    assert not torch.equal(one.linear.weight, before)
    pairs = [*zip(one.parameters(), other.parameters(), strict=True)]
    for actual, grad in [*pairs, *zip(found, wanted, strict=True)]:
        assert grad is not None
        if dtype == torch.float32:
            assert torch.equal(actual, grad)
        else:  # where a vector ends, torch's own elementwise operations round otherwise
            assert_near(actual, grad.double(), 0.01)


@pytest.mark.parametrize(("kind", "plain", "options"), [OPTIMIZERS[i] for i in (2, 5, 7, 9)])
def test_goes_on_from_a_state_dict(kind: Any, plain: Any, options: dict[str, Any]) -> None:
    """Also of the ordinary optimizer, and back."""
    one, other = pair()
    data = batches(6)
    optimizer = plain(other.parameters(), **options)
    ordinary(other, optimizer, data[:2])
    one.load_state_dict(other.state_dict())
    one.fused_step = make_step(kind, one, options)
    one.fused_step.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fused(one, data[2:4])
    ordinary(other, optimizer, data[2:4])
    assert_same(one, other)
    optimizer.load_state_dict(copy.deepcopy(one.fused_step.state_dict()))
    fused(one, data[4:])
    ordinary(other, optimizer, data[4:])
    assert_same(one, other)


def test_a_copy_goes_on_alone() -> None:
    one, _ = pair()
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0, momentum=0.9)
    data = batches(3)
    fused(one, data[:1])
    other = copy.deepcopy(one)
    before = one.linear.weight.detach().clone()
    fused(other, data[1:])
    assert torch.equal(one.linear.weight, before)
    fused(one, data[1:])
    assert_same(one, other)


def test_learning_rates_and_groups() -> None:
    """Of the weight and of the bias, by a scheduler."""
    one, other = pair()
    data = batches(4)

    def groups(classifier: Any) -> list[dict[str, Any]]:
        layer = classifier.linear
        return [{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.5}]

    one.fused_step = FusedSGD(groups(one), lr=1.0)
    optimizer = torch.optim.SGD(groups(other), lr=1.0)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (one.fused_step, optimizer)]
    for i in range(4):
        fused(one, data[i : i + 1])
        one.fused_step.step()  # which a scheduler wants to see, and which has nothing to do
        ordinary(other, optimizer, data[i : i + 1])
        for scheduler in schedulers:
            scheduler.step()
    assert_same(one, other)


def test_grad_scale() -> None:
    one, other = pair()
    data = batches(3)
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0, momentum=0.9)
    one.fused_step.grad_scale = 1024.0
    for x, target in data:
        (one(x, target) * 1024).backward()
    ordinary(other, torch.optim.SGD(other.parameters(), lr=1.0, momentum=0.9), data)
    assert_same(one, other)


@pytest.mark.parametrize("upstream", [1.0, 0.25, 0.0])
def test_each_chunk_once(device: str, upstream: float) -> None:
    case = base(torch.float32, device)
    seen: list[slice] = []
    found = [torch.full_like(t, torch.nan) for t in (case.linear_weight, case.linear_bias)]

    def step(labels: slice, weight_grad: Tensor, bias_grad: Tensor | None) -> None:
        assert not torch.is_grad_enabled()
        assert bias_grad is not None
        seen.append(labels)
        found[0][labels], found[1][labels] = weight_grad, bias_grad

    x, weight, bias = case.leaves()
    loss = case((x, weight, bias), fused_step=step)
    assert not seen
    loss.backward(torch.full_like(loss, upstream))
    assert seen == [slice(0, 64), slice(64, 128), slice(128, LABELS)]
    assert weight.grad is bias.grad is None
    _, grads = expected(case, upstream)
    for actual, wanted in zip((x.grad, *found), grads, strict=True):
        assert_near(actual, wanted, 1e-5)


def test_what_requires_no_gradient_is_not_stepped() -> None:
    case = base()
    calls: list[Tensor | None] = []

    def step(labels: slice, weight_grad: Tensor, bias_grad: Tensor | None) -> None:
        calls.append(bias_grad)

    x, weight, bias = case.leaves()
    case((x, weight, bias.detach()), fused_step=step).backward()
    assert len(calls) == 3
    assert all(c is None for c in calls)
    case((x, weight.detach(), bias), fused_step=step).backward()
    with torch.no_grad():
        case((x, weight, bias), fused_step=step)
    assert len(calls) == 3


def test_one_step_in_a_checkpoint() -> None:
    one, other = pair()
    data = batches(2)
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0)
    for x, target in data:
        x = x.clone().requires_grad_()
        checkpoint(one, x, target, use_reentrant=False).backward()
    ordinary(other, torch.optim.SGD(other.parameters(), lr=1.0), data)
    assert_same(one, other)


def test_a_second_backward_raises() -> None:
    one, _ = pair()
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0)
    ((x, target),) = batches(1)
    loss = one(x, target)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_second_derivatives() -> None:
    one, _ = pair()
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0)
    before = one.linear.weight.detach().clone()
    ((x, target),) = batches(1)
    loss = one(x.requires_grad_(), target)
    with pytest.raises(NotImplementedError, match="there are no second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(one.linear.weight, before)


def test_not_under_torch_func() -> None:
    one, _ = pair()
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0)
    ((x, target),) = batches(1)
    with pytest.raises(NotImplementedError, match=r"does not work under torch\.func"):
        torch.func.grad(lambda x: one(x, target))(x)


def test_it_breaks_a_compiled_graph() -> None:
    one, other = pair()
    one.fused_step = FusedSGD(one.linear.parameters(), lr=1.0)
    data = batches(2)
    compiled = torch.compile(lambda x, target: one(x * 2, target) * 3, backend="aot_eager")
    for x, target in data:
        compiled(x, target).backward()
    doubled = [(x * 2, target) for x, target in data]
    optimizer = torch.optim.SGD(other.parameters(), lr=3.0)
    ordinary(other, optimizer, doubled)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert_near(p, q.double(), 1e-5)
    whole = torch.compile(lambda x: one(x, target), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="fused_step is not compiled"):
        whole(x)


def test_wrong_parameters() -> None:
    case = base()
    leaves = case.leaves()
    x, weight, bias = leaves
    for parameters, shapes in (
        ([weight], [tuple(weight.shape)]),
        ([bias, weight], [tuple(bias.shape), tuple(weight.shape)]),
        ([x], [tuple(x.shape)]),
    ):
        step = FusedSGD(parameters, lr=1.0)
        message = f"params must be the weight of the layer and then its bias, got {shapes}"
        with pytest.raises(ValueError, match=re.escape(message)):
            case(leaves, fused_step=step).backward()
