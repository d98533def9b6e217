"""Sparse labels of 3 rows and 5 labels whose values are wrong, and what says so."""

from typing import Any

import torch

from weighted_bce import SparseLabels

CROW, COL = [0, 2, 2, 5], [1, 3, 0, 2, 4]
SAYS_BEYOND = "col_indices must be below 5"
MUST_ASCEND = "col_indices must ascend within a row, without duplicates"

# crow_indices, col_indices, what a function of the package says, what an op says.
WRONG_VALUES: dict[str, tuple[list[int], list[int], str, str]] = {
    "beyond": (
        CROW,
        [1, 3, 0, 2, 5],
        f"target.{SAYS_BEYOND}, the number of labels, got 5 in row 2",
        f"{SAYS_BEYOND}, the number of labels",
    ),
    "far beyond": (CROW, [1, 2**30, 0, 2, 4], SAYS_BEYOND, SAYS_BEYOND),
    "negative": (
        CROW,
        [-1, 3, 0, 2, 4],
        "target.col_indices must be >= 0, got -1 in row 0",
        "col_indices must not be negative",
    ),
    "unsorted": (
        CROW,
        [1, 3, 2, 0, 4],
        f"target.{MUST_ASCEND}, got 0 in row 2",
        "col_indices must ascend within each row, without duplicates",
    ),
    "duplicated": (CROW, [1, 3, 0, 2, 2], MUST_ASCEND, "must ascend within each row"),
    "falling": ([0, 4, 3, 5], COL, "target.crow_indices", "crow_indices must not fall"),
    "far falling": ([0, 2**30, 2, 5], COL, "target.crow_indices", "crow_indices must not fall"),
    "negative crow": ([0, -4, 2, 5], COL, "target.crow_indices", "crow_indices must not fall"),
    "late": ([1, 2, 2, 5], COL, "target.crow_indices must begin with 0", "begin with 0, got 1"),
    "short": ([0, 2, 2, 4], COL, "target.crow_indices must end with 5", "number of col_indices, 5"),
    "long": ([0, 2, 2, 6], COL, "target.crow_indices must end with 5", "col_indices, 5, got 6"),
}


def sparse_labels(crow: Any, col: Any, dtype: torch.dtype = torch.int64) -> SparseLabels:
    return SparseLabels(torch.tensor(crow, dtype=dtype), torch.tensor(col, dtype=dtype))


GOOD = sparse_labels(CROW, COL)
