"""SparseLabels: every way to make them, to change them, and what is wrong with them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
pytest.importorskip("scipy")

import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weighted_bce import SparseLabels
from weighted_bce._csr_checks import check_indices

from .draws import drawn
from .scripts import run_python
from .sparse_values import ROWS, assert_labels, dense_of
from .truth import TARGET_DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # "in beta state"

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def padded_of(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows), default=0)
    padded = torch.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        padded[i, torch.randperm(width)[: len(row)]] = torch.tensor(row, dtype=torch.int64)
    return padded


def entries(rows: list[list[int]], zeros: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, label and value of each positive and of some explicit zeros, in any order."""
    row = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    col = np.array([label for r in rows for label in r], dtype=np.int64)
    if rows:
        row = np.append(row, np.random.randint(len(rows), size=zeros))
        col = np.append(col, np.random.randint(40, size=zeros))
    value = np.ones(len(row))
    value[len(row) - (zeros if rows else 0) :] = 0
    order = np.random.permutation(len(row))
    return row[order], col[order], value[order]


def uncoalesced(rows: list[list[int]], dtype: torch.dtype, zeros: int = 0) -> Tensor:
    row, col, value = entries(rows, zeros)
    indices = torch.tensor(np.stack([row, col]))
    values = torch.tensor(value).to(dtype)
    return torch.sparse_coo_tensor(indices, values, (len(rows), 40), check_invariants=True)


