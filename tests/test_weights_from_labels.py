"""Weights and propensities from labels of every kind."""

import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from weighted_bce import (
    SparseLabels,
    backend,
    pos_weight_from_labels,
    propensity_from_labels,
    weighted_bce_with_logits,
)

from .truth import TARGET_DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # "in beta state"


def skewed(device: str = "cpu", rows: int = 300) -> Tensor:
    """Label 0 is in nearly every row, 29 in none."""
    y = torch.rand(rows, 30) < torch.linspace(0.98, 0, 30).square()
    y[:, 29] = False
    return y.to(device)


def batches(y: Tensor, size: int = 70, dtype: torch.dtype = torch.int64) -> Iterator[SparseLabels]:
    for part in y.split(size):
        yield SparseLabels.from_dense(part).to(dtype)


def kinds(y: Tensor) -> dict[str, Any]:
    """The same labels in every form."""
    labels = SparseLabels.from_dense(y)
    no_row = SparseLabels.from_dense(y[:0])
    return {
        "bool": y,
        "float": y.float(),
        "csr": y.float().to_sparse_csr(),
        "coo": y.to_sparse_coo(),
        "int64": labels,
        "int32": labels.to(torch.int32),
        "generator": batches(y),
        "list of int32": list(batches(y, 11, torch.int32)),
        "rows one by one": batches(y, 1),
        "with an empty batch": [no_row, *batches(y, 299), no_row],
        "loader": DataLoader(list(batches(y)), batch_size=None),
    }


def test_all_kinds_of_labels_alike(device: str) -> None:
    y = skewed(device)
    counts = y.double().sum(0)
    weights = (300 - counts) / counts
    weights[counts == 0] = weights[counts > 0].max()
    for name, labels in kinds(y).items():
        given = pos_weight_from_labels(labels, 30)
        assert isinstance(given, Tensor), name
        assert given.dtype == torch.float32, name
        assert given.device == y.device, name
        assert torch.equal(given, weights.float()), name
    for name, labels in kinds(y).items():
        total = (300 * 30 - counts.sum().item()) / counts.sum().item()
        assert pos_weight_from_labels(labels, 30, per_class=False) == total, name
    for name, labels in kinds(y).items():
        limited = pos_weight_from_labels(labels, 30, max_weight=4.0)
        assert torch.equal(limited, weights.clamp(max=4).float()), name  # type: ignore[arg-type]
    for name, labels in kinds(y).items():
        assert torch.equal(propensity_from_labels(labels, 30), propensity_from_labels(y)), name


def test_num_labels_of_numpy() -> None:
    y = torch.eye(4, 5)
    labels = SparseLabels.from_dense(y)
    found = pos_weight_from_labels(labels, np.int64(5))  # type: ignore[arg-type]
    assert torch.equal(found, pos_weight_from_labels(y))  # type: ignore[arg-type]


def test_a_stream_is_not_kept(device: str) -> None:
    """One batch at a time: each is gone when the next one is asked for."""
    alive: list[Any] = []

    def stream() -> Iterator[SparseLabels]:
        for part in skewed(device).split(50):
            assert sum(ref() is not None for ref in alive) <= 1
            labels = SparseLabels.from_dense(part)
            alive.append(weakref.ref(labels.col_indices))
            yield labels

    pos_weight_from_labels(stream(), 30)
    assert len(alive) == 6


