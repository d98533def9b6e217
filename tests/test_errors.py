"""Bad arguments: the type of each error, its words, and that nothing is half-done."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch

from weighted_bce import (
    SparseLabels,
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    backend,
    weighted_bce,
    weighted_bce_with_logits,
)

from .sparse_values import GOOD, WRONG_VALUES, sparse_labels
from .truth import backends

X = torch.full((3, 5), 0.5)
Y = torch.zeros(3, 5, dtype=torch.bool)
BOTH = (weighted_bce_with_logits, weighted_bce)
CROW, COL = GOOD
MUST_FIT = "must broadcast to shape (3, 5) of input, got"
MUST_MATCH = "target must have shape (3, 5) to match input, got"
OF_SPARSE = "input must have shape (rows, labels) with sparse labels, got"

# The beginning of the error, its type, and the keyword arguments in place of the right ones.
WRONG: list[tuple[str, type[Exception], dict[str, Any]]] = [
    (
        "input must be float16, bfloat16, float32 or float64, got int64",
        TypeError,
        {"input": X.long()},
    ),
    ("input must be float16", TypeError, {"input": Y}),
    ("input must be float16", TypeError, {"input": X + 1j}),
    ("input must be float16", TypeError, {"input": X.long(), "target": GOOD}),
    ("input must be a torch.Tensor, got ndarray", TypeError, {"input": X.numpy()}),
    ("input must be a torch.Tensor, got list", TypeError, {"input": [0.5]}),
    (
        "target must be a torch.Tensor or SparseLabels, got ndarray",
        TypeError,
        {"target": np.zeros((3, 5))},
    ),
    (
        "target must be bool, integer or floating point, got complex64",
        TypeError,
        {"target": X + 1j},
    ),
    (f"{MUST_MATCH} (3, 4)", ValueError, {"target": Y[:, :4]}),
    (f"{MUST_MATCH} (1, 5)", ValueError, {"target": Y[:1]}),
    (f"{MUST_MATCH} (1, 3, 5)", ValueError, {"target": Y[None]}),
    ("target must be on cpu like input, got meta", ValueError, {"target": Y.to("meta")}),
    (
        "target must be torch.strided like input, got torch.sparse_csc",
        TypeError,
        {"target": Y.to_sparse_csc()},
    ),
    ("weight must be a torch.Tensor, got float", TypeError, {"weight": 2.0}),
    ("weight must be a torch.Tensor, got ndarray", TypeError, {"weight": np.ones(5)}),
    ("weight must be real numbers, got complex64", TypeError, {"weight": torch.ones(5) + 1j}),
    (f"weight {MUST_FIT} (3,)", ValueError, {"weight": torch.ones(3)}),
    (f"weight {MUST_FIT} (2, 3, 5)", ValueError, {"weight": torch.ones(2, 3, 5)}),
    ("weight must be on cpu like input, got meta", ValueError, {"weight": X.to("meta")}),
    (f"pos_weight {MUST_FIT} (4,)", ValueError, {"pos_weight": torch.ones(4)}),
    ("pos_weight must be on cpu like input, got meta", ValueError, {"pos_weight": X.to("meta")}),
    ("pos_weight must be real numbers, got bool", TypeError, {"pos_weight": Y}),
    *(
        (
            f"pos_weight must be a number or a torch.Tensor, got {type(value).__name__}",
            TypeError,
            {"pos_weight": value},
        )
        for value in (True, "7", [7.0])
    ),
    *(
        (f"pos_weight must be a finite number >= 0, got {p}", ValueError, {"pos_weight": p})
        for p in (-1.0, nan, inf)
    ),
    *(
        (f"label_smoothing must be in [0, 1), got {e}", ValueError, {"label_smoothing": e})
        for e in (1.0, -0.1, nan)
    ),
    ("label_smoothing must be a number, got str", TypeError, {"label_smoothing": "0"}),
    ("label_smoothing must be a number, got NoneType", TypeError, {"label_smoothing": None}),
    ("ignore_index must be a number or None, got str", TypeError, {"ignore_index": "-1"}),
    (
        "reduction must be one of none, mean, sum, batchmean or a callable, got 'average'",
        ValueError,
        {"reduction": "average"},
    ),
    ("reduction must be a string or a callable, got NoneType", TypeError, {"reduction": None}),
    (
        "reduction 'batchmean' needs an input with a first dimension, got 0-d",
        ValueError,
        {"input": X[0, 0], "target": Y[0, 0], "reduction": "batchmean"},
    ),
    # Sparse labels.
    (
        "target must be a torch.Tensor or SparseLabels, got tuple",
        TypeError,
        {"target": (CROW, COL)},
    ),
    (
        "target.col_indices must be int32 or int64, got float32",
        TypeError,
        {"target": SparseLabels(CROW, COL.float())},
    ),
    (
        "target.crow_indices must be int32 or int64, got bool",
        TypeError,
        {"target": SparseLabels(CROW > 0, COL)},
    ),
    (
        "target.col_indices must be int64 like crow_indices, got int32",
        TypeError,
        {"target": SparseLabels(CROW, COL.int())},
    ),
    (
        "target.crow_indices must be a torch.Tensor, got list",
        TypeError,
        {"target": SparseLabels(CROW.tolist(), COL.tolist())},  # type: ignore[arg-type]
    ),
    (
        "target.col_indices must be a torch.Tensor, got NoneType",
        TypeError,
        {"target": SparseLabels(CROW, None)},  # type: ignore[arg-type]
    ),
    (
        "target.crow_indices must be one-dimensional, got shape (1, 4)",
        ValueError,
        {"target": SparseLabels(CROW[None], COL)},
    ),
    (
        "target.col_indices must be one-dimensional, got shape ()",
        ValueError,
        {"target": SparseLabels(CROW, COL[0])},
    ),
    (
        "target.col_indices must be on cpu like crow_indices, got meta",
        ValueError,
        {"target": SparseLabels(CROW, COL.to("meta"))},
    ),
    (
        "target.crow_indices must have rows + 1 elements, got none",
        ValueError,
        {"target": SparseLabels(CROW[:0], COL)},
    ),
    (
        "target must have 4 rows to match input, got 3",
        ValueError,
        {"input": torch.rand(4, 5), "target": GOOD},
    ),
    (f"{OF_SPARSE} (3, 5, 1)", ValueError, {"input": X[..., None], "target": GOOD}),
    (f"{OF_SPARSE} (3,)", ValueError, {"input": X[:, 0], "target": GOOD}),
    ("target must be on cpu like input, got meta", ValueError, {"target": GOOD.to("meta")}),
    (
        "input must be torch.strided with sparse labels, got torch.sparse_coo",
        TypeError,
        {"input": X.to_sparse(), "target": GOOD},
    ),
    (f"{MUST_MATCH} (3, 6)", ValueError, {"target": torch.eye(3, 6).to_sparse()}),
    (f"{MUST_MATCH} (2, 5)", ValueError, {"target": torch.eye(2, 5).to_sparse()}),
    (
        "target must not require a gradient where it is sparse",
        TypeError,
        {"target": torch.eye(3, 5).to_sparse_csr().requires_grad_()},
    ),
    ("tensor must hold 0 and 1 only, got 0.5", ValueError, {"target": X.to_sparse()}),
]


@pytest.mark.parametrize(("words", "error", "arguments"), WRONG, ids=[w for w, *_ in WRONG])
def test_wrong_arguments(words: str, error: type[Exception], arguments: dict[str, Any]) -> None:
    """All functions raise it, and leave the logits, their gradient and the graph as they were."""
    targets = (Y,) if arguments.keys() & {"input", "target"} else (Y, GOOD)
    for target, chosen in product(targets, backends("cpu")):
        for function in BOTH:
            with backend(chosen), pytest.raises(error) as raised:
                function(**{"input": X, "target": target, **arguments})
            assert str(raised.value).startswith(words)
        hidden = X.clone().requires_grad_() * 1.0
        given = {"input": hidden, "target": target, "inplace_backward": True, **arguments}
        with backend(chosen), pytest.raises(error):
            weighted_bce_with_logits(**given)
        assert torch.equal(hidden, X)
        assert hidden._version == 0
        weighted_bce_with_logits(hidden, Y).backward()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_wrong_values_of_sparse_labels(wrong: str, dtype: torch.dtype) -> None:
    crow, col, words, _ = WRONG_VALUES[wrong]
    words = rf"^target\.{words}$"
    labels = sparse_labels(crow, col, dtype)
    for chosen, given in product(backends("cpu"), ({}, {"inplace_backward": True})):
        hidden = X.clone().requires_grad_() * 1.0
        with backend(chosen), pytest.raises(ValueError, match=words) as raised:
            weighted_bce_with_logits(hidden, labels, **given)
        assert raised.value.__suppress_context__ or chosen == "reference"  # one error, not two
        assert (hidden._version, torch.equal(hidden, X)) == (0, True)
        with backend(chosen), torch.no_grad(), pytest.raises(ValueError, match=words):
            weighted_bce_with_logits(hidden, labels, reduction="none")
    with pytest.raises(ValueError, match=words):
        weighted_bce(X, labels)


@pytest.mark.parametrize("wrong", ["beyond", "negative", "late", "short"])
@pytest.mark.parametrize("device", ["cpu"])
def test_wrong_values_under_vmap(wrong: str, chosen: str) -> None:
    x, labels = torch.randn(2, 3, 5), sparse_labels(*WRONG_VALUES[wrong][:2])
    with pytest.raises((ValueError, RuntimeError), match=r"must (be|end)|number"):
        torch.vmap(lambda x: weighted_bce_with_logits(x, labels))(x)
    for order in ((GOOD, labels), (labels, GOOD)):
        each = SparseLabels(*(torch.stack(pair) for pair in zip(*order, strict=True)))
        for function in (weighted_bce_with_logits, torch.func.grad(weighted_bce_with_logits)):
            with pytest.raises(RuntimeError, match=r"_indices must|out of bounds"):
                torch.vmap(function)(x, each)


@pytest.mark.parametrize(
    "module", [WeightedBCEWithLogitsLoss, WeightedBCELoss, WeightBCEWithLogitsLoss]
)
def test_modules_raise_the_same(module: Callable[..., torch.nn.Module]) -> None:
    loss = module(torch.ones(4)) if module is not WeightBCEWithLogitsLoss else module(-1.0)
    with pytest.raises(ValueError, match=r"weight must b"):
        loss(X, Y)
    with pytest.raises(ValueError, match=r"target must have shape \(3, 5\)"):
        loss(X, Y[1:])


@pytest.mark.parametrize("value", [-0.1, 1.1, nan])
def test_probabilities_must_be_in_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"input must be in \[0, 1\], got values from"):
        weighted_bce(torch.tensor([0.5, value]), torch.tensor([1, 0]))


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
