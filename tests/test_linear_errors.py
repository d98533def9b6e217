"""Wrong arguments of the loss of a linear layer: one sentence, and nothing is changed."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from weighted_bce import (
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    backend,
    linear_weighted_bce_with_logits,
)
from weighted_bce._extension import extension

X = torch.randn(4, 3)
W = torch.randn(6, 3)
B = torch.randn(6)
Y = torch.zeros(4, 6, dtype=torch.bool)
LAYER = "input and linear_weight"

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
    (
        {"input": X.int()},
        TypeError,
        "input must be float16, bfloat16, float32 or float64, got int32",
    ),
    ({"input": X[0]}, ValueError, "input must have shape (rows, features), got (3,)"),
    ({"input": X.to_sparse()}, TypeError, "input must be torch.strided, got torch.sparse_coo"),
    ({"linear_weight": None}, TypeError, "linear_weight must be a torch.Tensor, got NoneType"),
    (
        {"linear_weight": W.double()},
        TypeError,
        "linear_weight must be float32 like input, got float64",
    ),
    (
        {"linear_weight": W.T},
        ValueError,
        "linear_weight must have shape (labels, 3) to match input, got (3, 6)",
    ),
    (
        {"linear_weight": W.to_sparse()},
        TypeError,
        "linear_weight must be torch.strided, got torch.sparse_coo",
    ),
    (
        {"linear_weight": W.to("meta")},
        ValueError,
        "linear_weight must be on cpu like input, got meta",
    ),
    ({"linear_bias": 1.0}, TypeError, "linear_bias must be a torch.Tensor, got float"),
    ({"linear_bias": B.half()}, TypeError, "linear_bias must be float32 like input, got float16"),
    (
        {"linear_bias": B[:5]},
        ValueError,
        "linear_bias must have shape (6,) to match linear_weight, got (5,)",
    ),
    (
        {"linear_bias": B[None]},
        ValueError,
        "linear_bias must have shape (6,) to match linear_weight",
    ),
    ({"target": Y[:3]}, ValueError, f"target must have shape (4, 6) to match {LAYER}, got (3, 6)"),
    ({"target": [[1], [2]]}, TypeError, "target must be a torch.Tensor or SparseLabels, got list"),
    (
        {"target": SparseLabels.from_lists([[1]] * 3)},
        ValueError,
        f"target must have 4 rows to match {LAYER}, got 3",
    ),
    (
        {"target": SparseLabels.from_lists([[1], [6], [], []])},
        ValueError,
        "col_indices must be below 6",
    ),
    ({"target": torch.zeros(4, 5).to_sparse_csr()}, ValueError, "target must have shape (4, 6)"),
    ({"weight": 2.0}, TypeError, "weight must be a torch.Tensor, got float"),
    (
        {"weight": torch.ones(5)},
        ValueError,
        f"weight must broadcast to shape (4, 6) of {LAYER}, got (5,)",
    ),
    ({"pos_weight": -1.0}, ValueError, "pos_weight must be a finite number >= 0, got -1.0"),
    (
        {"pos_weight": torch.ones(4)},
        ValueError,
        f"pos_weight must broadcast to shape (4, 6) of {LAYER}, got (4,)",
    ),
    (
        {"reduction": "none"},
        ValueError,
        "reduction must be one of mean, sum, batchmean, got 'none'",
    ),
    ({"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, batchmean, got 'avg'"),
    ({"reduction": torch.sum}, TypeError, "reduction must be a string, got builtin_function"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be in [0, 1), got 1.0"),
    ({"chunk_labels": 0}, ValueError, "chunk_labels must be at least 1, got 0"),
    ({"chunk_labels": 2.0}, TypeError, "chunk_labels must be an integer, got float"),
    ({"chunk_labels": True}, TypeError, "chunk_labels must be an integer, got bool"),
    ({"fused_step": 1}, TypeError, "fused_step must be callable, got int"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_wrong_arguments(
    wrong: dict[str, Any], error: type[Exception], message: str, chosen: str
) -> None:
    arguments = {"input": X, "linear_weight": W, "target": Y, "linear_bias": B} | wrong
    before = [t.clone() for t in (X, W, B, Y)]
    with backend(chosen), pytest.raises(error, match=re.escape(message)) as caught:
        linear_weighted_bce_with_logits(**arguments)
    assert "\n" not in str(caught.value)
    assert all(map(torch.equal, before, (X, W, B, Y)))


def test_wrong_labels_in_the_ops() -> None:
    """Those who call them directly are guarded too."""
    for label, message in ((6, "must be below 6"), (-1, "must be >= 0")):
        col, crow = torch.tensor([1, label]), torch.tensor([0, 1, 2, 2, 2])
        options = (col, crow, None, None, 1.0, 0.0, None, None, 1, None, None)
        with pytest.raises(ValueError, match=message):
            torch.ops.weighted_bce.linear_loss(X, W, None, *options)


def test_dtypes_may_mix_under_autocast_alone() -> None:
    with pytest.raises(TypeError, match="linear_weight must be float32 like input, got bfloat16"):
        linear_weighted_bce_with_logits(X, W.bfloat16(), Y)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_weighted_bce_with_logits(X, W.bfloat16(), Y).isfinite()
        with pytest.raises(
            TypeError, match="linear_weight must be float32 like input, got float64"
        ):
            linear_weighted_bce_with_logits(X, W.double(), Y)
        with pytest.raises(
            TypeError, match="linear_weight must be float64 like input, got float32"
        ):
            linear_weighted_bce_with_logits(X.double(), W, Y)


@pytest.mark.skipif(extension is None, reason="no extension")
def test_a_backend_without_kernels() -> None:
    layer = X.to("meta"), W.to("meta")
    with backend("fused"), pytest.raises(RuntimeError, match="has no kernel for this input"):
        linear_weighted_bce_with_logits(*layer, Y.to("meta"))


def test_topk() -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(3, 6)
    for k, error, message in (
        (0, ValueError, "k must be at least 1, got 0"),
        (7, ValueError, "k must be at most 6, the number of labels, got 7"),
        (1.0, TypeError, "k must be an integer, got float"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            criterion.topk(X, k)
    with pytest.raises(ValueError, match=re.escape("input must have shape (rows, features)")):
        criterion.topk(X[0], 1)


def test_module_arguments() -> None:
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor or None, got float"):
        LinearWeightedBCEWithLogitsLoss(3, 6, weight=2.0)  # type: ignore[arg-type]
    assert isinstance(LinearWeightedBCEWithLogitsLoss(3, 6).linear, nn.Linear)
