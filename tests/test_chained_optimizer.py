"""A ChainedOptimizer is one torch.optim.Optimizer, whose steps are those of the ones it holds."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from weighted_bce import ChainedOptimizer

pytestmark = pytest.mark.usefixtures("one_thread")


def pair() -> tuple[nn.Sequential, list[Optimizer]]:
    """Returns a model of an encoder and a classifier, and an optimizer for each of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    encoder, classifier = model
    groups = [{"params": [classifier.weight]}, {"params": [classifier.bias], "lr": 0.5}]
    return model, [AdamW(encoder.parameters(), lr=0.01), SGD(groups, lr=0.1, momentum=0.9)]


def chained() -> tuple[nn.Sequential, ChainedOptimizer]:
    model, optimizers = pair()
    return model, ChainedOptimizer(optimizers)


def inputs(number: int, first: int = 0) -> list[Tensor]:
    generators = (torch.Generator().manual_seed(i) for i in range(first, first + number))
    return [torch.randn(5, 4, generator=generator) for generator in generators]


def train(model: nn.Module, optimizers: list[Optimizer], data: list[Tensor]) -> None:
    for x in data:
        model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


def assert_same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close([*one.parameters()], [*other.parameters()], rtol=0, atol=0)


def test_its_steps_are_those_of_its_optimizers() -> None:
    (one, optimizer), (other, optimizers) = chained(), pair()
    before = copy.deepcopy(one)
    train(one, [optimizer], inputs(3))
    train(other, optimizers, inputs(3))
    assert_same(one, other)
    for p, was in zip(one.parameters(), before.parameters(), strict=True):
        assert not torch.equal(p, was)


def test_a_closure_is_called_once_with_gradients() -> None:
    (one, optimizer), (other, optimizers) = chained(), pair()
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = one(inputs(1)[0]).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    wanted = other(inputs(1)[0]).square().mean().detach()
    train(other, optimizers, inputs(1))
    assert calls == [True]
    assert torch.equal(loss, wanted)
    assert_same(one, other)


def test_zero_grad_keeps_tensors_if_asked() -> None:
    model, optimizer = chained()
    model(inputs(1)[0]).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda o: LambdaLR(o, [lambda n: 0.5**n, lambda n: 0.9**n, lambda n: 1 / (n + 1)]),
        lambda o: OneCycleLR(o, [0.02, 0.2, 0.4], total_steps=5, cycle_momentum=False),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_scheduler_sets_the_rates_that_are_used(make: Callable[[Any], Any]) -> None:
    (one, optimizer), (other, optimizers) = chained(), pair()
    scheduler = make(optimizer)
    rates = []
    for x in inputs(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        train(one, [optimizer], [x])
        scheduler.step()
    groups = [group for one in optimizers for group in one.param_groups]
    for x, step_rates in zip(inputs(4), rates, strict=True):
        for group, rate in zip(groups, step_rates, strict=True):
            group["lr"] = rate
        train(other, optimizers, [x])
    assert len(set(map(tuple, rates))) == 4
    assert_same(one, other)


def test_defaults_are_those_that_all_have() -> None:
    _, optimizer = chained()
    assert optimizer.defaults["lr"] == 0.01
    assert not {"betas", "momentum"} & {*optimizer.defaults}


def test_step_hooks_are_called_once() -> None:
    model, optimizer = chained()
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda o, *_: called.append("before"))
    optimizer.register_step_post_hook(lambda o, *_: called.append("after"))
    train(model, [optimizer], inputs(1))
    assert called == ["before", "after"]


def test_goes_on_from_a_file(tmp_path: Path) -> None:
    """Another model goes on to the same weights; its scheduler still sets the rates."""
    one, optimizer = chained()
    scheduler = LambdaLR(optimizer, lambda n: 0.5**n)
    train(one, [optimizer], inputs(2))
    scheduler.step()
    states = [item.state_dict() for item in (one, optimizer, scheduler)]
    torch.save(states, tmp_path / "state.pt")

    other, optimizer_2 = chained()
    scheduler_2 = LambdaLR(optimizer_2, lambda n: 0.5**n)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    for item, state in zip((other, optimizer_2, scheduler_2), loaded, strict=True):
        item.load_state_dict(state)
    assert [*optimizer_2.state] == [*other.parameters()]
    for x in inputs(2, first=2):
        train(one, [optimizer], [x])
        train(other, [optimizer_2], [x])
        scheduler.step()
        scheduler_2.step()
    assert optimizer_2.param_groups[-1]["lr"] == 0.5 * 0.5**3
    assert_same(one, other)


def test_state_dict_has_the_form_of_an_ordinary_one() -> None:
    model, optimizer = chained()
    train(model, [optimizer], inputs(1))
    state_dict = optimizer.state_dict()
    assert [group["params"] for group in state_dict["param_groups"]] == [[0, 1], [2], [3]]
    assert [*state_dict["state"]] == [0, 1, 2, 3]
    assert [*optimizer.state] == [*model.parameters()]
    for state, p in zip(state_dict["state"].values(), model.parameters(), strict=True):
        assert state is optimizer.state[p]


