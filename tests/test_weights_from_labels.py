"""Weights and propensities from labels of every kind."""

import math
import weakref
from collections.abc import Callable, Iterator
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
    prior_logits,
    weighted_bce_with_logits,
)
from weighted_bce import propensity_from_labels as propensity

from .truth import TARGET_DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # "in beta state"


def pos_weight(labels: Any, *args: Any, **options: Any) -> Any:
    """Returns a tensor or, without per_class, a number."""
    return pos_weight_from_labels(labels, *args, **options)


def skewed(device: str = "cpu", rows: int = 300) -> Tensor:
    """Label 0 is in nearly every row, 29 in none."""
    y = torch.rand(rows, 30) < torch.linspace(0.98, 0, 30).square()
    y[:, 29] = False
    return y.to(device)


def batches(y: Tensor, size: int = 70, dtype: torch.dtype = torch.int64) -> Iterator[SparseLabels]:
    for part in y.split(size):
        yield SparseLabels.from_dense(part).to(dtype)


NO_ROW = SparseLabels.from_lists([])
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda y: y,
    "float": lambda y: y.float(),
    "csr": lambda y: y.float().to_sparse_csr(),
    "coo": lambda y: y.to_sparse_coo(),
    "int64": SparseLabels.from_dense,
    "int32": lambda y: SparseLabels.from_dense(y).to(torch.int32),
    "generator": batches,
    "list of int32": lambda y: list(batches(y, 11, torch.int32)),
    "rows one by one": lambda y: batches(y, 1),
    "with an empty batch": lambda y: [NO_ROW.to(y.device), *batches(y, 299), NO_ROW.to(y.device)],
    "loader": lambda y: DataLoader(list(batches(y)), batch_size=None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_labels(device: str, kind: str) -> None:
    y = skewed(device)
    counts = y.double().sum(0)
    weights = (300 - counts) / counts
    weights[counts == 0] = weights[counts > 0].max()
    actual = pos_weight(KINDS[kind](y), np.int64(30))
    assert isinstance(actual, Tensor)
    assert actual.dtype == torch.float32
    assert actual.device == y.device
    assert torch.equal(actual, weights.float())
    limited = pos_weight(KINDS[kind](y), 30, max_weight=4.0)
    assert torch.equal(limited, weights.clamp(max=4).float())
    total = (300 * 30 - counts.sum().item()) / counts.sum().item()
    assert pos_weight(KINDS[kind](y), 30, per_class=False) == total
    for function in (propensity, prior_logits):
        assert torch.equal(function(KINDS[kind](y), 30), function(y))


def test_a_stream_is_not_kept(device: str) -> None:
    """One batch at a time: each is gone when the next one is asked for."""
    alive: list[Any] = []

    def stream() -> Iterator[SparseLabels]:
        for labels in batches(skewed(device), 50):
            assert sum(ref() is not None for ref in alive) <= 1
            alive.append(weakref.ref(labels.col_indices))
            yield labels
            del labels

    pos_weight(stream(), 30)
    assert len(alive) == 6


@pytest.mark.parametrize("s", [0.5, 1, 100.0])
@pytest.mark.parametrize("kind", ["bool", "coo", "int64"])
def test_smoothing(device: str, kind: str, s: float) -> None:
    y = skewed(device)
    y[:, 28] = True
    labels, counts = KINDS[kind](y), y.double().sum(0).cpu().numpy()
    expected = ((300 - counts + s) / (counts + s)).astype(np.float32)
    weights = pos_weight(labels, 30, smoothing=s)
    np.testing.assert_allclose(weights.cpu().numpy(), expected, rtol=1e-6)
    assert weights[29] == np.float32((300 + s) / s)  # no positives
    assert weights[28] == np.float32(s / (300 + s))  # nothing else
    total = pos_weight(labels, 30, smoothing=s, per_class=False)
    assert math.isclose(total, (9000 - counts.sum() + s) / (counts.sum() + s))


def test_smoothing_of_no_positives(device: str) -> None:
    nothing = torch.zeros(4, 3, device=device)
    five = torch.full((3,), 5.0, device=device)
    assert torch.equal(pos_weight(nothing, smoothing=1.0), five)
    assert pos_weight(nothing, smoothing=1.0, per_class=False) == 13.0
    assert pos_weight(nothing, smoothing=1.0, max_weight=2, per_class=False) == 2.0


@pytest.mark.parametrize(("a", "b"), [(0.55, 1.5), (0.5, 0.4), (0.6, 2.6), (0.0, 1.0)])
@pytest.mark.parametrize("rows", [3, 300, 5000])
def test_propensity_against_numpy(device: str, a: float, b: float, rows: int) -> None:
    y = skewed(device, rows)
    n = y.cpu().numpy().sum(0).astype(np.float64)
    c = (np.log(rows) - 1) * (b + 1) ** a
    expected = 1 / (1 + c * np.exp(-a * np.log(n + b)))
    p = propensity(SparseLabels.from_dense(y), 30, A=a, B=b)
    assert p.dtype == torch.float32
    np.testing.assert_allclose(p.cpu().numpy(), expected, rtol=2e-7)
    assert ((p > 0) & (p <= 1)).all()
    assert p[29] == p.min()
    if (a, b) == (0.55, 1.5):
        assert torch.equal(propensity(y), p)


def test_propensity_of_soft_labels_and_of_few_rows(device: str) -> None:
    soft = torch.full((4, 1), 0.5, device=device)
    hard = torch.tensor([[1], [1], [0], [0]], device=device)
    assert torch.equal(propensity(soft), propensity(hard))
    for rows in (1, 2):
        assert torch.equal(propensity(hard[:rows]).cpu(), torch.ones(1))
    assert propensity(hard[:3]).item() < 1


@pytest.mark.parametrize("rows", [1, 2, 300, 5000])
def test_prior_against_numpy(device: str, rows: int) -> None:
    y = skewed(device, rows)
    y[:, 28] = True
    n = y.cpu().numpy().sum(0).astype(np.float64)
    n[n == 0], n[n == rows] = 0.5, rows - 0.5
    prior = prior_logits(SparseLabels.from_dense(y), 30)
    assert (prior.dtype, prior.device) == (torch.float32, y.device)
    assert prior.isfinite().all()
    expected = np.log(n) - np.log(rows - n)
    np.testing.assert_allclose(prior.cpu().numpy(), expected, rtol=2e-7, atol=1e-15)
    assert torch.equal(prior[28], -prior[29])


def test_prior_of_soft_labels(device: str) -> None:
    soft = torch.tensor([[0.5, 0.1, 0.9], [0.25, 0.0, 1.0], [0.0, 0.0, 1.0]], device=device)
    expected = torch.tensor([0.75 / 2.25, 0.5 / 2.5, 2.5 / 0.5]).log()
    torch.testing.assert_close(prior_logits(soft).cpu(), expected, rtol=2e-7, atol=0)


def test_prior_is_where_a_constant_classifier_ends(device: str) -> None:
    """There the gradient of the mean loss over the training rows is 0."""
    y = skewed(device)
    bias = prior_logits(y)[1:25].requires_grad_()  # those that are neither always nor never true
    weighted_bce_with_logits(bias.expand(300, 24), y[:, 1:25], reduction="batchmean").backward()
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", TARGET_DTYPES)
def test_pos_weight_of_every_dtype(device: str, dtype: torch.dtype) -> None:
    y = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]], device=device).to(dtype)
    weights = pos_weight(y)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.cpu(), torch.tensor([1 / 3, 3.0, 3.0]))
    limited = pos_weight(y, 3, max_weight=2)
    torch.testing.assert_close(limited.cpu(), torch.tensor([1 / 3, 2.0, 2.0]))
    assert pos_weight(y, per_class=False) == 2.0
    assert pos_weight(y, per_class=False, max_weight=1.5) == 1.5
    none = torch.zeros_like(y)
    assert torch.equal(pos_weight(none), torch.ones(3, device=device))
    assert pos_weight(none, per_class=False, max_weight=9) == 9.0
    with backend("reference"):
        loss = weighted_bce_with_logits(torch.zeros(4, 3, device=device), y, None, weights)
    assert loss.isfinite()


