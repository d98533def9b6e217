"""Wrong sparse labels are one clear sentence at the call, and leave everything as it was."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import SparseLabels, backend, weighted_bce, weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce._kernels import why_not_on_cuda

from .truth import backends

CROW, COL = [0, 2, 2, 5], [1, 3, 0, 2, 4]  # of 3 rows and 5 labels

# What is wrong; crow_indices; col_indices; what eager Python says; what the op says.
WRONG_VALUES: dict[str, tuple[list[int], list[int], str, str]] = {
    "beyond": (
        CROW,
        [1, 3, 0, 2, 5],
        "target.col_indices must be below 5, the number of labels, got 5 in row 2",
        "col_indices must be below 5, the number of labels",
    ),
    "far beyond": (CROW, [1, 2**30, 0, 2, 4], "must be below 5", "col_indices must be below 5"),
    "negative": (
        CROW,
        [-1, 3, 0, 2, 4],
        "target.col_indices must be >= 0, got -1 in row 0",
        "col_indices must not be negative",
    ),
    "unsorted": (
        CROW,
        [1, 3, 2, 0, 4],
        "target.col_indices must ascend within a row, without duplicates, got 0 in row 2",
        "col_indices must ascend within each row, without duplicates",
    ),
    "duplicated": (CROW, [1, 3, 0, 2, 2], "must ascend within a row", "must ascend within each"),
    "falling": ([0, 4, 3, 5], COL, "target.crow_indices", "crow_indices must not fall"),
    "far falling": ([0, 2**30, 2, 5], COL, "target.crow_indices", "crow_indices must not fall"),
    "negative crow": ([0, -4, 2, 5], COL, "target.crow_indices", "crow_indices must not fall"),
    "late": (
        [1, 2, 2, 5],
        COL,
        "target.crow_indices must begin with 0",
        "must begin with 0, got 1",
    ),
    "short": ([0, 2, 2, 4], COL, "target.crow_indices must end with 5", "number of col_indices, 5"),
    "long": ([0, 2, 2, 6], COL, "target.crow_indices must end with 5", "col_indices, 5, got 6"),
}


def sparse(crow: Any, col: Any, dtype: torch.dtype = torch.int64) -> SparseLabels:
    return SparseLabels(torch.tensor(crow, dtype=dtype), torch.tensor(col, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_wrong_values(wrong: str, dtype: torch.dtype) -> None:
    crow, col, words, of_op = WRONG_VALUES[wrong]
    labels = sparse(crow, col, dtype)
    x = torch.randn(3, 5, requires_grad=True)
    for chosen, given in product(backends("cpu"), ({}, {"inplace_backward": True})):
        hidden = x * 1
        before, version = hidden.detach().clone(), hidden._version
        with backend(chosen), pytest.raises(ValueError, match=words):
            weighted_bce_with_logits(hidden, labels, **given)
        assert (hidden._version, torch.equal(hidden, before)) == (version, True)
        with backend(chosen), torch.no_grad(), pytest.raises(ValueError, match=words):
            weighted_bce_with_logits(hidden, labels, reduction="none")
    with pytest.raises(ValueError, match=words):
        weighted_bce(x.sigmoid(), labels)
    if extension is None:
        return
    ops, rest = torch.ops.weighted_bce, (None, None, 1.0, 0.0, None, None, 2)
    one, logits = torch.tensor(1.0), x.detach().clone()
    before = logits.clone()
    calls = (
        lambda *a: ops.loss(logits, *a),
        lambda *a: ops.loss_and_grad(one, logits, *a),
        lambda *a: ops.loss_and_grad_(one, logits, *a),
        lambda *a: ops.grad(one, logits, *a),
        lambda *a: ops.grad_(one, logits, *a),
        lambda *a: ops.update_grad_(one, one * 2, one.clone(), logits, before, *a),
        lambda *a: ops.unreduced(logits, *a[:-1]),
    )
    for call in calls:
        with pytest.raises(RuntimeError) as found:
            call(labels.col_indices, labels.crow_indices, *rest)
        assert of_op in str(found.value)
        assert torch.equal(logits, before)


GOOD = sparse(CROW, COL)
WRONG_FORMS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "floats": (
        {"target": GOOD._replace(col_indices=GOOD.col_indices.float())},
        TypeError,
        "target.col_indices must be int32 or int64, got float32",
    ),
    "two dtypes": (
        {"target": GOOD._replace(col_indices=GOOD.col_indices.int())},
        TypeError,
        "target.col_indices must be int64 like crow_indices, got int32",
    ),
    "lists": (
        {"target": SparseLabels(CROW, COL)},  # type: ignore[arg-type]
        TypeError,
        "target.crow_indices must be a torch.Tensor, got list",
    ),
    "2-d indices": (
        {"target": GOOD._replace(col_indices=GOOD.col_indices[None])},
        ValueError,
        "target.col_indices must be one-dimensional",
    ),
    "rows": (
        {"input": torch.randn(4, 5)},
        ValueError,
        "target must have 4 rows to match input, got 3",
    ),
    "3-d logits": (
        {"input": torch.randn(3, 5, 1)},
        ValueError,
        r"input must have shape (rows, labels) with sparse labels, got (3, 5, 1)",
    ),
    "1-d logits": (
        {"input": torch.randn(3)},
        ValueError,
        r"input must have shape (rows, labels) with sparse labels, got (3,)",
    ),
    "device": (
        {"target": GOOD.to("meta")},
        ValueError,
        "target must be on cpu like input, got meta",
    ),
    "integers": ({"input": torch.ones(3, 5).long()}, TypeError, "input must be float16"),
    "sparse logits": (
        {"input": torch.eye(3, 5).to_sparse()},
        TypeError,
        "input must be torch.strided with sparse labels, got torch.sparse_coo",
    ),
    "columns of a sparse tensor": (
        {"target": torch.eye(3, 6).to_sparse()},
        ValueError,
        "target must have shape (3, 5) to match input, got (3, 6)",
    ),
    "rows of a sparse tensor": (
        {"target": torch.eye(2, 5).to_sparse()},
        ValueError,
        "target must have shape (3, 5) to match input, got (2, 5)",
    ),
    "a plain tuple": (
        {"target": (GOOD.crow_indices, GOOD.col_indices)},
        TypeError,
        "target must be a torch.Tensor or SparseLabels, got tuple",
    ),
    "weight": (
        {"weight": torch.ones(4)},
        ValueError,
        r"weight must broadcast to shape (3, 5) of input, got (4,)",
    ),
}


@pytest.mark.parametrize("function", [weighted_bce_with_logits, weighted_bce])
@pytest.mark.parametrize("wrong", WRONG_FORMS)
def test_wrong_forms(wrong: str, function: Any) -> None:
    arguments, error, words = WRONG_FORMS[wrong]
    with pytest.raises(error) as found:
        function(**{"input": torch.rand(3, 5), "target": GOOD, **arguments})
    assert words in str(found.value)


@pytest.mark.skipif(extension is None, reason="no extension")
def test_the_ops_check_forms(kernel_device: str) -> None:
    x = torch.randn(3, 5, device=kernel_device)
    crow, col = GOOD.to(kernel_device)

    def call(x: Tensor = x, col: Tensor = col, crow: Any = crow, first: int | None = None) -> None:
        torch.ops.weighted_bce.loss(x, col, crow, None, None, 1.0, 0.0, None, first, 2)

    call()
    call(first=0)
    for words, arguments in (
        ("col_indices must be int32 or int64", {"col": col.float()}),
        ("crow_indices must have the dtype of col_indices", {"crow": crow.int()}),
        ("col_indices must be 1-d and contiguous", {"col": col[None]}),
        ("col_indices must be 1-d and contiguous", {"col": col.repeat_interleave(2)[::2]}),
        ("crow_indices must have 4 elements, one more than input has rows", {"crow": crow[1:]}),
        ("input must be 2-d with sparse labels, got 3", {"x": x[None]}),
        ("first_label must be in", {"first": -1}),
        ("first_label must be in", {"first": 2**62}),
        ("target must have the shape of input", {"crow": None}),
        ("first_label needs crow_indices", {"crow": None, "col": x > 0, "first": 0}),
    ):
        with pytest.raises(RuntimeError, match=words):
            call(**arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(extension is None, reason="no extension")
def test_indices_of_any_value_are_harmless_on_cuda() -> None:
    """Nobody waits there to look at them; what they say is not read or written."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reason = why_not_on_cuda(torch.cuda.current_device())
    if reason is not None:  # the reference would end this process
        pytest.skip(reason)
    for crow, col, *_ in WRONG_VALUES.values():
        x = torch.randn(3, 5, device="cuda", requires_grad=True)
        with backend("fused"):
            weighted_bce_with_logits(x, sparse(crow, col).to("cuda")).backward()
        torch.cuda.synchronize()
        assert x.grad is not None