def test_distributed_checkpoints() -> None:
    (one, optimizer), (other, optimizer_2) = chained(), chained()
    train(one, [optimizer], inputs(2))
    other.load_state_dict(one.state_dict())
    by_name = get_optimizer_state_dict(one, optimizer)
    assert {*by_name["state"]} == {name for name, _ in one.named_parameters()}
    set_optimizer_state_dict(other, optimizer_2, copy.deepcopy(by_name))
    train(one, [optimizer], inputs(1))
    train(other, [optimizer_2], inputs(1))
    assert_same(one, other)


def test_state_dict_hooks() -> None:
    _, optimizer = chained()
    called: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: called.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": "load"})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: called.append(state.pop("note")))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: with_rate(state, 2.0))
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("loaded"))
    state_dict = optimizer.state_dict()
    optimizer.load_state_dict(state_dict)
    assert called == ["save", "load", "loaded"]
    assert state_dict["note"] == "load"
    assert [group["lr"] for group in optimizer.param_groups] == [2.0] * 3


def with_rate(state_dict: dict[str, Any], rate: float) -> dict[str, Any]:
    groups = [{**group, "lr": rate} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def test_copies_go_on() -> None:
    one, optimizer = chained()
    train(one, [optimizer], inputs(2))
    other, copied = copy.deepcopy((one, optimizer))
    train(one, [optimizer], inputs(1))
    train(other, [copied], inputs(1))
    assert_same(one, other)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_skips_all_of_a_step(fused: bool) -> None:
    """An optimizer that would divide by the scale itself is given gradients that are divided."""

    def with_adam() -> tuple[nn.Module, list[Optimizer]]:
        model, (adam, sgd) = pair()
        return model, [Adam(adam.param_groups[0]["params"], lr=0.01, fused=fused), sgd]

    (one, optimizers), (other, others) = with_adam(), with_adam()
    optimizer = ChainedOptimizer(optimizers)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    x, infinite, y = *inputs(1), torch.full((5, 4), torch.inf), *inputs(1, 1)
    for batch in (x, infinite, y):
        scaler.scale(one(batch).square().mean()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(one.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 128.0
    for batch in (x, y):
        other(batch).square().mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        for item in others:
            item.step()
            item.zero_grad()
    assert_same(one, other)


def test_a_new_group_is_the_last() -> None:
    model, optimizer = chained()
    new = nn.Linear(2, 2)
    optimizer.add_param_group({"params": iter(new.parameters()), "lr": 0.25})
    assert optimizer.param_groups[-1]["params"] == [*new.parameters()]
    assert optimizer.param_groups[-1]["momentum"] == 0.9
    before = copy.deepcopy(new)
    new(torch.ones(1, 2)).sum().backward()
    train(model, [optimizer], inputs(1))
    assert not torch.equal(new.weight, before.weight)


def test_wrong_arguments() -> None:
    model, (adam, sgd) = pair()
    with pytest.raises(TypeError, match="must be an iterable of optimizers, got AdamW"):
        ChainedOptimizer(adam)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="objects, got Linear at index 1"):
        ChainedOptimizer([adam, model[0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="optimizers must not be empty"):
        ChainedOptimizer([])
    with pytest.raises(ValueError, match="must not share parameters, got a parameter in two"):
        ChainedOptimizer([adam, SGD(model.parameters(), lr=1.0)])
    optimizer = ChainedOptimizer([adam, sgd])
    for group, error in (
        ({"params": model[0].weight}, "must not share parameters"),
        ({"params": [("weight", model[0].weight)]}, "must not share parameters"),
        ({"params": [model[1].weight]}, "appear in more than one parameter group"),
    ):
        with pytest.raises(ValueError, match=error):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 3
    with pytest.raises(TypeError, match="ordered collections"):
        optimizer.add_param_group({"params": {torch.zeros(1)}})


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    (model, optimizer), (_, others) = chained(), pair()
    train(model, [optimizer], inputs(1))
    before = copy.deepcopy(optimizer.state_dict())
    message = "state_dict must have parameter groups of the sizes [2, 1, 1], got "
    for wrong in (ChainedOptimizer(others[::-1]), others[0]):
        sizes = [len(group["params"]) for group in wrong.param_groups]
        with pytest.raises(ValueError, match=re.escape(f"{message}{sizes}")):
            optimizer.load_state_dict(wrong.state_dict())
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_an_optimizer_that_needs_the_closure_itself() -> None:
    model, (adam, _) = pair()
    optimizer = ChainedOptimizer([LBFGS(model[1].parameters()), adam])
    with pytest.raises(TypeError, match="closure"):
        optimizer.step(lambda: model(inputs(1)[0]).sum())
