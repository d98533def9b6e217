"""Bad arguments: the type of each error, its words, and that nothing is half-done."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from weighted_bce import (
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    backend,
    weighted_bce,
    weighted_bce_with_logits,
)
from weighted_bce._extension import extension
from weighted_bce._options import BATCHMEAN, SUM

X = torch.full((8, 5), 0.5)
Y = torch.zeros(8, 5, dtype=torch.bool)
BOTH = (weighted_bce_with_logits, weighted_bce)

# Keyword arguments in place of the right ones, then the error.
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input integer": (
        {"input": X.long()},
        TypeError,
        "input must be float16, bfloat16, float32 or float64, got int64",
    ),
    "input bool": ({"input": Y}, TypeError, "input must be float16.*, got bool"),
    "input complex": ({"input": X + 1j}, TypeError, "input must be float16.*, got complex64"),
    "input numpy": ({"input": X.numpy()}, TypeError, "input must be a torch.Tensor, got ndarray"),
    "input list": ({"input": [0.5]}, TypeError, "input must be a torch.Tensor, got list"),
    "target numpy": (
        {"target": np.zeros((8, 5))},
        TypeError,
        "target must be a torch.Tensor or SparseLabels, got ndarray",
    ),
    "target complex": (
        {"target": X + 1j},
        TypeError,
        "target must be bool, integer or floating point, got complex64",
    ),
    "target shape": (
        {"target": Y[:, :4]},
        ValueError,
        r"target must have shape \(8, 5\) to match input, got \(8, 4\)",
    ),
    "target broadcasts": (
        {"target": Y[:1]},
        ValueError,
        r"target must have shape \(8, 5\) to match input, got \(1, 5\)",
    ),
    "target more dimensions": (
        {"target": Y[None]},
        ValueError,
        r"target must have shape \(8, 5\) to match input, got \(1, 8, 5\)",
    ),
    "target device": (
        {"target": Y.to("meta")},
        ValueError,
        "target must be on cpu like input, got meta",
    ),
    "target sparse": (
        {"target": Y.to_sparse_csc()},
        TypeError,
        "target must be torch.strided like input, got torch.sparse_csc",
    ),
    "weight number": ({"weight": 2.0}, TypeError, "weight must be a torch.Tensor, got float"),
    "weight numpy": ({"weight": np.ones(5)}, TypeError, "weight must be a torch.Tensor, got nda"),
    "weight complex": (
        {"weight": torch.ones(5) + 1j},
        TypeError,
        "weight must be real numbers, got complex64",
    ),
    "weight shape": (
        {"weight": torch.ones(8)},
        ValueError,
        r"weight must broadcast to shape \(8, 5\) of input, got \(8,\)",
    ),
    "weight larger": (
        {"weight": torch.ones(2, 8, 5)},
        ValueError,
        r"weight must broadcast to shape \(8, 5\) of input, got \(2, 8, 5\)",
    ),
    "weight device": (
        {"weight": torch.ones(5, device="meta")},
        ValueError,
        "weight must be on cpu like input, got meta",
    ),
    "pos_weight shape": (
        {"pos_weight": torch.ones(4)},
        ValueError,
        r"pos_weight must broadcast to shape \(8, 5\) of input, got \(4,\)",
    ),
    "pos_weight device": (
        {"pos_weight": torch.ones(5, device="meta")},
        ValueError,
        "pos_weight must be on cpu like input, got meta",
    ),
    "pos_weight bool tensor": (
        {"pos_weight": torch.ones(5, dtype=torch.bool)},
        TypeError,
        "pos_weight must be real numbers, got bool",
    ),
    "pos_weight bool": (
        {"pos_weight": True},
        TypeError,
        "pos_weight must be a number or a torch.Tensor, got bool",
    ),
    "pos_weight text": (
        {"pos_weight": "7"},
        TypeError,
        "pos_weight must be a number or a torch.Tensor, got str",
    ),
    "pos_weight list": ({"pos_weight": [7.0]}, TypeError, "pos_weight must be a number or .* list"),
    "pos_weight negative": (
        {"pos_weight": -1.0},
        ValueError,
        r"pos_weight must be a finite number >= 0, got -1\.0",
    ),
    "pos_weight nan": (
        {"pos_weight": float("nan")},
        ValueError,
        "pos_weight must be a finite number >= 0, got nan",
    ),
    "pos_weight inf": ({"pos_weight": float("inf")}, ValueError, "pos_weight must be .* got inf"),
    "smoothing 1": (
        {"label_smoothing": 1.0},
        ValueError,
        r"label_smoothing must be in \[0, 1\), got 1\.0",
    ),
    "smoothing negative": (
        {"label_smoothing": -0.1},
        ValueError,
        r"label_smoothing must be in \[0, 1\), got -0\.1",
    ),
    "smoothing nan": (
        {"label_smoothing": float("nan")},
        ValueError,
        r"label_smoothing must be in \[0, 1\), got nan",
    ),
    "smoothing text": (
        {"label_smoothing": "0"},
        TypeError,
        "label_smoothing must be a number, got str",
    ),
    "smoothing None": (
        {"label_smoothing": None},
        TypeError,
        "label_smoothing must be a number, got NoneType",
    ),
    "ignore_index text": (
        {"ignore_index": "-1"},
        TypeError,
        "ignore_index must be a number or None, got str",
    ),
    "reduction unknown": (
        {"reduction": "average"},
        ValueError,
        "reduction must be one of none, mean, sum, batchmean or a callable, got 'average'",
    ),
    "reduction None": (
        {"reduction": None},
        TypeError,
        "reduction must be a string or a callable, got NoneType",
    ),
    "batchmean 0-d": (
        {"input": X[0, 0], "target": Y[0, 0], "reduction": "batchmean"},
        ValueError,
        "reduction 'batchmean' needs an input with a first dimension, got 0-d",
    ),
}


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(function: Callable[..., Any], wrong: str) -> None:
    arguments, error, words = WRONG[wrong]
    for chosen in ("auto", "reference"):
        with backend(chosen), pytest.raises(error, match=f"^{words}"):
            function(**{"input": X, "target": Y, **arguments})


@pytest.mark.parametrize(
    "module", [WeightedBCEWithLogitsLoss, WeightedBCELoss, WeightBCEWithLogitsLoss]
)
def test_modules_raise_the_same(module: type[torch.nn.Module]) -> None:
    loss = module(torch.ones(4)) if module is not WeightBCEWithLogitsLoss else module(-1.0)
    with pytest.raises(ValueError, match=r"weight must b"):
        loss(X, Y)
    with pytest.raises(ValueError, match=r"target must have shape \(8, 5\)"):
        loss(X, Y[1:])


def test_probabilities_must_be_in_range() -> None:
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"input must be in \[0, 1\], got values from"):
            weighted_bce(torch.tensor([0.5, value]), torch.tensor([1, 0]))


def test_nothing_is_half_done() -> None:
    """After an error in the call the logits, their gradient and the graph are as before."""
    hidden = X.clone().requires_grad_() * 1.0
    before, version = hidden.detach().clone(), hidden._version
    for wrong, (arguments, error, _) in WRONG.items():
        if "input" not in arguments:
            with pytest.raises(error):
                weighted_bce_with_logits(
                    **{"input": hidden, "target": Y, "inplace_backward": True, **arguments}
                )
            assert torch.equal(hidden, before), wrong
            assert hidden._version == version, wrong
    weighted_bce_with_logits(hidden, Y).backward()


@pytest.mark.skipif(extension is None, reason="no extension")
def test_ops_check_for_themselves(kernel_device: str) -> None:
    ops, one = torch.ops.weighted_bce, torch.tensor(1.0, device=kernel_device)
    logits, labels = X.to(kernel_device), Y.to(kernel_device)
    blank = torch.zeros_like(logits)
    good: dict[str, Any] = {
        "input": logits.clone(),
        "target": labels,
        "crow_indices": None,
        "weight": None,
        "pos_weight": None,
        "pos_weight_value": 1.0,
        "label_smoothing": 0.0,
        "ignore_index": None,
        "first_label": None,
    }
    calls: list[Callable[[dict[str, Any]], Any]] = [
        lambda a: ops.loss(*a.values(), SUM),
        lambda a: ops.loss_and_grad(one, *a.values(), SUM),
        lambda a: ops.loss_and_grad_(one, *a.values(), SUM),
        lambda a: ops.update_grad_(one, 2 * one, one.clone(), blank, *a.values(), SUM),
        lambda a: ops.grad(one, *a.values(), SUM),
        lambda a: ops.grad_(one, *a.values(), SUM),
        lambda a: ops.unreduced(*a.values()),
    ]
    wrong: dict[str, tuple[Any, str]] = {
        "input": (logits.long(), "input must be float16, bfloat16, float32 or float64"),
        "target": (labels[:1], "target must have the shape of input"),
        "weight": (blank[0, :4], "weight must broadcast to the shape of input"),
        "pos_weight": (blank.expand(2, 8, 5), "pos_weight must broadcast to the shape of input"),
        "pos_weight_value": (-1.0, "pos_weight must be at least 0"),
        "label_smoothing": (1.0, r"label_smoothing must be in \[0, 1\)"),
    }
    for call in calls:
        for name, (value, words) in wrong.items():
            with pytest.raises(RuntimeError, match=words):
                call({**good, name: value})
        for name, value in (("pos_weight_value", float("nan")), ("target", logits + 1j)):
            with pytest.raises(RuntimeError):
                call({**good, name: value})
        assert torch.equal(good["input"], logits)
    scalar = [blank[0, 0], labels[0, 0], *list(good.values())[2:]]
    for reduction in (0, 4, -1):
        with pytest.raises(RuntimeError, match=f"reduction must be 1 .*, got {reduction}"):
            ops.loss(*good.values(), reduction)
    with pytest.raises(RuntimeError, match="batchmean needs an input with a first dimension"):
        ops.loss(*scalar, BATCHMEAN)
    for upstream in (blank[:, 0], blank[0], blank[:1]):
        with pytest.raises(RuntimeError, match="grad_output must be 0-d or have the shape"):
            ops.grad(upstream, *good.values(), SUM)
    with pytest.raises(RuntimeError, match="expected must be 0-d"):
        ops.loss_and_grad(one.view(1), *good.values(), SUM)
    with pytest.raises(RuntimeError, match="expected must be float32 like the loss of input"):
        ops.loss_and_grad(one.double(), *good.values(), SUM)
    scalars = [one, one, one.clone()]
    for wrong_grad in (blank[:, :4], blank.double()):
        with pytest.raises(RuntimeError, match="grad must have the shape and dtype of input"):
            ops.update_grad_(*scalars, wrong_grad, *good.values(), SUM)
    with pytest.raises(RuntimeError, match="grad must not overlap itself"):
        ops.update_grad_(*scalars, blank[:1].expand(8, 5), *good.values(), SUM)
    overlapping = {**good, "input": blank[:1].expand(8, 5)}
    with pytest.raises(RuntimeError, match="must not overlap itself"):
        ops.grad_(one, *overlapping.values(), SUM)
    with pytest.raises(RuntimeError, match="must not overlap itself"):
        ops.loss_and_grad_(one, *overlapping.values(), SUM)
    with pytest.raises(RuntimeError, match="expected must be 0-d"):
        ops.loss_and_grad_(one.view(1), *good.values(), SUM)


def test_backend() -> None:
    words = "backend must be one of auto, fused, reference, got 'c'"
    with pytest.raises(ValueError, match=words), backend("c"):
        pass
    meta = X.to("meta")
    words = r"backend 'fused' has no kernel .*meta"
    with backend("fused"), pytest.raises(RuntimeError, match=words):
        weighted_bce_with_logits(meta, Y.to("meta"))
    assert weighted_bce_with_logits(meta, Y.to("meta")).device.type == "meta"


READ_THE_VARIABLE = """
import importlib, os, weighted_bce
print(weighted_bce.show_config().split("backend: ")[1])
for name in ("", "fast"):
    os.environ["WEIGHTED_BCE_BACKEND"] = name
    print(importlib.reload(weighted_bce._config).current_backend)
