"""Wrong arguments of the loss of a linear layer: one sentence, and nothing is changed."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss, SparseLabels, backend
from weighted_bce import linear_weighted_bce_with_logits as linear_loss
from weighted_bce._extension import extension

X = torch.randn(4, 3)
W = torch.randn(6, 3)
B = torch.randn(6)
Y = torch.zeros(4, 6, dtype=torch.bool)
REDUCTIONS = "one of none, mean, sum, batchmean"
SHAPE = "to match input and linear_weight"
BROADCAST = "broadcast to shape (4, 6) of input and linear_weight"


def of(*rows: list[int]) -> SparseLabels:
    return SparseLabels.from_lists(rows)


# The argument, its value, the error, and what the argument must be.
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("input", [1.0], TypeError, "be a torch.Tensor, got list"),
    ("input", X.int(), TypeError, "be float16, bfloat16, float32 or float64, got int32"),
    ("input", X[0, 0], ValueError, "have shape (..., features), got ()"),
    ("input", X.to_sparse(), TypeError, "be torch.strided, got torch.sparse_coo"),
    ("linear_weight", None, TypeError, "be a torch.Tensor, got NoneType"),
    ("linear_weight", W.double(), TypeError, "be float32 like input, got float64"),
    ("linear_weight", W.bfloat16(), TypeError, "be float32 like input, got bfloat16"),
    ("linear_weight", W.T, ValueError, "have shape (labels, 3) to match input, got (3, 6)"),
    ("linear_weight", W.to_sparse(), TypeError, "be torch.strided, got torch.sparse_coo"),
    ("linear_weight", W.to("meta"), ValueError, "be on cpu like input, got meta"),
    ("linear_bias", 1.0, TypeError, "be a torch.Tensor, got float"),
    ("linear_bias", B.half(), TypeError, "be float32 like input, got float16"),
    ("linear_bias", B[:5], ValueError, "have shape (6,) to match linear_weight, got (5,)"),
    ("linear_bias", B[None], ValueError, "have shape (6,) to match linear_weight"),
    ("target", Y[:3], ValueError, f"have shape (4, 6) {SHAPE}, got (3, 6)"),
    ("target", [[1], [2]], TypeError, "be a torch.Tensor or SparseLabels, got list"),
    ("target", of([1], [1], [1]), ValueError, f"have 4 rows {SHAPE}, got 3"),
    ("col_indices", of([1], [6], [], []), ValueError, "be below 6"),
    ("target", torch.zeros(4, 5).to_sparse_csr(), ValueError, "have shape (4, 6)"),
    ("weight", 2.0, TypeError, "be a torch.Tensor or None, got float"),
    ("weight", torch.ones(5), ValueError, f"{BROADCAST}, got (5,)"),
    ("pos_weight", -1.0, ValueError, "be a finite number >= 0, got -1.0"),
    ("pos_weight", torch.ones(4), ValueError, f"{BROADCAST}, got (4,)"),
    ("reduction", "avg", ValueError, f"be {REDUCTIONS}, got 'avg'"),
    ("reduction", torch.sum, TypeError, "be a string, got builtin_function"),
    ("ignore_index", "0", TypeError, "be a number or None, got str"),
    ("label_smoothing", 1.0, ValueError, "be in [0, 1), got 1.0"),
    ("chunk_labels", 0, ValueError, "be at least 1, got 0"),
    ("chunk_labels", 2.0, TypeError, "be an integer, got float"),
    ("chunk_labels", np.int64(0), ValueError, "be at least 1, got 0"),
    ("chunk_labels", np.float32(2), TypeError, "be an integer, got float32"),
    ("chunk_labels", np.bool_(True), TypeError, "be an integer, got bool"),
    ("chunk_labels", True, TypeError, "be an integer, got bool"),
    ("fused_step", 1, TypeError, "be a FusedSGD, a FusedAdam or a function, got int"),
    ("fused_step", FusedSGD, TypeError, "be a FusedSGD, a FusedAdam or a function, got the class"),
]


@pytest.mark.parametrize(("name", "value", "error", "words"), WRONG)
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_wrong_arguments(
    name: str, value: Any, error: type[Exception], words: str, chosen: str
) -> None:
    argument = "target" if name == "col_indices" else name
    arguments = {"input": X, "linear_weight": W, "target": Y, "linear_bias": B, argument: value}
    before = [t.clone() for t in (X, W, B, Y)]
    with backend(chosen), pytest.raises(error, match=re.escape(f"{name} must {words}")) as caught:
        linear_loss(**arguments)
    assert "\n" not in str(caught.value)
    assert all(map(torch.equal, before, (X, W, B, Y)))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("target", Y, "target must have shape (2, 2, 6) to match input and linear_weight"),
        ("target", of([1], [2]), "target must have 4 rows to match input and linear_weight, got 2"),
        ("weight", torch.ones(4, 1), "weight must broadcast to shape (2, 2, 6) of input and lin"),
        ("pos_weight", torch.ones(2, 1, 1, 6), "pos_weight must broadcast to shape (2, 2, 6)"),
    ],
)
def test_of_an_input_of_more_dimensions(name: str, value: Any, words: str) -> None:
    arguments = {"linear_weight": W, "target": Y.view(2, 2, 6), name: value}
    with pytest.raises(ValueError, match=re.escape(words)):
        linear_loss(X.view(2, 2, 3), **arguments)


def test_one_row_has_no_batch() -> None:
    words = "reduction 'batchmean' needs an input of shape (rows, ..., features), got 1-d"
    with pytest.raises(ValueError, match=re.escape(words)):
        linear_loss(X[0], W, Y[0], reduction="batchmean")


def test_wrong_labels_in_the_ops() -> None:
    """Those who call them directly are guarded too."""
    for label, words in ((6, "must be below 6"), (-1, "must be >= 0")):
        col, crow = torch.tensor([1, label]), torch.tensor([0, 1, 2, 2, 2])
        options = (col, crow, None, None, 1.0, 0.0, None, None, 1, None, None)
        with pytest.raises(ValueError, match=words):
            torch.ops.weighted_bce.linear_loss(X, W, None, *options)


def test_dtypes_may_mix_under_autocast_but_for_float64() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_loss(X, W.bfloat16(), Y).isfinite()
        for x, weight, words in (
            (X, W.double(), "float32 like input, got float64"),
            (X.double(), W, "float64 like input, got float32"),
        ):
            with pytest.raises(TypeError, match=f"linear_weight must be {words}"):
                linear_loss(x, weight, Y)


@pytest.mark.skipif(extension is None, reason="no extension")
def test_a_backend_without_kernels() -> None:
    with backend("fused"), pytest.raises(RuntimeError, match="has no kernel for this input"):
        linear_loss(X.to("meta"), W.to("meta"), Y.to("meta"))


@pytest.mark.parametrize(
    ("x", "k", "error", "words"),
    [
        (X, 0, ValueError, "k must be at least 1, got 0"),
        (X, 7, ValueError, "k must be at most 6, the number of labels, got 7"),
        (X, 1.0, TypeError, "k must be an integer, got float"),
        (X, True, TypeError, "k must be an integer, got bool"),
        (X[0, 0], 1, ValueError, "input must have shape (..., features), got ()"),
    ],
)
def test_topk(x: torch.Tensor, k: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        LinearWeightedBCEWithLogitsLoss(3, 6).topk(x, k)
