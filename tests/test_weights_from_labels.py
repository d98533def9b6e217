"""Weights and propensities from labels of every kind."""

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from weighted_bce import (
    SparseLabels,
    backend,
    pos_weight_from_labels,
    prior_logits,
    weighted_bce_with_logits,
)
from weighted_bce import propensity_from_labels as propensity

from .label_kinds import KINDS, ON_CPU, batches, skewed
from .truth import TARGET_DTYPES
from .without_float64 import DEVICE, WithoutFloat64

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),  # "in beta state"
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
]


def pos_weight(labels: Any, *args: Any, **options: Any) -> Any:
    """Returns a tensor or, without per_class, a number."""
    return pos_weight_from_labels(labels, *args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_labels(device: str, kind: str) -> None:
    y = skewed(device)
    counts = y.double().sum(0)
    weights = (300 - counts) / counts
    weights[counts == 0] = weights[counts > 0].max()
    actual = pos_weight(KINDS[kind](y), np.int64(30))
    assert isinstance(actual, Tensor)
    assert actual.dtype == torch.float32
    assert actual.device == (torch.device("cpu") if kind in ON_CPU else y.device)
    actual = actual.to(device)
    assert torch.equal(actual, weights.float())
    limited = pos_weight(KINDS[kind](y), 30, max_weight=4.0)
    assert torch.equal(limited.to(device), weights.clamp(max=4).float())
    total = (300 * 30 - counts.sum().item()) / counts.sum().item()
    assert pos_weight(KINDS[kind](y), 30, per_class=False) == total
    for function in (propensity, prior_logits):
        assert torch.equal(function(KINDS[kind](y), 30).to(device), function(y))


@pytest.mark.parametrize(
    "kind", ["coo", "triples of tensors", "dataclasses of coo", "scipy array", "array batches"]
)
def test_the_number_of_labels_is_that_of_columns(kind: str) -> None:
    y = skewed()
    assert torch.equal(prior_logits(KINDS[kind](y)), prior_logits(y, 30))
    with pytest.raises(ValueError, match=r"^num_labels must be 30 to match labels, got 31$"):
        prior_logits(KINDS[kind](y), 31)


@pytest.mark.parametrize("kind", KINDS)
def test_another_default_device_and_dtype(kind: str) -> None:
    y = skewed()
    labels, wanted = KINDS[kind](y), pos_weight(y)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        if isinstance(labels, DataLoader):  # torch's own loader fails within it
            labels = list(labels)
        with torch.device("meta"):
            actual = pos_weight(labels, 30)
    finally:
        torch.set_default_dtype(before)
    assert (actual.device, actual.dtype) == (torch.device("cpu"), torch.float32)
    assert torch.equal(actual, wanted)


SOFT: dict[str, Callable[[Tensor], Any]] = {
    "soft": lambda y: y * torch.rand(y.shape),
    "soft half": lambda y: y.half() / 3,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ON_CPU] + [*SOFT])
def test_a_device_without_float64(kind: str) -> None:
    if kind in ("csr", "coo", "dataclasses of coo"):
        pytest.skip("the device has no sparse tensors")
    labels = {**KINDS, **SOFT}[kind](skewed())
    if not isinstance(labels, (Tensor, SparseLabels)):
        labels = list(labels)
    with WithoutFloat64():
        moved = tree_map_only(Tensor, lambda t: t.to(DEVICE), labels)
        with pytest.raises(TypeError, match="float64"):
            torch.ones(1).to(DEVICE).double()
        for function in (pos_weight, propensity, prior_logits):
            weights = function(moved, 30)
            assert (weights.device, weights.dtype) == (DEVICE, torch.float32)
            assert torch.equal(weights.cpu(), function(labels, 30))
        total = pos_weight(labels, 30, per_class=False)
        assert pos_weight(moved, 30, per_class=False) == total


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float16, torch.float32])
def test_counts_beyond_what_float32_holds(device: str, dtype: torch.dtype) -> None:
    rows = 2**24 + 11
    y = torch.zeros(rows, 1, dtype=dtype, device=device)
    y[: rows - 5] = 1
    assert pos_weight(y, per_class=False) == 5 / (2**24 + 6)
    assert pos_weight(y).item() == np.float32(5 / (2**24 + 6))


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