"""


def test_backend_variable() -> None:
    """It is read when the package is imported."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_THE_VARIABLE],
        env={**os.environ, "WEIGHTED_BCE_BACKEND": "reference"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["reference", "auto"]
    words = "the variable WEIGHTED_BCE_BACKEND must be one of auto, fused, reference, got 'fast'"
    assert words in ran.stderr


@pytest.mark.skipif(extension is None, reason="no extension")
def test_ops_refuse_tensors_without_memory() -> None:
    ops, one = torch.ops.weighted_bce, torch.tensor(1.0)
    logits = X.clone()

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(0)
        return tensor

    rest = (1.0, 0.0, None, None, SUM)
    for weight in (empty(one), empty(torch.ones(1)), empty(torch.ones(5))):
        for factors in ((weight, None), (None, weight)):
            with pytest.raises(RuntimeError, match="no memory"):
                ops.loss(logits, Y, None, *factors, *rest)
    for weight in (torch.tensor(1j), torch.tensor([1j])):
        with pytest.raises(RuntimeError, match="a dtype that weighted_bce has no kernel for"):
            ops.loss(logits, Y, None, weight, None, *rest)
    with pytest.raises(RuntimeError, match="expected must have memory"):
        ops.loss_and_grad(empty(one), logits, Y, None, None, None, *rest)
    for place in range(3):
        scalars = [one.clone(), 2 * one, one.clone()]
        scalars[place] = empty(one)
        with pytest.raises(RuntimeError, match="must have memory"):
            ops.update_grad_(*scalars, torch.zeros_like(X), logits, Y, None, None, None, *rest)
    assert torch.equal(logits, X)