def test_smoothing(device: str) -> None:
    y = skewed(device)
    y[:, 28] = True
    counts = y.double().sum(0).cpu().numpy()
    for s in (0.5, 1, 100.0):
        expected = ((300 - counts + s) / (counts + s)).astype(np.float32)
        for labels in (y, y.to_sparse(), SparseLabels.from_dense(y)):
            given = pos_weight_from_labels(labels, 30, smoothing=s)
            assert isinstance(given, Tensor)
            np.testing.assert_allclose(given.cpu().numpy(), expected, rtol=1e-6)
            assert given[29] == np.float32((300 + s) / s)  # no positives
            assert given[28] == np.float32(s / (300 + s))  # nothing else
            total = pos_weight_from_labels(labels, 30, smoothing=s, per_class=False)
            n = counts.sum()
            assert math.isclose(total, (9000 - n + s) / (n + s))  # type: ignore[arg-type]
    nothing = torch.zeros(4, 3, device=device)
    assert torch.equal(
        pos_weight_from_labels(nothing, smoothing=1.0),  # type: ignore[arg-type]
        torch.full((3,), 5.0, device=device),
    )
    assert pos_weight_from_labels(nothing, smoothing=1.0, per_class=False) == 13.0
    assert pos_weight_from_labels(nothing, smoothing=1.0, max_weight=2, per_class=False) == 2.0


@pytest.mark.parametrize(("a", "b"), [(0.55, 1.5), (0.5, 0.4), (0.6, 2.6), (0.0, 1.0)])
@pytest.mark.parametrize("rows", [3, 300, 5000])
def test_propensity_against_numpy(device: str, a: float, b: float, rows: int) -> None:
    y = skewed(device, rows)
    n = y.cpu().numpy().sum(0).astype(np.float64)
    c = (np.log(rows) - 1) * (b + 1) ** a
    expected = 1 / (1 + c * np.exp(-a * np.log(n + b)))
    p = propensity_from_labels(SparseLabels.from_dense(y), 30, A=a, B=b)
    assert p.dtype == torch.float32
    np.testing.assert_allclose(p.cpu().numpy(), expected, rtol=2e-7)
    assert ((p > 0) & (p <= 1)).all()
    if (a, b) == (0.55, 1.5):
        assert torch.equal(propensity_from_labels(y), p)


def test_propensity_of_soft_labels_and_of_few_rows(device: str) -> None:
    soft = torch.full((4, 1), 0.5, device=device)
    hard = torch.tensor([[1], [1], [0], [0]], device=device)
    assert torch.equal(propensity_from_labels(soft), propensity_from_labels(hard))
    for rows in (1, 2):
        assert torch.equal(propensity_from_labels(hard[:rows]).cpu(), torch.ones(1))
    assert propensity_from_labels(hard[:3]).item() < 1
    p = propensity_from_labels(skewed())
    assert p[29] == p.min()
    assert p[0] == p.max()


@pytest.mark.parametrize("dtype", TARGET_DTYPES)
def test_pos_weight_from_labels(device: str, dtype: torch.dtype) -> None:
    y = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]], device=device).to(dtype)
    weights = pos_weight_from_labels(y)
    assert isinstance(weights, Tensor)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.cpu(), torch.tensor([1 / 3, 3.0, 3.0]))
    limited = pos_weight_from_labels(y, 3, max_weight=2)
    assert isinstance(limited, Tensor)
    torch.testing.assert_close(limited.cpu(), torch.tensor([1 / 3, 2.0, 2.0]))
    assert pos_weight_from_labels(y, per_class=False) == 2.0
    assert pos_weight_from_labels(y, per_class=False, max_weight=1.5) == 1.5
    none = torch.zeros_like(y)
    assert torch.equal(pos_weight_from_labels(none), torch.ones(3, device=device))  # type: ignore[arg-type]
    assert pos_weight_from_labels(none, per_class=False, max_weight=9) == 9.0
    with backend("reference"):
        loss = weighted_bce_with_logits(torch.zeros(4, 3, device=device), y, None, weights)
    assert loss.isfinite()


