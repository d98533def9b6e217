"""Optimizers that update the classifier chunk by chunk end where the ordinary ones do."""

import copy
import io
import pickle
import re
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

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
    optimizer = optimizer or classifier.fused_step
    for x, target in data:
        x = x.clone().requires_grad_()
        classifier(x, target).backward()
        grads.append(x.grad)
        optimizer.step()
        if optimizer is classifier.fused_step:
            assert classifier.linear.weight.grad is None
        optimizer.zero_grad()
    return grads


def assert_same(
    one: Iterable[Tensor | None], other: Iterable[Tensor | None], kind: Any = None
) -> None:
    """For Adam, torch's square root is not rounded correctly on the CPU, and ours is."""
    atol = 1e-6 if kind is FusedAdam else 0.0
    torch.testing.assert_close([*one], [*other], rtol=0, atol=atol)


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
        assert_same(actual, wanted, fused)
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
        replica, optimizer_of_replica = copy.deepcopy((one, one.fused_step))
        replica.fused_step = optimizer_of_replica
        train(one, part)
        train(other, part, optimizer)
        assert_same(one.parameters(), other.parameters(), type(one.fused_step))
        train(replica, part)
        assert_same(one.parameters(), replica.parameters())
        optimizer.load_state_dict(copy.deepcopy(one.fused_step.state_dict()))


def test_learning_rates_and_groups() -> None:
    """The weight and the bias have rates of their own, in either order, and a scheduler changes
    them. It does not warn of a step that it has not seen, and the hooks of a step run once."""
    one, other = pair()
    calls: list[str] = []

    def groups(classifier: Any) -> list[dict[str, Any]]:
        layer = classifier.linear
        return [{"params": [layer.bias], "lr": 0.5}, {"params": [layer.weight]}]

    SGD(other.parameters(), lr=1.0)  # from now on torch's own step has hooks
    one.fused_step = FusedSGD(groups(one), lr=1.0)
    one.fused_step.register_step_pre_hook(lambda *_: calls.append("before"))
    one.fused_step.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer = SGD(groups(other), lr=1.0)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (one.fused_step, optimizer)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches(4):
            train(one, [batch])
            train(other, [batch], optimizer)
            for scheduler in schedulers:
                scheduler.step()
    assert_same(one.parameters(), other.parameters())
    assert calls == ["before", "after"] * 4


