"""Bad arguments: the type of each error, its words, and that nothing is half-done."""

import re
from functools import partial
from itertools import product
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch

from weighted_bce import (
    Focal,
    MultilabelLoss,
    SparseLabels,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    backend,
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)

from .comparison import backends
from .scripts import run_python
from .sparse_values import GOOD, WRONG_VALUES, sparse_labels

X = torch.full((3, 5), 0.5)
Y = torch.zeros(3, 5, dtype=torch.bool)
FOCAL = partial(multilabel_loss_with_logits, loss=Focal())
CROW, COL = GOOD
MUST_FIT = "broadcast to shape (3, 5) of input, got"
MUST_MATCH = "have shape (3, 5) to match input, got"
OF_SPARSE = "input must have shape (rows, labels) with sparse labels, got"
Row = tuple[str, Any, str]


def of_labels(part: str, crow: Any, col: Any, words: str) -> Row:
    return (f"target.{part}_indices", SparseLabels(crow, col), words)


# What is wrong, the value of that argument, and the words that follow "must" in the error.
WRONG: dict[type[Exception], list[Row]] = {
    TypeError: [
        ("input", X.long(), "be float16, bfloat16, float32 or float64, got int64"),
        ("input", Y, "be float16"),
        ("input", X + 1j, "be float16"),
        ("input", X.numpy(), "be a torch.Tensor, got ndarray"),
        ("input", [0.5], "be a torch.Tensor, got list"),
        ("target", np.zeros((3, 5)), "be a torch.Tensor or SparseLabels, got ndarray"),
        ("target", (CROW, COL), "be a torch.Tensor or SparseLabels, got tuple"),
        ("target", X + 1j, "be bool, integer or floating point, got complex64"),
        ("target", Y.to_sparse_csc(), "be torch.strided like input, got torch.sparse_csc"),
        (
            "target",
            torch.eye(3, 5).to_sparse_csr().requires_grad_(),
            "not require a gradient",
        ),
        ("weight", 2.0, "be a torch.Tensor or None, got float"),
        ("weight", np.ones(5), "be a torch.Tensor or None, got ndarray"),
        ("weight", torch.ones(5) + 1j, "have an integer or floating dtype, got complex64"),
        ("pos_weight", Y, "have an integer or floating dtype, got bool"),
        ("pos_weight", X.to(torch.float8_e4m3fn), "have a dtype of 16 bits or more, got float8_e4"),
        ("weight", torch.ones(3, 5).to_sparse(), "be torch.strided, got torch.sparse_coo"),
        ("pos_weight", True, "be a number or a torch.Tensor, got bool"),
        ("pos_weight", "7", "be a number or a torch.Tensor, got str"),
        ("pos_weight", [7.0], "be a number or a torch.Tensor, got list"),
        ("label_smoothing", "0", "be a number, got str"),
        ("label_smoothing", None, "be a number, got NoneType"),
        ("ignore_index", "-1", "be a number or None, got str"),
        ("reduction", None, "be a string or a callable, got NoneType"),
        of_labels("col", CROW, COL.float(), "be int32 or int64, got float32"),
        of_labels("crow", CROW > 0, COL, "be int32 or int64, got bool"),
        of_labels("col", CROW, COL.int(), "be int64 like crow_indices, got int32"),
        of_labels("crow", CROW.tolist(), COL.tolist(), "be a torch.Tensor, got list"),
        of_labels("col", CROW, None, "be a torch.Tensor, got NoneType"),
    ],
    ValueError: [
        ("target", Y[:, :4], f"{MUST_MATCH} (3, 4)"),
        ("target", Y[:1], f"{MUST_MATCH} (1, 5)"),
        ("target", Y[None], f"{MUST_MATCH} (1, 3, 5)"),
        ("target", torch.eye(3, 6).to_sparse(), f"{MUST_MATCH} (3, 6)"),
        ("target", torch.eye(2, 5).to_sparse(), f"{MUST_MATCH} (2, 5)"),
        ("target", Y.to("meta"), "be on cpu like input, got meta"),
        ("target", GOOD.to("meta"), "be on cpu like input, got meta"),
        ("weight", torch.ones(3), f"{MUST_FIT} (3,)"),
        ("weight", torch.ones(2, 3, 5), f"{MUST_FIT} (2, 3, 5)"),
        ("weight", X.to("meta"), "be on cpu like input, got meta"),
        ("pos_weight", torch.ones(4), f"{MUST_FIT} (4,)"),
        ("pos_weight", X.to("meta"), "be on cpu like input, got meta"),
        *(("pos_weight", p, f"be a finite number >= 0, got {p}") for p in (-1.0, nan, inf)),
        *(("label_smoothing", e, f"be in [0, 1), got {e}") for e in (1.0, -0.1, nan)),
        (
            "reduction",
            "average",
            "be one of none, mean, sum, batchmean or a callable, got 'average'",
        ),
        of_labels("crow", CROW[None], COL, "be one-dimensional, got shape (1, 4)"),
        of_labels("col", CROW, COL[0], "be one-dimensional, got shape ()"),
        of_labels("col", CROW, COL.to("meta"), "be on cpu like crow_indices, got meta"),
        of_labels("crow", CROW[:0], COL, "have rows + 1 elements, got none"),
    ],
}
# The beginning of the error, its type, and the arguments that do not fit each other.
TOGETHER: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("input must be float16", TypeError, {"input": X.long(), "target": GOOD}),
    (
        "input must be torch.strided with sparse labels, got torch.sparse_coo",
        TypeError,
        {"input": X.to_sparse(), "target": GOOD},
    ),
    (f"{OF_SPARSE} (3, 5, 1)", ValueError, {"input": X[..., None], "target": GOOD}),
    (f"{OF_SPARSE} (3,)", ValueError, {"input": X[:, 0], "target": GOOD}),
    ("target must have 4 rows", ValueError, {"input": torch.rand(4, 5), "target": GOOD}),
    ("tensor must hold 0 and 1 only, got 0.5", ValueError, {"target": X.to_sparse()}),
    (
        "reduction 'batchmean' needs an input with a first dimension, got 0-d",
        ValueError,
        {"input": X[0, 0], "target": Y[0, 0], "reduction": "batchmean"},
    ),
    *(
        (f"{name} must {words}", error, {name.split(".")[0]: value})
        for error, rows in WRONG.items()
        for name, value, words in rows
    ),
]


