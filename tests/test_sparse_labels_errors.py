"""What SparseLabels do not take, and the sentences that say so."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

import scipy.sparse as sp

from weighted_bce import SparseLabels, pos_weight_from_labels

from .sparse_values import ROWS, assert_labels, dense_of
from .test_sparse_labels import uncoalesced

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # "in beta state"

EYE = torch.eye(2, 3)


# What is wrong, and the words that follow "must" in the error.
WRONG: dict[tuple[str, type[Exception]], list[tuple[Any, str]]] = {
    ("lists", TypeError): [
        (None, r"be an iterable of rows, got NoneType"),
        ([1, 2], r"hold one iterable of labels a row, got int in row 0"),
        ([[1], [2, 1.0]], r"hold integers, got float in row 1"),
        ([[1], "2"], r"hold integers, got str in row 1"),
        ([[1], [True, 2]], r"hold integers, got bool in row 1"),
        ([[1], [torch.tensor(True)]], r"hold integers, got Tensor in row 1"),
        ([[1], [np.True_]], r"hold integers, got bool.* in row 1"),
        ([[1], [np.float32(1)]], r"hold integers, got float32 in row 1"),
        ([[torch.ones(())]], r"hold integers, got Tensor in row 0"),
        ([[[1], [2]]], r"hold integers, got list in row 0"),
        (list(EYE), r"hold integers, got float32 in row 0"),
        (list(EYE.bool()), r"hold integers, got bool in row 0"),
        (list(EYE.numpy()), r"hold integers, got float32 in row 0"),
        (list(EYE.numpy() > 0), r"hold integers, got bool in row 0"),
        ([[1], EYE[0]], r"hold integers, got float32 in row 1"),
        ([[1], EYE[0].numpy()], r"hold integers, got float32 in row 1"),
    ],
    ("lists", ValueError): [
        ([[4], [], [0, -3]], r"hold labels >= 0, got -3 in row 2"),
        ([[2**63]], r"hold labels below 2\*\*63, got a larger"),
        (list(EYE.long() - 1), r"hold labels >= 0, got -1 in row 0"),
        ([[1], EYE.long()], r"hold 1-d rows, got shape \(2, 3\) in row 1"),
        (torch.tensor([1, 2]), r"hold 1-d rows, got shape \(\) in row 0"),
        ([np.ones((1, 2), int)], r"hold 1-d rows, got shape \(1, 2\) in row 0"),
        ([torch.tensor([1]), torch.tensor([1], device="meta")], r"be on one device"),
    ],
    ("padded", TypeError): [
        ([[1]], r"be a torch.Tensor, got list"),
        (EYE, r"hold integers, got float32"),
        (EYE.bool(), r"hold integers, got bool"),
    ],
    ("padded", ValueError): [
        (EYE[0].long(), r"have shape \(rows, k\), got \(3,\)"),
        (EYE.int() - 2, r"hold labels >= 0, or -1 for none, got -2 in row 0"),
        ((EYE.long() - 1).view(torch.uint64), r"hold labels below 2\*\*63, got a larger number"),
    ],
    ("dense", TypeError): [
        ([[1]], r"be a torch.Tensor, got list"),
        (EYE + 1j, r"be bool, integer or floating point, got complex64"),
        (EYE.to_sparse(), r"be torch.strided, got torch.sparse_coo"),
    ],
    ("dense", ValueError): [
        (EYE[0], r"have shape \(rows, labels\), got \(3,\)"),
        (EYE / 2, r"hold 0 and 1 only, got 0.5 in row 0"),
        (EYE.log(), r"hold 0 and 1 only, got -inf in row 0"),
        (torch.tensor([[0.0], [math.nan]]), r"hold 0 and 1 only, got nan in row 1"),
        (EYE.int() * 3, r"hold 0 and 1 only, got 3 in row 0"),
    ],
    ("matrix", TypeError): [
        (EYE, r"be a matrix or array of scipy.sparse, got Tensor"),
        (EYE.numpy(), r"be a matrix or array of scipy.sparse, got ndarray"),
        (sp.csr_array(EYE.numpy() * 1j), r"be bool, integer or floating point, got compl"),
    ],
    ("matrix", ValueError): [
        (sp.coo_array(np.ones(3)), r"have shape \(rows, labels\), got \(3,\)"),
        (sp.csr_array(EYE.numpy() * 2), r"hold 0 and 1 only, got 2 in row 0"),
        (sp.csr_array(EYE.numpy() * np.nan), r"hold 0 and 1 only, got nan in row 0"),
    ],
    ("tensor", TypeError): [
        ([[1]], r"be a torch.Tensor, got list"),
        (EYE, r"be torch.sparse_csr or torch.sparse_coo, got torch.strided"),
        (EYE.to_sparse_csc(), r"be torch.sparse_csr or .*, got torch.sparse_csc"),
        (EYE.to_sparse_bsr((1, 1)), r"be torch.sparse_csr or .*, got torch.sparse_bsr"),
        ((EYE * 1j).to_sparse(), r"be bool, integer or floating point, got complex64"),
    ],
    ("tensor", ValueError): [
        (EYE.to_sparse(1), r"have two dimensions, .*, got shape \(2, 3\) with dense_dim 1"),
        (EYE[0].to_sparse(), r"have two dimensions, .*, got shape \(3,\) with dense_dim 0"),
        (EYE[None].to_sparse_csr(), r"have two dimensions, .*, got shape \(1, 2, 3\)"),
        ((EYE * 2).to_sparse(), r"hold 0 and 1 only, got 2 in row 0"),
        ((EYE * math.nan).to_sparse_csr(), r"hold 0 and 1 only, got nan in row 0"),
    ],
    ("rows", TypeError): [
        (None, r"be an int, a slice, a range, or a list, NumPy array or tensor .*, got NoneType"),
        ("01", r"be an int, .*, got str"),
        ({0, 1}, r"be an int, .*, got set"),
        ([0, None], r"be an int, .*, got list"),
        ([0, 1.0], r"be bool, int32 or int64, got float32"),
        (np.array([0, 1], np.uint8), r"be bool, int32 or int64, got uint8"),
        (torch.tensor([0.0]), r"be bool, int32 or int64, got float32"),
        (torch.tensor([0]).byte(), r"be bool, int32 or int64, got uint8"),
    ],
    ("rows", ValueError): [
        (torch.tensor(0), r"be one-dimensional, got shape \(\)"),
        (True, r"be one-dimensional, got shape \(\)"),
        (1.0, r"be one-dimensional, got shape \(\)"),
        (np.zeros((1, 2), int), r"be one-dimensional, got shape \(1, 2\)"),
        ([True, False], r"have shape \(5,\) as a mask, got \(2,\)"),
        (torch.tensor([True]), r"have shape \(5,\) as a mask, got \(1,\)"),
    ],
    ("rows", IndexError): [
        (torch.tensor([0, 5]), r"be from -5 to 4, got 5"),
        (torch.tensor([-6, 5]), r"be from -5 to 4, got -6"),
        (5, r"be from -5 to 4, got 5"),
        (range(6), r"be from -5 to 4, got 5"),
        (10**30, rf"be from -5 to 4, got {10**30}"),
        (range(-(10**30), 0, 10**30), rf"be from -5 to 4, got -{10**30}"),
    ],
}
FUNCTIONS: dict[str, Callable[[Any], SparseLabels]] = {
    "lists": SparseLabels.from_lists,
    "padded": SparseLabels.from_padded,
    "dense": SparseLabels.from_dense,
    "matrix": SparseLabels.from_scipy,
    "tensor": SparseLabels.from_tensor,
    "rows": SparseLabels.from_lists(ROWS).select,
}


@pytest.mark.parametrize(("name", "error"), WRONG)
def test_what_cannot_become_labels(name: str, error: type[Exception]) -> None:
    for bad, words in WRONG[name, error]:
        with pytest.raises(error, match=f"^{name} must {words}"):
            FUNCTIONS[name](bad)


def test_duplicates_coalesced_are_no_longer_ones() -> None:
    twice = uncoalesced([[1, 1], [2]], torch.float32)
    assert_labels(SparseLabels.from_tensor(twice), [[1], [2]])
    with pytest.raises(ValueError, match=r"^tensor must hold 0 and 1 only, got 2 in row 0; "):
        SparseLabels.from_tensor(twice.coalesce())
    halves = torch.sparse_coo_tensor([[0, 0], [1, 1]], [0.5, 0.5], (1, 3), check_invariants=True)
    with pytest.raises(ValueError, match=r"^tensor must hold 0 and 1 only, got 0.5 in row 0; "):
        SparseLabels.from_tensor(halves)
    leaf = dense_of(ROWS).float().to_sparse().requires_grad_()
    assert not SparseLabels.from_tensor(leaf).col_indices.requires_grad


def test_sparse_tensors_that_torch_did_not_check() -> None:
    for crow, col, words in (
        ([0, 1], [0, 5], r".crow_indices must end with 2, the number of indices, got 1"),
        ([1, 2], [0, 1], r".crow_indices must begin with 0, got 1"),
        ([0, 2, 1, 2], [0, 1], r".crow_indices must not fall, got 1 after 2 in row 1"),
        ([0, 2], [0, 3], r" must have labels from 0 to 2, got numbers from 0 to 3"),
        ([0, 2], [-1, 2], r" must have labels from 0 to 2, got numbers from -1 to 2"),
        ([[0, 2], [0, 0]], None, " must have row numbers from 0 to 1.*"),
        ([[0], [3]], None, " must have labels.*"),
    ):
        values, unchecked = torch.ones(len(col or crow[0])), dict(check_invariants=False)
        if col is None:
            wrong = torch.sparse_coo_tensor(torch.tensor(crow), values, (2, 3), **unchecked)
        else:
            indices, size = map(torch.tensor, (crow, col)), (len(crow) - 1, 3)
            wrong = torch.sparse_csr_tensor(*indices, values, size, **unchecked)
        with pytest.raises(ValueError, match=f"^tensor{words}$"):
            SparseLabels.from_tensor(wrong)


def test_another_argument_is_named(device: str) -> None:
    crow, col = SparseLabels.from_lists(ROWS).to(device)
    for wrong, error, words in (
        (SparseLabels(crow, col.int()), TypeError, "col_indices must be int64 like crow_indices"),
        (SparseLabels(crow + 1, col), ValueError, "crow_indices must begin with 0, got 1"),
        (SparseLabels(crow, col - 5), ValueError, "col_indices must be >= 0, got -4 in row 0"),
    ):
        with pytest.raises(error, match=rf"^labels\.{words}"):
            pos_weight_from_labels(wrong, 40)
