"""Optimizers that update the classifier within the backward pass end where the ordinary ones do."""

import copy
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint

from weighted_bce import FusedAdam, FusedSGD, LinearWeightedBCEWithLogitsLoss, SparseLabels

from .linear_cases import FEATURES, LABELS, assert_all_near, assert_grads, base

pytestmark = pytest.mark.usefixtures("one_thread")

# The fused optimizer, the ordinary one, and the options of both.
OPTIMIZERS: list[tuple[Any, Any, dict[str, Any]]] = [
    (FusedSGD, SGD, {"lr": 2.0}),
    (FusedSGD, SGD, {"lr": 2.0, "momentum": 0.9, "weight_decay": 0.01}),
    (FusedSGD, SGD, {"lr": 2.0, "momentum": 0.9, "dampening": 0.5}),
    (FusedSGD, SGD, {"lr": 2.0, "momentum": 0.9, "nesterov": True}),
    (FusedSGD, SGD, {"lr": 2.0, "momentum": 0.9, "maximize": True, "foreach": True}),
    (FusedSGD, SGD, {"lr": 2.0, "momentum": 0.9, "dampening": 0.5, "fused": True}),
    (FusedAdam, Adam, {"lr": 0.01}),
    (FusedAdam, Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (
        partial(FusedAdam, weight_decay=0.01, decoupled_weight_decay=True),
        AdamW,
        {"lr": 0.01, "betas": (0.5, 0.9), "foreach": True},
    ),
    (FusedAdam, Adam, {"lr": 0.01, "eps": 1e-4, "fused": True, "amsgrad": True}),
]
Batches = list[tuple[Tensor, SparseLabels]]


def pair(dtype: torch.dtype = torch.float32, bias: bool = True, device: str = "cpu") -> Any:
    """Returns two equal classifiers."""
    one = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, bias, pos_weight=3.0, chunk_labels=40, device=device, dtype=dtype
    )
    return one, copy.deepcopy(one)


def pair_with_sgd(**options: Any) -> Any:
    """Returns two equal classifiers, the first of which takes fused steps, and the other's SGD."""
    one, other = pair()
    options = {"lr": 1.0, **options}
    one.fused_step = FusedSGD(one.linear.parameters(), **options)
    return one, other, SGD(other.parameters(), **options)


