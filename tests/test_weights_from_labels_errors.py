"""Labels and options from which no weights are counted."""

import math
from typing import Any

import pytest
import scipy.sparse
import torch

from weighted_bce import SparseLabels, pos_weight_from_labels, prior_logits
from weighted_bce import propensity_from_labels as propensity

from .label_kinds import NO_ROW

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # "in beta state"


Y = torch.eye(4, 5)
CSR = SparseLabels.from_dense(Y)
UNORDERED = SparseLabels(torch.tensor([0, 2]), torch.tensor([3, 1]))
FLOATS = SparseLabels(torch.zeros(1), torch.zeros(0))
COO, CSC = Y.to_sparse(), Y.to_sparse_csc()
FIVE = {"num_labels": 5}
NO_ROWS = "labels must have at least one row, got none"
KIND = "labels must be a tensor, an array, a scipy.sparse matrix or SparseLabels"
LISTS = "; SparseLabels.from_lists takes lists of labels"
X = torch.zeros(4, 5)
Wrong = tuple[Any, dict[str, Any], type[Exception], str]

WRONG_LABELS: list[Wrong] = [
    ([[1]], {}, TypeError, f"{KIND} in each batch, got list in batch 0{LISTS}"),
    ([[[1], [2]]], {}, TypeError, f"{KIND} in each batch, got list in a list in batch 0{LISTS}"),
    ([CSR, (X, [1])], FIVE, TypeError, f"{KIND} .*, got list in a tuple in batch 1{LISTS}"),
    ([(X, 1)], FIVE, TypeError, f"{KIND} in each batch, got int in a tuple in batch 0"),
    ("ab", FIVE, TypeError, f"{KIND} in each batch, got str in batch 0"),
    ({"labels": Y}, {}, TypeError, f"{KIND} in each batch, got str in batch 0"),
    (
        [{"x": X, "tags": Y}],
        {},
        ValueError,
        "labels must be in the element 'labels' of a batch, got the elements x, tags in batch 0; "
        "pass the labels of each batch alone$",
    ),
    ([()], {}, ValueError, ".* of a batch, got none in batch 0; pass"),
    ([Y, CSR], {}, TypeError, "labels must be of one kind, got a strided tensor and then Sp.* 1$"),
    ([Y, Y.numpy()], {}, TypeError, "labels must be of one kind, .* then an array in batch 1"),
    ([Y, (X, COO)], {}, TypeError, "labels must be of one kind, .* a sparse_coo tensor in batch 1"),
    ([Y, Y[:, :4]], {}, ValueError, r"labels .* \(rows, 5\) as before, got \(4, 4\) in batch 1"),
    ([Y, Y[0]], {}, ValueError, r"labels must have shape \(rows, labels\), got \(5,\) in batch 1"),
    (Y.numpy()[0], {}, ValueError, r"labels must have shape \(rows, labels\), got \(5,\)$"),
    (Y.numpy() * 2, {}, ValueError, r"labels must be in \[0, 1\], got values from 0 to 2"),
    (Y.numpy() * 1j, {}, TypeError, "labels must be bool, .*, got complex64"),
    (Y.numpy().astype(object), {}, TypeError, "labels must be bool, .*, got object"),
    (Y.numpy(), {"num_labels": 4}, ValueError, "num_labels must be 5 to match labels, got 4"),
    (scipy.sparse.eye_array(3) * 2, {}, ValueError, "labels must hold 0 and 1 only, got 2 in row"),
    (scipy.sparse.eye_array(3), FIVE, ValueError, "num_labels must be 3 to match labels, got 5"),
    (torch.tensor([[1, -100]]), {}, ValueError, r"labels must be in \[0, 1\], got values from"),
    (Y * 2, {}, ValueError, r"labels must be in \[0, 1\], got values from 0 to 2"),
    (Y + 1j, {}, TypeError, "labels must be bool, integer or floating point"),
    (Y[0], {}, ValueError, r"labels must have shape \(rows, labels\)"),
    (Y[:0], {}, ValueError, NO_ROWS),
    (Y[:0].numpy(), {}, ValueError, NO_ROWS),
    (Y, {"num_labels": 4}, ValueError, "num_labels must be 5 to match labels, got 4"),
    (3, {}, TypeError, f"{KIND}, or an iterable of batches of them, got int"),
    (CSR, {}, ValueError, "num_labels must be given for SparseLabels, got None"),
    ([CSR], {}, ValueError, "num_labels must be given for SparseLabels, got None"),
    (CSR, {"num_labels": 5.0}, TypeError, "num_labels must be an integer, got float"),
    (CSR, {"num_labels": 0}, ValueError, "num_labels must be at least 1, got 0"),
    (CSR, {"num_labels": 3}, ValueError, "labels.col_indices must be below 3, .*, got 3"),
    ([CSR, Y], FIVE, TypeError, "labels must be of one kind, got SparseLabels and then a strided"),
    ([], FIVE, ValueError, NO_ROWS),
    (NO_ROW, FIVE, ValueError, NO_ROWS),
    (Y[:0].to_sparse(), {}, ValueError, NO_ROWS),
    (UNORDERED, FIVE, ValueError, "labels.col_indices must ascend"),
    (FLOATS, FIVE, TypeError, "labels.crow_indices must be int32 or int64"),
    (COO, {"num_labels": 4}, ValueError, "num_labels must be 5 to match labels, got 4"),
    (COO * 2, {}, ValueError, "labels must hold 0 and 1 only, got 2 in row 0"),
    (CSC, {}, TypeError, "labels must be torch.sparse_csr or"),
]
WRONG_OPTIONS: list[Wrong] = [
    (pos_weight_from_labels, {"max_weight": 0}, ValueError, "above 0, got 0"),
    (pos_weight_from_labels, {"max_weight": math.nan}, ValueError, "above 0, got nan"),
    (pos_weight_from_labels, {"smoothing": -1}, ValueError, "a finite number >= 0, got -1"),
    (pos_weight_from_labels, {"smoothing": math.nan}, ValueError, "a finite number >= 0, got nan"),
    (pos_weight_from_labels, {"smoothing": math.inf}, ValueError, "a finite number >= 0, got inf"),
    (pos_weight_from_labels, {"smoothing": "1"}, TypeError, "a number, got str"),
    (pos_weight_from_labels, {"smoothing": True}, TypeError, "a number, got bool"),
    (propensity, {"A": -1}, ValueError, "a finite number >= 0, got -1"),
    (propensity, {"B": None}, TypeError, "a number, got NoneType"),
    (propensity, {"B": 0}, ValueError, "above 0, got 0"),
    (propensity, {"B": -0.5}, ValueError, "a finite number >= 0, got -0.5"),
]


@pytest.mark.parametrize(
    ("function", "labels", "options", "error", "words"),
    [
        *(
            (f, *row)
            for row in WRONG_LABELS
            for f in (pos_weight_from_labels, propensity, prior_logits)
        ),
        *(
            (f, Y, given, error, f"{next(iter(given))} must be {words}$")
            for f, given, error, words in WRONG_OPTIONS
        ),
    ],
)
def test_what_gives_no_weights(
    function: Any, labels: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{words}"):
        function(labels, **options)
