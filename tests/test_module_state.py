"""The modules keep tensors as buffers, numbers as numbers, like nn.BCEWithLogitsLoss."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weighted_bce import (
    Focal,
    MultilabelLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    weighted_bce_with_logits,
)

from .truth import labels, logits

Make = Callable[..., Any]
MODULES: list[Make] = [
    WeightedBCEWithLogitsLoss,
    WeightedBCELoss,
    partial(MultilabelLoss, Focal(1.5)),
]


def through_a_file(saved: Any, weights_only: bool = False) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("module", MODULES)
def test_weights_are_buffers_and_floats_stay(module: Make) -> None:
    options: Any = {"reduction": "sum", "label_smoothing": 0.1, "ignore_index": -1}
    loss = module(torch.rand(5), torch.rand(5) * 7, **options)
    assert set(loss.state_dict()) == {"weight", "pos_weight"}
    other = module(torch.zeros(5), torch.zeros(5), **options)
    other.load_state_dict(loss.state_dict())
    x, y = torch.rand(4, 5), labels(4, 5)
    for again in (copy.deepcopy(loss), pickled(loss), other, through_a_file(loss)):
        assert torch.equal(again(x, y), loss(x, y))
        assert repr(again) == repr(loss)
    floats = module(pos_weight=3.0)
    assert not floats.state_dict()
    assert torch.equal(pickled(floats)(x, y), floats(x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_state(device: str, dtype: torch.dtype) -> None:
    """A file of weights only, strict loading and assignment, as of nn.BCEWithLogitsLoss."""
    x, y = logits(4, 5, device=device), labels(4, 5, dtype=torch.float32, device=device)
    weights = {"weight": torch.rand(5) + 0.5, "pos_weight": torch.rand(5) * 7}
    results = []
    for module in (WeightedBCEWithLogitsLoss, nn.BCEWithLogitsLoss):
        loss = module(**{n: w.to(dtype) for n, w in weights.items()}).to(device)
        state = through_a_file(loss.state_dict(), weights_only=True)
        other = module(torch.ones(5), pos_weight=torch.ones(5)).to(device)
        other.load_state_dict(state)
        assert other.pos_weight.dtype == torch.float32
        assigned = module(torch.ones(5), pos_weight=torch.ones(5))
        assigned.load_state_dict(state, assign=True)
        assert assigned.pos_weight is state["pos_weight"]
        results.append([m(x, y).double() for m in (loss, other, assigned)])
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "pos_weight'):
            loss.load_state_dict({"weight": state["weight"]})
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            loss.load_state_dict({**state, "weight": torch.ones(4)})
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("first", [None, 3.0, "tensor", "old pickle"])
def test_pos_weight_may_be_set_later(module: Make, first: Any) -> None:
    """A tensor becomes a buffer, a number does not, whatever was there before."""
    start: Any = torch.ones(5) if first == "tensor" else first
    loss = module(pos_weight=None if first == "old pickle" else start)
    if first == "old pickle":  # in which None is no buffer
        state = loss.__getstate__()
        state["_buffers"].pop("pos_weight", None)
        loss = type(loss).__new__(type(loss))
        loss.__setstate__({**state, "pos_weight": None})
        assert loss.pos_weight is None
    x, y = torch.rand(4, 5), labels(4, 5)
    tensor = torch.rand(5) * 7
    loss.pos_weight = nn.Parameter(tensor)
    for value in (2.0, tensor, 2.0, tensor, None, 2.0, None, tensor):
        loss.pos_weight = value
        for same in (loss, copy.copy(loss), copy.deepcopy(loss), pickled(loss)):
            assert set(same.state_dict()) == ({"pos_weight"} if value is tensor else set())
            assert torch.equal(same(x, y), module(pos_weight=value)(x, y))
        if value is tensor:
            assert torch.equal(same.half().pos_weight, tensor)
            assert same.to("meta").pos_weight.is_meta
        else:
            assert same.double().pos_weight == value
        if value is None:
            same.register_buffer("pos_weight", tensor)
            assert set(same.state_dict()) == {"pos_weight"}
    loss.pos_weight = nn.Parameter(tensor)
    assert [name for name, _ in loss.named_parameters()] == ["pos_weight"]
    assert set(loss.state_dict()) == {"pos_weight"}


def test_parameters_given_to_the_module_are_buffers() -> None:
    """An optimizer does not see them, as it does not see those of nn.BCEWithLogitsLoss."""
    for module in (*MODULES, nn.BCEWithLogitsLoss):
        loss = module(pos_weight=nn.Parameter(torch.ones(5)))
        assert [name for name, _ in loss.named_buffers()] == ["pos_weight"]
        assert not list(loss.parameters())


@pytest.mark.parametrize("assign", [False, True])
def test_deferred_initialization(device: str, assign: bool) -> None:
    """Built on the meta device, then filled; also where meta is the default device."""
    weights = {"weight": torch.rand(5) + 0.5, "pos_weight": torch.rand(5) * 7}
    weights = {name: w.to(device) for name, w in weights.items()}
    x, y = torch.rand(4, 5, device=device), labels(4, 5, device=device)
    for module in MODULES:
        with torch.device("meta"):
            loss = module(torch.ones(5), torch.ones(5))
            assert module(pos_weight=3.0).pos_weight == 3.0
        assert loss(x.to("meta"), y.to("meta")).is_meta
        if not assign:
            loss.to_empty(device=device)
        loss.load_state_dict(weights, assign=assign)
        assert torch.equal(loss(x, y), module(**weights)(x, y))


def test_functional_call(device: str) -> None:
    """A buffer may be replaced for one call, and be what the gradient is taken of."""
    x, y = logits(4, 5, device=device), labels(4, 5, device=device)
    tensor = torch.rand(5, device=device) * 7
    call = torch.func.functional_call
    for before in (torch.ones(5, device=device), None):
        loss = WeightedBCEWithLogitsLoss(pos_weight=before)
        actual = call(loss, {"pos_weight": tensor}, (x, y))
        assert torch.equal(actual, weighted_bce_with_logits(x, y, pos_weight=tensor))
        assert loss.pos_weight is before
        grad = torch.func.grad(lambda p, loss=loss: call(loss, {"pos_weight": p}, (x, y)))(tensor)
        torch.testing.assert_close(grad, (F.softplus(-x) * y).mean(0) / 5)
    with pytest.raises(TypeError, match="pos_weight"):
        call(WeightedBCEWithLogitsLoss(pos_weight=3.0), {"pos_weight": tensor}, (x, y))