def batches(number: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Batches:
    cases = (base(dtype, device) for _ in range(number))
    return [(case.input, SparseLabels.from_dense(case.target)) for case in cases]


def train(classifier: Any, data: Batches, optimizer: Any = None) -> list[Tensor | None]:
    """Takes a step for each batch, a fused one without an optimizer. Returns the input's grads."""
    grads = []
    for x, target in data:
        x = x.clone().requires_grad_()
        classifier(x, target).backward()
        grads.append(x.grad)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        assert all(p.grad is None for p in classifier.parameters())
    return grads


def assert_same(one: Iterable[Tensor | None], other: Iterable[Tensor | None]) -> None:
    torch.testing.assert_close([*one], [*other], rtol=0, atol=0)


@pytest.mark.parametrize(("fused", "ordinary", "options"), OPTIMIZERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_weights_as_the_ordinary_step(
    device: str, fused: Any, ordinary: Any, options: dict[str, Any], bias: bool, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and options.get("fused") and device == "cpu":
        return  # torch's own are far off where whole vectors are (2.13)
    one, other = pair(dtype, bias, device)
    before = one.linear.weight.detach().clone()
    data = batches(4, dtype, device)
    one.fused_step = fused(one.linear.parameters(), **options)
    actual = [*train(one, data), *one.parameters()]
    wanted = [*train(other, data, ordinary(other.parameters(), **options)), *other.parameters()]
    assert not torch.equal(one.linear.weight, before)
    if dtype == torch.float32:
        assert_same(actual, wanted)
    else:  # where a vector ends, torch's own elementwise operations round otherwise
        assert_all_near(actual, wanted, 0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize(("fused", "ordinary", "options"), [OPTIMIZERS[i] for i in (2, 5, 7, 9)])
def test_goes_on_from_a_state_dict(fused: Any, ordinary: Any, options: dict[str, Any]) -> None:
    """The fused optimizer takes that of the ordinary one and gives one back; a copy goes on."""
    one, other = pair()
    data = batches(6)
    optimizer = ordinary(other.parameters(), **options)
    train(other, data[:2], optimizer)
    one.load_state_dict(other.state_dict())
    one.fused_step = fused(one.linear.parameters(), **options)
    one.fused_step.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for part in (data[2:4], data[4:]):
        replica = copy.deepcopy(one)
        train(one, part)
        train(other, part, optimizer)
        assert_same(one.parameters(), other.parameters())
        train(replica, part)
        assert_same(one.parameters(), replica.parameters())
        optimizer.load_state_dict(copy.deepcopy(one.fused_step.state_dict()))


def test_learning_rates_and_groups() -> None:
    """The weight and the bias have rates of their own, and a scheduler changes them."""
    one, other = pair()

    def groups(classifier: Any) -> list[dict[str, Any]]:
        layer = classifier.linear
        return [{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.5}]

    one.fused_step = FusedSGD(groups(one), lr=1.0)
    optimizer = SGD(groups(other), lr=1.0)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (one.fused_step, optimizer)]
    for batch in batches(4):
        train(one, [batch])
        one.fused_step.step()  # which a scheduler wants to see, and which has nothing to do
        train(other, [batch], optimizer)
        for scheduler in schedulers:
            scheduler.step()
    assert_same(one.parameters(), other.parameters())


@pytest.mark.parametrize("in_checkpoint", [False, True])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_one_step_a_backward(scale: float | None, in_checkpoint: bool) -> None:
    one, other, optimizer = pair_with_sgd(momentum=0.9)
    one.fused_step.grad_scale = scale
    run: Any = partial(checkpoint, one, use_reentrant=False) if in_checkpoint else one
    data = batches(3)
    for x, target in data:
        (run(x.clone().requires_grad_(), target) * (scale or 1)).backward()
    train(other, data, optimizer)
    assert_same(one.parameters(), other.parameters())


@pytest.mark.parametrize("chunk_labels", [64, None, 1, LABELS - 1, LABELS, 1000])
@pytest.mark.parametrize("grad_output", [1.0, 0.25, 0.0])
def test_each_chunk_once(device: str, grad_output: float, chunk_labels: int | None) -> None:
    case = base(torch.float32, device, chunk_labels=chunk_labels)
    seen: list[int] = []
    weight_grads, bias_grads = (torch.full_like(t, torch.nan) for t in case.layer[1:])

    def step(labels: slice, weight_grad: Tensor, bias_grad: Tensor | None) -> None:
        assert not torch.is_grad_enabled()
        assert bias_grad is not None
        seen.extend(range(LABELS)[labels])
        weight_grads[labels], bias_grads[labels] = weight_grad, bias_grad
        if chunk_labels:
            assert labels.stop == min(labels.start + chunk_labels, LABELS)

    x, weight, bias = case.leaves()
    loss = case(x, weight, bias, fused_step=step)
    assert not seen
    loss.backward(torch.full_like(loss, grad_output))
    assert seen == list(range(LABELS))
    assert weight.grad is bias.grad is None
    assert_grads((x.grad, weight_grads, bias_grads), case, grad_output)


def test_what_requires_no_gradient_is_not_stepped() -> None:
    case = base()
    calls: list[Tensor | None] = []
    call = partial(case, fused_step=lambda labels, weight_grad, bias_grad: calls.append(bias_grad))
    x, weight, bias = case.leaves()
    call(x, weight, bias.detach()).backward()
    assert calls == [None] * 3
    call(x, weight.detach(), bias).backward()
    with torch.no_grad():
        call(x, weight, bias)
    assert len(calls) == 3


def test_what_has_no_fused_step() -> None:
    one, other, _ = pair_with_sgd()
    ((x, target),) = batches(1)
    with pytest.raises(NotImplementedError, match="there are no second derivatives"):
        torch.autograd.grad(one(x.requires_grad_(), target), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"does not work under torch\.func"):
        torch.func.grad(lambda x: one(x, target))(x)
    in_one_graph = torch.compile(lambda x: one(x, target), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="fused_step is not compiled"):
        in_one_graph(x)
    assert_same(one.parameters(), other.parameters())
    loss = one(x, target)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_it_breaks_a_compiled_graph() -> None:
    one, other, _ = pair_with_sgd()
    data = batches(2)
    compiled = torch.compile(lambda x, target: one(x * 2, target) * 3, backend="aot_eager")
    for x, target in data:
        compiled(x, target).backward()
    train(other, [(x * 2, target) for x, target in data], SGD(other.parameters(), lr=3.0))
    assert_all_near([*one.parameters()], [*other.parameters()], 1e-5)


def test_wrong_parameters() -> None:
    case = base()
    x, weight, bias = leaves = case.leaves()
    for parameters in ([weight], [bias, weight], [x]):
        shapes = [tuple(p.shape) for p in parameters]
        message = f"params must be the weight of the layer and then its bias, got {shapes}"
        with pytest.raises(ValueError, match=re.escape(message)):
            case(*leaves, fused_step=FusedSGD(parameters, lr=1.0)).backward()