def refused(words: str, error: type[Exception], function: Any, **given: Any) -> None:
    with pytest.raises(error, match="^" + re.escape(words)):
        function(**given)


@pytest.mark.parametrize(("words", "error", "arguments"), TOGETHER, ids=[w for w, *_ in TOGETHER])
def test_wrong_arguments(words: str, error: type[Exception], arguments: dict[str, Any]) -> None:
    """All functions raise it, and leave the logits, their gradient and the graph as they were."""
    targets = (Y,) if arguments.keys() & {"input", "target"} else (Y, GOOD)
    for target, chosen in product(targets, backends("cpu")):
        hidden = X.clone().requires_grad_() * 1.0
        with backend(chosen):
            for function in (weighted_bce_with_logits, FOCAL, weighted_bce):
                refused(words, error, function, **{"input": X, "target": target, **arguments})
            for function in (weighted_bce_with_logits, FOCAL):
                given = {"input": hidden, "target": target, "inplace_backward": True, **arguments}
                refused(words, error, function, **given)
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


def test_modules_raise_the_same() -> None:
    for loss in (
        WeightedBCEWithLogitsLoss(torch.ones(4)),
        WeightedBCELoss(torch.ones(4)),
        MultilabelLoss(Focal(), torch.ones(4)),
    ):
        with pytest.raises(ValueError, match=r"weight must broadcast"):
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
    with backend("fused"), pytest.raises(RuntimeError, match=r"^backend 'fused' has no .*meta"):
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
    printed, errors = run_python(READ_THE_VARIABLE, status=1, WEIGHTED_BCE_BACKEND="reference")
    assert printed.split() == ["reference", "auto"]
    words = "the variable WEIGHTED_BCE_BACKEND must be one of auto, fused, reference, got 'fast'"
    assert words in errors