def test_labels_that_give_no_weights() -> None:
    y = torch.eye(4, 5)
    bad: Any
    for bad, options, error, words in (
        ([[1]], {}, TypeError, r"labels must be a torch.Tensor or .*, got an iterable of list"),
        (torch.tensor([[1, -100]]), {}, ValueError, r"labels must be in \[0, 1\], got values from"),
        (y + 1j, {}, TypeError, "labels must be bool, integer or floating point"),
        (y[0], {}, ValueError, r"labels must have shape \(rows, labels\)"),
        (y[:0], {}, ValueError, "labels must have shape .* at least one row"),
        (y, {"num_labels": 4}, ValueError, "num_labels must be 5 like labels, got 4"),
        (y, {"max_weight": 0}, ValueError, "max_weight must be above 0, got 0"),
        (y, {"max_weight": float("nan")}, ValueError, "max_weight must be above 0, got nan"),
    ):
        with pytest.raises(error, match=f"^{words}"):
            pos_weight_from_labels(bad, **options)


def test_what_else_gives_no_weights() -> None:
    y = torch.eye(4, 5)
    labels = SparseLabels.from_dense(y)
    by_hand = SparseLabels(torch.tensor([0, 2]), torch.tensor([3, 1]))
    floats = SparseLabels(torch.zeros(1), torch.zeros(0))
    bad: Any
    for bad, options, error, words in (
        (3, {}, TypeError, r"labels must be a torch.Tensor or SparseLabels, got int"),
        (labels, {}, ValueError, "num_labels must be given for SparseLabels, got None"),
        ([labels], {}, ValueError, "num_labels must be given for SparseLabels, got None"),
        (labels, {"num_labels": 5.0}, TypeError, "num_labels must be an integer, got float"),
        (labels, {"num_labels": 0}, ValueError, "num_labels must be above 0, got 0"),
        (labels, {"num_labels": 3}, ValueError, "labels.col_indices must be below 3, .*, got 3"),
        ([labels, y], {"num_labels": 5}, TypeError, ".* got an iterable of Tensor"),
        ([(y, labels)], {"num_labels": 5}, TypeError, ".* got an iterable of tuple"),
        ([], {"num_labels": 5}, ValueError, "labels must have at least one row, got none"),
        (labels.select(slice(0)), {"num_labels": 5}, ValueError, "labels must have at least one"),
        (y[:0].to_sparse(), {}, ValueError, "labels must have at least one row, got none"),
        (by_hand, {"num_labels": 5}, ValueError, "labels.col_indices must ascend"),
        (floats, {"num_labels": 5}, TypeError, "labels.crow_indices must be int32 or int64"),
        (y.to_sparse(), {"num_labels": 4}, ValueError, "num_labels must be 5 like labels, got 4"),
        ((y * 2).to_sparse(), {}, ValueError, "labels must hold 0 and 1 only, got 2 in row 0"),
        (y.to_sparse_csc(), {}, TypeError, "labels must be torch.sparse_csr or"),
    ):
        for function in (pos_weight_from_labels, propensity_from_labels):
            with pytest.raises(error, match=f"^{words}"):
                function(bad, **options)
    for options, error, words in (
        ({"smoothing": -1}, ValueError, "smoothing must be a finite number >= 0, got -1"),
        ({"smoothing": math.nan}, ValueError, "smoothing must be a finite number >= 0, got nan"),
        ({"smoothing": math.inf}, ValueError, "smoothing must be a finite number >= 0, got inf"),
        ({"smoothing": "1"}, TypeError, "smoothing must be a number, got str"),
        ({"smoothing": True}, TypeError, "smoothing must be a number, got bool"),
    ):
        with pytest.raises(error, match=f"^{words}$"):
            pos_weight_from_labels(y, **options)
    for options, error, words in (
        ({"A": -1}, ValueError, "A must be a finite number >= 0, got -1"),
        ({"B": None}, TypeError, "B must be a number, got NoneType"),
        ({"B": 0}, ValueError, "B must be above 0, got 0"),
        ({"B": -0.5}, ValueError, "B must be a finite number >= 0, got -0.5"),
    ):
        with pytest.raises(error, match=f"^{words}$"):
            propensity_from_labels(y, **options)