Y = torch.eye(4, 5)
CSR = SparseLabels.from_dense(Y)
UNORDERED = SparseLabels(torch.tensor([0, 2]), torch.tensor([3, 1]))
FLOATS = SparseLabels(torch.zeros(1), torch.zeros(0))
COO, CSC = Y.to_sparse(), Y.to_sparse_csc()
FIVE = {"num_labels": 5}
NO_ROWS = "labels must have at least one row, got none"
KIND = "labels must be a torch.Tensor, SparseLabels or an iterable of SparseLabels, got"
Wrong = tuple[Any, dict[str, Any], type[Exception], str]

WRONG_LABELS: list[Wrong] = [
    ([[1]], {}, TypeError, f"{KIND} an iterable of list"),
    (torch.tensor([[1, -100]]), {}, ValueError, r"labels must be in \[0, 1\], got values from"),
    (Y * 2, {}, ValueError, r"labels must be in \[0, 1\], got values from 0 to 2"),
    (Y + 1j, {}, TypeError, "labels must be bool, integer or floating point"),
    (Y[0], {}, ValueError, r"labels must have shape \(rows, labels\)"),
    (Y[:0], {}, ValueError, "labels must have shape .* at least one row"),
    (Y, {"num_labels": 4}, ValueError, "num_labels must be 5 to match labels, got 4"),
    (3, {}, TypeError, f"{KIND} int"),
    (CSR, {}, ValueError, "num_labels must be given for SparseLabels, got None"),
    ([CSR], {}, ValueError, "num_labels must be given for SparseLabels, got None"),
    (CSR, {"num_labels": 5.0}, TypeError, "num_labels must be an integer, got float"),
    (CSR, {"num_labels": 0}, ValueError, "num_labels must be above 0, got 0"),
    (CSR, {"num_labels": 3}, ValueError, "labels.col_indices must be below 3, .*, got 3"),
    ([CSR, Y], FIVE, TypeError, ".* got an iterable of Tensor"),
    ([(Y, CSR)], FIVE, TypeError, ".* got an iterable of tuple"),
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
    (pos_weight, {"max_weight": 0}, ValueError, "above 0, got 0"),
    (pos_weight, {"max_weight": math.nan}, ValueError, "above 0, got nan"),
    (pos_weight, {"smoothing": -1}, ValueError, "a finite number >= 0, got -1"),
    (pos_weight, {"smoothing": math.nan}, ValueError, "a finite number >= 0, got nan"),
    (pos_weight, {"smoothing": math.inf}, ValueError, "a finite number >= 0, got inf"),
    (pos_weight, {"smoothing": "1"}, TypeError, "a number, got str"),
    (pos_weight, {"smoothing": True}, TypeError, "a number, got bool"),
    (propensity, {"A": -1}, ValueError, "a finite number >= 0, got -1"),
    (propensity, {"B": None}, TypeError, "a number, got NoneType"),
    (propensity, {"B": 0}, ValueError, "above 0, got 0"),
    (propensity, {"B": -0.5}, ValueError, "a finite number >= 0, got -0.5"),
]


@pytest.mark.parametrize(
    ("function", "labels", "options", "error", "words"),
    [
        *((f, *row) for row in WRONG_LABELS for f in (pos_weight, propensity, prior_logits)),
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
