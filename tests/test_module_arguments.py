"""Modules check their arguments when they are made, with the words of the call."""

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from weighted_bce import (
    AsymmetricLoss,
    Focal,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
)

Make = Callable[..., Any]
Row = tuple[str, Any, type[Exception], str]
OF_LOGITS: dict[str, Make] = {
    "bce": WeightedBCEWithLogitsLoss,
    "focal": partial(MultilabelLoss, Focal()),
    "probabilities": WeightedBCELoss,
}
LINEAR: dict[str, Make] = {
    "linear": partial(LinearWeightedBCEWithLogitsLoss, in_features=5, num_labels=5),
    "linear focal": partial(LinearMultilabelLoss, in_features=5, num_labels=5, loss=Focal()),
}
ALL: dict[str, Make] = {**OF_LOGITS, **LINEAR, "asymmetric": AsymmetricLoss}
X, ONES = torch.full((3, 5), 0.5), torch.ones(5)
Y = X > 1
NAMES = "be one of none, mean, sum, batchmean"
DTYPE = "have an integer or floating dtype, got"

# The argument, its value, the error, and what the argument must be. A call raises the same.
WEIGHTS: list[Row] = [
    *(("pos_weight", p, ValueError, f"be a finite number >= 0, got {p}") for p in (-1.0, nan, inf)),
    ("pos_weight", "7", TypeError, "be a number or a torch.Tensor, got str"),
    ("pos_weight", True, TypeError, "be a number or a torch.Tensor, got bool"),
    ("pos_weight", np.ones(5), TypeError, "be a number or a torch.Tensor, got ndarray"),
    *((name, Y, TypeError, f"{DTYPE} bool") for name in ("weight", "pos_weight")),
    *((name, ONES + 1j, TypeError, f"{DTYPE} complex64") for name in ("weight", "pos_weight")),
]
OPTIONS: list[Row] = [
    *(("label_smoothing", e, ValueError, f"be in [0, 1), got {e}") for e in (1.0, -0.1, nan)),
    ("label_smoothing", None, TypeError, "be a number, got NoneType"),
    ("ignore_index", "-1", TypeError, "be a number or None, got str"),
    ("ignore_index", [0], TypeError, "be a number or None, got list"),
]
REDUCTION: list[Row] = [
    ("reduction", "avg", ValueError, f"{NAMES} or a callable, got 'avg'"),
    ("reduction", None, TypeError, "be a string or a callable, got NoneType"),
]
OF_THE_LAYER: list[Row] = [
    ("reduction", "avg", ValueError, f"{NAMES}, got 'avg'"),
    ("reduction", torch.sum, TypeError, "be a string, got builtin_function_or_method"),
    ("chunk_labels", 0, ValueError, "be at least 1, got 0"),
    ("chunk_labels", 2.0, TypeError, "be an integer, got float"),
]
KINDS: list[tuple[dict[str, Make], list[Row]]] = [
    (ALL, WEIGHTS),
    (OF_LOGITS | LINEAR, OPTIONS),
    (OF_LOGITS | {"asymmetric": AsymmetricLoss}, REDUCTION),
    (LINEAR, OF_THE_LAYER),
]
CASES = [
    pytest.param(make, *row, id=f"{kind}-{row[0]}-{number}")
    for makes, rows in KINDS
    for kind, make in makes.items()
    for number, row in enumerate(rows)
]


def refused(error: type[Exception], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match="^" + re.escape(words) + "$"):
        call()


@pytest.mark.parametrize(("make", "name", "value", "error", "words"), CASES)
def test_constructor_and_call_raise_the_same(
    make: Make, name: str, value: Any, error: type[Exception], words: str
) -> None:
    words = f"{name} must {words}"
    refused(error, words, lambda: make(**{name: value}))
    criterion = make()
    setattr(criterion, name, value)
    refused(error, words, lambda: criterion(X, Y))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_values_of_tensors(make: Make) -> None:
    wrong = {
        **{torch.tensor([1.0, bad]): bad for bad in (-2.0, nan, inf, -inf)},
        torch.tensor([3, -1]): -1.0,
        torch.tensor(-1.0, dtype=torch.float16): -1.0,
        nn.Parameter(-ONES): -1.0,
        (-ONES.double()).expand(3, 5): -1.0,
    }
    for name, (tensor, got) in product(("weight", "pos_weight"), wrong.items()):
        words = f"{name} must hold finite numbers >= 0, got {got}"
        refused(ValueError, words, lambda n=name, t=tensor: make(**{n: t}))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_tensors_that_are_right_or_unreadable(make: Make) -> None:
    learned = (ONES * 2).requires_grad_() * 1.0
    wrong = -ONES
    fine = (torch.tensor(0.0), torch.ones(0), ONES.to(torch.uint16), learned, wrong.to("meta"))
    for value in fine:
        criterion = make(weight=value, pos_weight=value)
        assert criterion.weight is value
        assert criterion.pos_weight is value
    assert isinstance(make(pos_weight=nn.Parameter(ONES)).pos_weight, nn.Parameter)
    with FakeTensorMode():
        fake = torch.full((5,), -1.0)
        assert make(weight=fake, pos_weight=wrong).weight is fake
    mapped = torch.vmap(lambda w: make(pos_weight=w).pos_weight * 1, randomness="same")
    made = mapped(torch.ones(2, 5))
    assert torch.equal(made, torch.ones(2, 5))


def test_other_arguments() -> None:
    for make in (WeightedBCEWithLogitsLoss, OF_LOGITS["focal"]):
        for value in (1, "no", None):
            kind = type(value).__name__
            words = f"inplace_backward must be a bool, got {kind}"
            refused(TypeError, words, lambda m=make, v=value: m(inplace_backward=v))
            criterion = make()
            criterion.inplace_backward = value
            refused(TypeError, words, lambda c=criterion: c(X, Y))
    for make in ALL.values():
        for value in (2.0, 2, [1.0], np.ones(5)):
            words = f"weight must be a torch.Tensor or None, got {type(value).__name__}"
            if isinstance(value, (int, float)):
                words += "; the weight of the positives is pos_weight"
            refused(TypeError, words, lambda m=make, v=value: m(weight=v))
    for make in LINEAR.values():
        for name, value, error, words in (
            ("bias", 7.0, TypeError, "be a bool, got float"),
            ("num_labels", 5.0, TypeError, "be an integer, got float"),
            ("num_labels", -1, ValueError, "be at least 0, got -1"),
            ("in_features", -3, ValueError, "be at least 0, got -3"),
        ):
            given = {name: value}
            refused(error, f"{name} must {words}", lambda m=make, g=given: m(**g))


def test_the_two_arguments_of_the_masked_multiply() -> None:
    for weight, error, words in (
        (-1.0, ValueError, "weight must be a finite number >= 0, got -1.0"),
        ("7", TypeError, "weight must be a number or a torch.Tensor, got str"),
        (torch.tensor(-1.0), ValueError, "weight must hold finite numbers >= 0, got -1.0"),
    ):
        refused(error, words, lambda w=weight: WeightBCEWithLogitsLoss(w))
    words = f"reduction must {NAMES} or a callable, got 'avg'"
    refused(ValueError, words, lambda: WeightBCEWithLogitsLoss(1.0, "avg"))
    assert WeightBCEWithLogitsLoss(torch.tensor(7.0))(X, Y).isfinite()