@pytest.mark.parametrize(("fused", "ordinary"), [(FusedSGD, SGD), (FusedAdam, Adam)])
def test_one_optimizer_for_all_parameters(fused: Any, ordinary: Any) -> None:
    """It holds an encoder too, steps with a closure, and its state goes through a file."""
    one = nn.ModuleDict({"encoder": nn.Linear(FEATURES, FEATURES), "criterion": pair()[0]})
    other = copy.deepcopy(one)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1}

    def optimizer_of(model: Any, kind: Any) -> Any:
        optimizer = kind(model.parameters(), **options)
        if kind is fused:
            model["criterion"].fused_step = optimizer
        return optimizer

    def steps(model: Any, optimizer: Any, data: Batches) -> list[float]:
        def closure(x: Tensor, target: SparseLabels) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model["criterion"](model["encoder"](x), target)
            loss.backward()
            return loss

        return [optimizer.step(partial(closure, *batch)).item() for batch in data]

    data = batches(6)
    optimizers = [optimizer_of(one, fused), optimizer_of(other, ordinary)]
    wanted = steps(other, optimizers[1], data[:3])
    assert steps(one, optimizers[0], data[:3]) == pytest.approx(wanted, rel=1e-6)
    file = io.BytesIO()
    torch.save({"model": one.state_dict(), "optimizer": optimizers[0].state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    resumed = copy.deepcopy(other)
    resumed.load_state_dict(saved["model"])
    optimizer = optimizer_of(resumed, fused)
    optimizer.load_state_dict(saved["optimizer"])
    assert steps(resumed, optimizer, data[3:]) == steps(other, optimizers[1], data[3:])
    assert_same(resumed.parameters(), other.parameters(), fused)


def test_copies_of_the_criterion_have_no_fused_step() -> None:
    """A copy, such as one for averaged weights, takes neither the optimizer nor its state along.
    A copy of the optimizer and the criterion together belongs together."""
    one, _, _ = pair_with_sgd(momentum=0.9)
    train(one, batches(1))
    averaged = torch.optim.swa_utils.AveragedModel(one)
    assert averaged.module.fused_step is None
    assert pickle.loads(pickle.dumps(one)).fused_step is None
    assert one.fused_step is not None
    averaged.update_parameters(one)
    assert_same(averaged.module.parameters(), one.parameters())

    one.fused_step.grad_scale = 2.0
    both, optimizer = copy.deepcopy((one, one.fused_step))
    both.fused_step = optimizer
    assert optimizer.accumulate == 1
    assert optimizer.grad_scale == 2.0
    data = batches(2)
    assert_same(train(both, data), train(one, data))
    assert_same(both.parameters(), one.parameters())


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


def test_a_function_gets_what_would_be_added_to_grad() -> None:
    """It gets neither what requires no gradient nor what torch.autograd.grad asks for."""
    case = base()
    calls: list[tuple[int, bool, bool]] = []

    def step(labels: slice, weight_grad: Tensor | None, bias_grad: Tensor | None) -> None:
        calls.append((labels.stop, weight_grad is not None, bias_grad is not None))

    call = partial(case, fused_step=step)
    x, weight, bias = case.leaves()
    call(x, weight, bias.detach()).backward()
    assert calls == [(64, True, False), (128, True, False), (LABELS, True, False)]
    calls.clear()
    call(x, weight.detach(), bias).backward()
    call(x, weight, bias).backward(inputs=[bias])
    assert calls == [(LABELS, False, True)] * 2
    calls.clear()
    call(x, weight, bias).backward(inputs=[x])
    grads = torch.autograd.grad(call(x, weight, bias), (x, weight, bias))
    assert_grads(grads, case)
    with torch.no_grad():
        call(x, weight, bias)
    assert not calls
    with pytest.raises(NotImplementedError, match="must be a FusedSGD or a FusedAdam for second"):
        torch.autograd.grad(call(x, weight, bias), x, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="gradients with respect to target, weight and po"
    ):
        call(x, weight, bias, pos_weight=torch.ones(LABELS, requires_grad=True))
    for name, others in {"weight": (weight * 1, bias), "bias": (weight, bias * 1)}.items():
        with pytest.raises(ValueError, match=f"linear_{name} must be a leaf tensor"):
            call(x, *others)


def test_it_breaks_a_compiled_graph_once() -> None:
    """The rest is compiled, and what the step does is not."""
    one, other, _ = pair_with_sgd()
    operations: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        operations.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph.forward

    def step(x: Tensor, target: SparseLabels) -> None:
        (one(x * 2, target) * 3).backward()
        one.fused_step.step()
        one.fused_step.zero_grad()

    data = batches(1) * 3  # others have other numbers of labels
    compiled = torch.compile(step, backend=backend)
    for x, target in data:
        compiled(x, target)
    assert operations == [1, 1]
    train(other, [(x * 2, target) for x, target in data], SGD(other.parameters(), lr=3.0))
    assert_all_near([*one.parameters()], [*other.parameters()], 1e-5)
    ((x, target),) = batches(1)
    in_one_graph = torch.compile(lambda x: one(x, target), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="fused_step is not compiled"):
        in_one_graph(x)


def replace_weight(one: Any) -> None:
    one.linear.weight = nn.Parameter(one.linear.weight.detach().clone())


def replace_bias(one: Any) -> None:
    one.linear.bias = nn.Parameter(one.linear.bias.detach().clone())


def assign_state(one: Any) -> None:
    one.load_state_dict({k: v.clone() for k, v in one.state_dict().items()}, assign=True)


def replace_layer(one: Any) -> None:
    one.linear = copy.deepcopy(one.linear)


def take_another_optimizer(one: Any) -> None:
    one.fused_step = FusedSGD(pair()[0].parameters(), lr=1.0)


def parametrize(one: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(one.linear)


@pytest.mark.parametrize(
    "change",
    [
        replace_weight,
        replace_bias,
        assign_state,
        replace_layer,
        take_another_optimizer,
        parametrize,
    ],
)
def test_the_optimizer_must_hold_the_parameters_of_the_layer(change: Any) -> None:
    one, _, _ = pair_with_sgd()
    change(one)
    before = [p.clone() for p in one.parameters()]
    ((x, target),) = batches(1)
    name = "linear_bias" if change is replace_bias else "linear_weight"
    with pytest.raises(ValueError, match=f"must have {name} itself among its"):
        one(x, target)
    assert_same(before, one.parameters())


def test_parameters_of_a_functional_call_are_not_those_of_the_optimizer() -> None:
    one, _, _ = pair_with_sgd()
    ((x, target),) = batches(1)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in one.named_parameters()}
    with pytest.raises(ValueError, match="must have linear_weight itself among its"):
        torch.func.functional_call(one, parameters, (x, target))
    with torch.no_grad():  # nothing is to be updated
        assert torch.equal(torch.func.functional_call(one, parameters, (x, target)), one(x, target))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
        ({"accumulate": 1.5}, TypeError, "accumulate must be an integer, got float"),
        ({"group": "world"}, TypeError, "group must be a process group or None, got str"),
        ({"differentiable": True}, TypeError, "differentiable"),
    ],
)
@pytest.mark.parametrize("kind", [FusedSGD, FusedAdam])
def test_wrong_options(kind: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        kind(pair()[0].parameters(), lr=1.0, **options)


def test_on_the_meta_device() -> None:
    """It tells shapes, and leaves the steps of other devices alone."""
    for device in ("meta", "cpu", "meta"):
        one = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
        one.fused_step = FusedSGD(one.parameters(), lr=1.0)
        x = torch.ones(2, FEATURES, device=device, requires_grad=True)
        one(x, torch.ones(2, LABELS, device=device)).backward()
        assert x.grad is not None
        one.fused_step.step()
