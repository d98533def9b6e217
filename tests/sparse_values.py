"""Sparse labels, right and wrong ones, and what tells them apart."""

from typing import Any

import torch
from torch import Tensor

from weighted_bce import SparseLabels
from weighted_bce._csr_checks import check_form, check_indices

ROWS = [[3, 1], [], [39, 0, 2, 3], [], [0]]


def expected(rows: list[list[int]]) -> tuple[list[int], list[int]]:
    """The indices of some rows, by Python alone."""
    crow, col = [0], []
    for row in rows:
        col += sorted(set(row))
        crow.append(len(col))
    return crow, col


def assert_labels(
    labels: SparseLabels, rows: list[list[int]], dtype: torch.dtype = torch.int64
) -> None:
    check_form(labels)
    check_indices(labels)
    assert type(labels) is SparseLabels
    assert (labels.crow_indices.dtype, labels.col_indices.dtype) == (dtype, dtype)
    assert (labels.crow_indices.tolist(), labels.col_indices.tolist()) == expected(rows)
    assert labels.num_rows == len(rows)


def dense_of(rows: list[list[int]], num_labels: int = 40) -> Tensor:
    dense = torch.zeros(len(rows), num_labels, dtype=torch.bool)
    for i, row in enumerate(rows):
        dense[i, row] = True
    return dense


# Of 3 rows and 5 labels.
CROW, COL = [0, 2, 2, 5], [1, 3, 0, 2, 4]
BELOW = "col_indices must be below 5, the number of labels"
ASCEND = "col_indices must ascend within a row, without duplicates"
FALL, END = "crow_indices must not fall", "crow_indices must end with 5, the number of indices"
OP_ASCEND = "col_indices must ascend within each row, without duplicates"
OP_END = "number of col_indices, 5"

# crow_indices, col_indices, what a function of the package says, what an op says.
WRONG_VALUES: dict[str, tuple[list[int], list[int], str, str]] = {
    "beyond": (CROW, [1, 3, 0, 2, 5], f"{BELOW}, got 5 in row 2", BELOW),
    "far beyond": (CROW, [1, 2**30, 0, 2, 4], f"{BELOW}, got {2**30} in row 0", BELOW),
    "negative": (
        CROW,
        [-1, 3, 0, 2, 4],
        "col_indices must be >= 0, got -1 in row 0",
        "col_indices must not be negative",
    ),
    "unsorted": (CROW, [1, 3, 2, 0, 4], f"{ASCEND}, got 0 in row 2", OP_ASCEND),
    "duplicated": (CROW, [1, 3, 0, 2, 2], f"{ASCEND}, got 2 in row 2", OP_ASCEND),
    "duplicated at first": (CROW, [1, 1, 0, 2, 4], f"{ASCEND}, got 1 in row 0", OP_ASCEND),
    "falling": ([0, 4, 3, 5], COL, f"{FALL}, got 3 after 4 in row 1", FALL),
    "far falling": ([0, 2**30, 2, 5], COL, f"{FALL}, got 2 after {2**30} in row 1", FALL),
    "negative crow": ([0, -4, 2, 5], COL, f"{FALL}, got -4 after 0 in row 0", FALL),
    "late": ([1, 2, 2, 5], COL, "crow_indices must begin with 0, got 1", "begin with 0, got 1"),
    "short": ([0, 2, 2, 4], COL, f"{END}, got 4", f"{OP_END}, got 4"),
    "long": ([0, 2, 2, 6], COL, f"{END}, got 6", f"{OP_END}, got 6"),
}


def sparse_labels(crow: Any, col: Any, dtype: torch.dtype = torch.int64) -> SparseLabels:
    return SparseLabels(torch.tensor(crow, dtype=dtype), torch.tensor(col, dtype=dtype))


GOOD = sparse_labels(CROW, COL)
