"""Modules with a number and with a tensor: the error of a state_dict of the other kind says how."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from weighted_bce import (
    Focal,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
)

Make = Callable[..., Any]
MODULES: list[Make] = [
    WeightedBCEWithLogitsLoss,
    WeightedBCELoss,
    partial(MultilabelLoss, Focal(1.5)),
    partial(LinearWeightedBCEWithLogitsLoss, 3, 5),
]
ALONE, NESTED = "", "1.loss."


def placed(criterion: nn.Module, prefix: str) -> nn.Module:
    """The module alone, or within others that have a tensor of the same name."""
    if prefix == ALONE:
        return criterion
    wrapper = nn.ModuleDict({"loss": criterion})
    wrapper.register_buffer("pos_weight", torch.ones(2))
    return nn.Sequential(nn.Linear(2, 2), wrapper)


def remade(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("prefix", [ALONE, NESTED])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_the_other_kind(name: str, module: Make, prefix: str, assign: bool) -> None:
    values = (None, 3.0, torch.rand(5)) if name == "pos_weight" else (None, torch.rand(5))
    for value in values:
        for saved in values:
            if isinstance(value, torch.Tensor) == isinstance(saved, torch.Tensor):
                continue
            key = prefix + name
            state = placed(module(**{name: saved}), prefix).state_dict()
            criterion = module(**{name: remade(value)})
            whole = placed(criterion, prefix)
            if saved is not values[-1]:
                words = rf'Missing key.*"{key} \(which only a module whose {name} is a tensor saves'
            else:
                words = rf'Unexpected key.*"{key} \({name} of the module is {value}: assign a tens'
            with pytest.raises(RuntimeError, match=words) as raised:
                whole.load_state_dict(state, assign=assign)
            assert len(str(raised.value).splitlines()) == 2  # torch's heading, and this
            assert same(getattr(criterion, name), value)

            keys = whole.load_state_dict(state, strict=False, assign=assign)
            assert (keys.missing_keys or keys.unexpected_keys) == [key]
            assert type(pickle.loads(pickle.dumps(keys)).missing_keys) is list
            assert {type(k) for found in copy.deepcopy(keys) for k in found} == {str}
            assert same(getattr(criterion, name), value)

            setattr(criterion, name, remade(saved))  # what the error says
            whole.load_state_dict(state, assign=assign)
            assert same(getattr(criterion, name), saved)


def same(actual: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(actual, expected)
    return bool(actual == expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("prefix", [ALONE, NESTED])
@pytest.mark.parametrize(
    "shapes", [((), (5,)), ((5,), ()), ((5,), (4,)), ((), (5, 1)), ((1, 5), (5,))]
)
def test_another_shape(shapes: Any, prefix: str, assign: bool, strict: bool) -> None:
    """It is an error in each mode, also where torch once took the first element."""
    own, saved = shapes
    for name in ("weight", "pos_weight"):
        criterion = WeightedBCEWithLogitsLoss(**{name: torch.zeros(own)})
        state = placed(WeightedBCEWithLogitsLoss(**{name: torch.ones(saved)}), prefix).state_dict()
        with pytest.raises(RuntimeError, match=f"size mismatch for {prefix}{name}: "):
            placed(criterion, prefix).load_state_dict(state, strict=strict, assign=assign)
        assert torch.equal(getattr(criterion, name), torch.zeros(own))


def test_one_element_loads_as_a_number_of_no_dimension() -> None:
    """As torch loads what its early versions saved."""
    criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.tensor(1.0))
    criterion.load_state_dict({"pos_weight": torch.tensor([3.0])})
    assert torch.equal(criterion.pos_weight, torch.tensor(3.0))


def test_hooks_may_still_change_what_is_loaded() -> None:
    criterion = WeightedBCEWithLogitsLoss(pos_weight=3.0)

    def drop(module: Any, state: Any, prefix: str, *others: Any) -> None:
        del state[prefix + "pos_weight"]

    criterion.register_load_state_dict_pre_hook(drop)
    criterion.load_state_dict({"pos_weight": torch.ones(5)})
    assert criterion.pos_weight == 3.0


def test_keys_of_other_modules_keep_torchs_words() -> None:
    """A parent's own weight is none of the criterion's."""
    whole = placed(WeightedBCEWithLogitsLoss(pos_weight=3.0), NESTED)
    state = whole.state_dict()
    del state["1.pos_weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1.pos_weight"\. $'):
        whole.load_state_dict(state)
    criterion = WeightedBCEWithLogitsLoss()
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "bias"\. $'):
        criterion.load_state_dict({"bias": torch.ones(5)})
    criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.ones(5))
    with pytest.raises(RuntimeError, match=r"expected torch\.Tensor or Tensor-like"):
        criterion.load_state_dict({"pos_weight": 3.0})