def csr_of(rows: list[list[int]], index: torch.dtype, value: torch.dtype) -> Tensor:
    """Duplicates, unsorted, as torch lets them be; and with zeros at every other place."""
    crow = torch.tensor([0, *np.cumsum([2 * len(r) for r in rows])], dtype=index)
    col = torch.tensor([n for r in rows for label in r for n in (label, 39 - label)], dtype=index)
    values = torch.tensor([1, 0] * (len(col) // 2)).to(value)
    size = (len(rows), 40)
    return torch.sparse_csr_tensor(crow, col, values, size, check_invariants=False)


rows_of_labels = st.lists(st.lists(st.integers(0, 39), max_size=7), max_size=9)


@drawn(few=10, many=200)
@given(rows=rows_of_labels)
def test_all_constructors_against_python(device: str, rows: list[list[int]]) -> None:
    kinds: list[Callable[[list[int]], Any]] = [
        list,
        tuple,
        set,
        iter,
        lambda row: torch.tensor(row, device=device),
        lambda row: torch.tensor(row, dtype=torch.int16),
        lambda row: np.array(row),
        lambda row: np.array(row, dtype=np.uint8),
        lambda row: [np.int32(label) for label in row],
    ]
    for kind in kinds:
        assert_labels(SparseLabels.from_lists([kind(row) for row in rows]), rows)
        assert_labels(SparseLabels.from_lists(kind(row) for row in rows), rows)
    assert_labels(SparseLabels.from_lists([kinds[i % 9](row) for i, row in enumerate(rows)]), rows)
    dense = dense_of(rows)
    for dtype in (*TARGET_DTYPES, torch.float8_e4m3fn):
        assert_labels(SparseLabels.from_dense(dense.to(device, dtype)), rows)
    for dtype in INTEGERS[1:]:
        kept = dtype if dtype == torch.int32 else torch.int64
        assert_labels(SparseLabels.from_padded(padded_of(rows).to(device, dtype)), rows, kept)
    for value in (torch.bool, torch.int64, torch.float32):
        assert_labels(SparseLabels.from_tensor(uncoalesced(rows, value, 5).to(device)), rows)
        assert_labels(SparseLabels.from_tensor(dense.to(device, value).to_sparse_coo()), rows)
        for index in (torch.int32, torch.int64):
            assert_labels(
                SparseLabels.from_tensor(csr_of(rows, index, value).to(device)), rows, index
            )
    row, col, data = entries(rows, 5)
    for data_type in (bool, np.uint8, np.float64):
        coo = sp.coo_array((data.astype(data_type), (row, col)), shape=(len(rows), 40))
        assert_labels(SparseLabels.from_scipy(coo), rows, torch.int64)
    labels = SparseLabels.from_lists(rows)
    assert torch.equal(labels.to_dense(40), dense)
    assert torch.equal(labels.to(torch.int32).to_dense(40, torch.float16), dense.half())


@pytest.mark.parametrize("layout", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_scipy_formats(layout: str, kind: str) -> None:
    dense = dense_of(ROWS).numpy()
    for data in (dense, dense.astype(np.float32), dense.astype(np.int8)):
        matrix = getattr(sp, f"{layout}_{kind}")(data)
        index = getattr(matrix.tocoo(), "row").dtype  # noqa: B009
        labels = SparseLabels.from_scipy(matrix)
        assert_labels(labels, ROWS, getattr(torch, str(index)))
    assert SparseLabels.from_scipy(sp.csr_array(dense)).col_indices.dtype == torch.int32


def test_scipy_is_copied() -> None:
    matrix = sp.csr_array(dense_of(ROWS).numpy())
    matrix.indices.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = SparseLabels.from_scipy(matrix)
    matrix.indices.flags.writeable = True
    matrix.indices[:] = 7
    assert_labels(labels, ROWS, torch.int32)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_dtypes(device: str, dtype: torch.dtype) -> None:
    rows = [[7, 200 if dtype == torch.uint8 else 100], [5, 5]]
    padded = torch.tensor(rows, dtype=dtype, device=device)
    labels = SparseLabels.from_padded(padded)
    assert_labels(labels, rows, dtype if dtype == torch.int32 else torch.int64)
    assert labels.col_indices.device.type == labels.crow_indices.device.type == device
    assert_labels(SparseLabels.from_lists(list(padded)), rows)
    assert_labels(SparseLabels.from_lists(list(padded.cpu().numpy())), rows)
    assert SparseLabels.from_lists(list(padded)).crow_indices.device.type == device


def test_nothing() -> None:
    """No rows, no labels, no columns, and empty rows, of any dtype."""
    for labels, rows in (
        (SparseLabels.from_lists([]), 0),
        (SparseLabels.from_lists(iter([])), 0),
        (SparseLabels.from_lists([[], ()]), 2),
        (SparseLabels.from_lists([torch.tensor([]), torch.tensor([])]), 2),
        (SparseLabels.from_lists([np.array([]), np.array([])]), 2),
        (SparseLabels.from_lists([[], np.array([]), torch.tensor([])]), 3),
        (SparseLabels.from_padded(torch.empty(0, 3, dtype=torch.int64)), 0),
        (SparseLabels.from_padded(torch.empty(3, 0, dtype=torch.int64)), 3),
        (SparseLabels.from_padded(torch.full((2, 3), -1)), 2),
        (SparseLabels.from_dense(torch.zeros(0, 4)), 0),
        (SparseLabels.from_dense(torch.zeros(4, 0)), 4),
        (SparseLabels.from_dense(torch.zeros(4, 5)), 4),
        (SparseLabels.from_tensor(torch.zeros(4, 5).to_sparse_csr()), 4),
        (SparseLabels.from_tensor(torch.zeros(0, 5).to_sparse_csr()), 0),
        (SparseLabels.from_tensor(torch.zeros(0, 5).to_sparse_coo()), 0),
        (SparseLabels.from_tensor(torch.zeros(4, 0).to_sparse_coo()), 4),
        (SparseLabels.from_scipy(sp.coo_array((0, 5))), 0),
        (SparseLabels.from_scipy(sp.csr_matrix((5, 5), dtype=bool)), 5),
        (SparseLabels.from_lists(ROWS).select(slice(2, 2)), 0),
        (SparseLabels.from_lists(ROWS).select(torch.tensor([1, 3])), 2),
        (SparseLabels.from_lists([]).select(slice(None)), 0),
    ):
        assert_labels(labels, [[] for _ in range(rows)], labels.col_indices.dtype)
        assert labels.to_dense(3).shape == (rows, 3)
    large = 2**60 + 1  # which no float holds
    for make in (torch.tensor, np.array):
        assert_labels(SparseLabels.from_lists([make([]), make([large, 2])]), [[], [large, 2]])


def test_labels_near_the_largest_integer() -> None:
    """A row and its label do not fit in one number there."""
    large = [[2**63 - 1, 2**62, 2**63 - 1], [0, 2**62], [5, 4, 2**63 - 1]]
    assert_labels(SparseLabels.from_lists(large), large)
    assert SparseLabels.from_padded(torch.tensor([large[0]])).col_indices.tolist() == [
        2**62,
        2**63 - 1,
    ]


def test_a_million_rows(runs_everything: bool) -> None:
    """The check sorts within each row and compares neighbours. Without --all, 50,000 rows."""
    torch.manual_seed(0)
    n = 10**6 if runs_everything else 50_000
    padded = torch.randint(0, 1000, (n, 5))
    ordered = padded.sort(1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    crow = torch.cat([torch.tensor([0]), new.sum(1).cumsum(0)])
    array = padded.numpy()
    coo = sp.coo_array((np.ones(5 * n), (np.repeat(np.arange(n), 5), array.ravel())))
    for labels in (
        SparseLabels.from_lists(padded.tolist()),
        SparseLabels.from_lists(list(array)),
        SparseLabels.from_padded(padded),
        SparseLabels.from_padded(padded.int()),
        SparseLabels.from_scipy(coo),
    ):
        assert torch.equal(labels.crow_indices.long(), crow)
        assert torch.equal(labels.col_indices.long(), ordered[new])
    check_indices(labels, 1000)
    order = torch.randperm(n)
    shuffled = labels.select(order)
    check_indices(shuffled, 1000)
    again = shuffled.select(order.argsort())
    assert all(map(torch.equal, again, labels))


def test_without_numpy() -> None:
    """The package does not need it, nor bring it: here it cannot be imported."""
    code = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["numpy"] = None
import torch
from weighted_bce import SparseLabels, collate, pos_weight_from_labels
labels = SparseLabels.from_lists([[3, 1], (2,), {0}, torch.tensor([5])])
assert labels.col_indices.tolist() == [1, 3, 2, 0, 5]
assert collate([(torch.ones(2), [1]), (torch.ones(2), [])])[1].num_rows == 2
assert len(pos_weight_from_labels(labels, 9)) == 9
try:
    SparseLabels.from_lists([[3, None]])
except TypeError as error:
    print(error)
"""
    assert run_python(code)[0] == "lists must hold integers, got NoneType in row 0\n"
