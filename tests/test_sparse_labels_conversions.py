"""SparseLabels go back to lists and scipy, take counts, and follow no default device or dtype."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

import scipy.sparse as sp
from torch import Tensor

from weighted_bce import SparseLabels, weighted_bce_with_logits

from .sparse_values import ROWS, assert_labels, dense_of
from .truth import TARGET_DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # "in beta state"


def test_to_lists_and_scipy(device: str) -> None:
    for rows in (ROWS, [], [[], []]):
        for dtype, of in ((torch.int32, "int32"), (torch.int64, "int64")):
            labels = SparseLabels.from_lists(rows).to(device, dtype)
            assert labels.to_lists() == [sorted(row) for row in rows]
            matrix = labels.to_scipy(40)
            assert type(matrix) is sp.csr_array
            assert (matrix.dtype, matrix.indices.dtype, matrix.indptr.dtype) == (bool, of, of)
            assert matrix.has_canonical_format
            assert np.array_equal(matrix.toarray(), dense_of(rows).numpy())
            assert labels.to_scipy(40, np.float32).dtype == np.float32
            assert_labels(SparseLabels.from_scipy(matrix), rows, dtype)
            matrix.indices[:] = 0
            assert labels.to_lists() == [sorted(row) for row in rows]
    with pytest.raises(ValueError, match=r"^labels.col_indices must be below 39, .*, got 39 in r"):
        SparseLabels.from_lists(ROWS).to_scipy(39)


COUNTS = torch.tensor([[0, 1, 2], [0, 0, 0], [100, 0, 1]])


def csr_of(counts: Tensor) -> Tensor:
    csr = (counts != 0).to_sparse_csr()
    values = counts[counts != 0]
    indices = csr.crow_indices(), csr.col_indices()
    return torch.sparse_csr_tensor(*indices, values, counts.shape, check_invariants=True)


def coo_of(counts: Tensor) -> Tensor:
    places = (counts != 0).nonzero().T
    values = counts[counts != 0]
    return torch.sparse_coo_tensor(places, values, counts.shape, check_invariants=True)


MAKE: dict[str, tuple[Callable[..., SparseLabels], Callable[[Tensor], Any]]] = {
    "dense": (SparseLabels.from_dense, lambda counts: counts),
    "csr": (SparseLabels.from_tensor, csr_of),
    "coo": (SparseLabels.from_tensor, coo_of),
    "scipy": (SparseLabels.from_scipy, lambda counts: sp.csr_array(counts.numpy())),
}


@pytest.mark.parametrize("kind", MAKE)
def test_counts(kind: str) -> None:
    make, of = MAKE[kind]
    for dtype in TARGET_DTYPES:
        if kind != "scipy" or dtype not in (torch.float16, torch.bfloat16):
            labels = make(of(COUNTS.to(dtype)), binarize=True)
            assert labels.to_lists() == [[1, 2], [], [0, 2]]
    parts = COUNTS.double() / 1000
    parts[0, 1] = math.inf
    assert make(of(parts), binarize=True).to_lists() == [[1, 2], [], [0, 2]]
    name = {"dense": "dense", "scipy": "matrix"}.get(kind, "tensor")
    method = {"csr": "tensor", "coo": "tensor"}.get(kind, kind)
    words = rf"^{name} must hold 0 and 1 only, got 2 in row 0; SparseLabels.from_{method}\(\.\.\., "
    with pytest.raises(ValueError, match=words + r"binarize=True\) takes counts$"):
        make(of(COUNTS))
    for wrong in (-1.0, math.nan, -math.inf):
        bad = COUNTS.double()
        bad[2, 1] = wrong
        words = rf"^{name} must hold values >= 0 with binarize=True, got {wrong:g} in row 2$"
        with pytest.raises(ValueError, match=words):
            make(of(bad), binarize=True)


def test_repeated_counts() -> None:
    twice = ([0, 0, 1], [2, 2, 0])
    coo = torch.sparse_coo_tensor(twice, [1.0, 3.0, 0.0], (2, 3), check_invariants=True)
    matrix = sp.coo_array(([1, 3, 0], twice), shape=(2, 3))
    for labels in (
        SparseLabels.from_tensor(coo, binarize=True),
        SparseLabels.from_tensor(coo.coalesce(), binarize=True),
        SparseLabels.from_scipy(matrix, binarize=True),
    ):
        assert labels.to_lists() == [[2], []]


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "default",
    [
        default_device,
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.float16),
    ],
    ids=["set_default_device", "device", "float64", "float16"],
)
def test_defaults_change_nothing(default: Callable[[], Any]) -> None:
    """Labels land on the device of the argument, and those of lists on the CPU."""
    dense = dense_of(ROWS)
    unsorted = [[3, 1, 3], [], [39, 0, 2, 3], [], [0]]
    arrays = [np.array(row, np.int64) for row in unsorted]
    tensors = [torch.tensor(row, dtype=torch.int64) for row in unsorted]
    padded = torch.tensor([[-1, 3, 1, -1], [-1] * 4, [39, 0, 2, 3], [-1] * 4, [0, -1, -1, -1]])
    csr, coo, matrix = dense.to_sparse_csr(), dense.to_sparse_coo(), sp.csr_array(dense.numpy())
    rows, mask = torch.tensor([2, 0]), torch.tensor([True, False, True, False, False])
    logits = torch.zeros(5, 40)
    with default():
        for labels in (
            SparseLabels.from_lists(unsorted),
            SparseLabels.from_lists(map(iter, unsorted)),
            SparseLabels.from_lists(arrays),
            SparseLabels.from_lists(tensors),
            SparseLabels.from_lists([arrays[0], tensors[1], *unsorted[2:]]),
            SparseLabels.from_padded(padded),
            SparseLabels.from_padded(padded.short()),
            SparseLabels.from_dense(dense),
            SparseLabels.from_dense(dense.half(), binarize=True),
            SparseLabels.from_tensor(csr),
            SparseLabels.from_tensor(coo),
            SparseLabels.from_scipy(matrix).to(torch.int64),
        ):
            assert_labels(labels, ROWS)
            assert labels.crow_indices.is_cpu
            assert labels.col_indices.is_cpu
        for chosen in (
            rows,
            [2, 0],
            (2, 0),
            np.array([2, 0]),
            slice(2, None, -2),
            range(2, -1, -2),
        ):
            assert_labels(labels.select(chosen), [ROWS[2], ROWS[0]])
        for chosen in (mask, mask.tolist(), mask.numpy()):
            assert_labels(labels.select(chosen), [ROWS[0], ROWS[2]])
        assert_labels(labels.select(-1), [ROWS[-1]])
        for nothing in ([], (), np.array([]), range(0)):
            assert_labels(labels.select(nothing), [])
        assert_labels(SparseLabels.from_lists([]), [])
        assert_labels(SparseLabels.from_lists([[], ()]), [[], []])
        for parts in (labels.split(2), labels.split([1, 4]), labels.chunk(3)):
            assert_labels(SparseLabels.cat(parts), ROWS)
        assert_labels(labels.all_gather(), ROWS)
        assert labels == SparseLabels.cat([labels])
        assert torch.equal(labels.to_dense(40), dense)
        assert labels.to_lists() == [sorted(row) for row in ROWS]
        assert SparseLabels.from_scipy(labels.to_scipy(40)) == labels
        assert weighted_bce_with_logits(logits, labels).is_cpu
        assert repr(labels).endswith("device=cpu)")
        with pytest.raises(ValueError, match="in row 2"):
            labels.to_dense(39)