@pytest.mark.parametrize("wrong", ["beyond", "negative", "late", "short"])
@pytest.mark.parametrize("chosen", backends("cpu"))
def test_wrong_values_under_vmap(wrong: str, chosen: str) -> None:
    x, labels = torch.randn(2, 3, 5), sparse(*WRONG_VALUES[wrong][:2])
    with backend(chosen), pytest.raises((ValueError, RuntimeError), match=r"must (be|end)|number"):
        torch.vmap(lambda x: weighted_bce_with_logits(x, labels))(x)
    for order in ((GOOD, labels), (labels, GOOD)):
        each = SparseLabels(*(torch.stack(pair) for pair in zip(*order, strict=True)))
        for function in (weighted_bce_with_logits, torch.func.grad(weighted_bce_with_logits)):
            with backend(chosen), pytest.raises(RuntimeError, match=r"_indices must|out of bounds"):
                torch.vmap(function)(x, each)


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize("crow", [[-(2**40), 0, 1, 2], [0, 0, 1, 2**40], [0, 2, 1, 2]])
def test_rows_of_a_window_lie_in_the_list(crow: list[int]) -> None:
    x = torch.randn(3, 5)
    labels = sparse(crow, [1, 3])
    for first in (None, 0):
        rest = (None, None, 1.0, 0.0, None, first, 2)
        with pytest.raises(RuntimeError, match="crow_indices must"):
            torch.ops.weighted_bce.loss(x, labels.col_indices, labels.crow_indices, *rest)


def test_a_wrong_label_is_one_error(device: str) -> None:
    """Not that of the kernels, and then another."""
    x, labels = torch.randn(3, 5), sparse(*WRONG_VALUES["beyond"][:2])
    with pytest.raises(ValueError, match="below 5") as found:
        weighted_bce_with_logits(x, labels)
    assert found.value.__suppress_context__


def test_row_starts_of_any_stride() -> None:
    x = torch.randn(3, 5)
    spread = GOOD._replace(crow_indices=GOOD.crow_indices.repeat_interleave(2)[::2])
    backwards = GOOD._replace(col_indices=GOOD.col_indices.flip(0).contiguous().flip(0))
    for labels in (spread, backwards):
        assert torch.equal(weighted_bce_with_logits(x, labels), weighted_bce_with_logits(x, GOOD))
