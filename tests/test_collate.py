"""Batches of a DataLoader with sparse labels, made in its workers too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weighted_bce import SparseLabels, collate

from .sparse_values import assert_labels

ROWS = [[i % 7, (3 * i + 1) % 11, i % 7] if i % 4 else [] for i in range(37)]
KINDS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tensor": lambda row: torch.tensor(row, dtype=torch.int32),
    "array": np.array,
    "set": set,
}


class Sample(NamedTuple):
    name: str
    x: Tensor
    positives: Any


class Samples(Dataset[Any]):
    """Row i has features full of i."""

    def __init__(self, kind: str, form: str) -> None:
        self.kind, self.form = kind, form

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, i: int) -> Any:
        positives = KINDS[self.kind](ROWS[i])
        if self.form == "alone":
            return positives
        if self.form == "named":
            return Sample(str(i), torch.full((3,), float(i)), positives)
        return torch.full((3,), float(i)), {"i": i}, positives


def read(form: str, kind: str, **options: Any) -> None:
    """Reads all samples, twice, by a loader with these options."""
    loader = DataLoader(Samples(kind, form), batch_size=10, collate_fn=collate, **options)
    for _ in range(2):
        for first, batch in zip(range(0, 40, 10), loader, strict=True):
            rows = ROWS[first : first + 10]
            numbers = list(range(first, first + len(rows)))
            assert_labels(batch if form == "alone" else batch[-1], rows)
            if form == "tuple":
                assert type(batch) is tuple
                assert batch[0].tolist() == [[i] * 3 for i in numbers]
                assert batch[1]["i"].tolist() == numbers
            if form == "named":
                assert type(batch) is Sample
                assert list(batch.name) == list(map(str, numbers))
                assert batch.x.tolist() == [[i] * 3 for i in numbers]


@pytest.mark.parametrize("form", ["tuple", "named", "alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_workers(kind: str, form: str) -> None:
    read(form, kind)


@pytest.mark.parametrize(
    ("start", "persistent", "kind", "form"),
    [
        ("fork", True, "list", "tuple"),
        ("fork", False, "tensor", "named"),
        ("spawn", True, "array", "alone"),
        pytest.param("forkserver", False, "list", "named", marks=pytest.mark.exhaustive),
    ],
)
def test_workers(start: str, persistent: bool, kind: str, form: str) -> None:
    processes: Any = dict(num_workers=2, persistent_workers=persistent)
    pinned = torch.cuda.is_available()
    read(form, kind, **processes, multiprocessing_context=start, pin_memory=pinned)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_for_cuda() -> None:
    loader = DataLoader(Samples("list", "tuple"), 10, collate_fn=collate, pin_memory=True)
    for *_, labels in loader:
        assert type(labels) is SparseLabels
        assert all(t.is_pinned() for t in labels)


def test_alone_in_a_tuple() -> None:
    (labels,) = collate([([1, 2],), ([],)])
    assert_labels(labels, [[1, 2], []])


X = torch.zeros(2)
NO_BATCHES: list[tuple[Any, type[Exception], str]] = [
    ([SparseLabels.from_lists([[1]])], TypeError, "hold lists of labels, got SparseLabels .* 0"),
    ([], ValueError, "not be empty, got none"),
    ([()], ValueError, "be tuples of 1 .*, got 0 in sample 0"),
    ([(X, [1]), (X, X, [1])], ValueError, "be tuples of 2 .*, got 3 in sample 1"),
    ([(X, [1]), [1]], TypeError, "all be tuples like .*, got list in sample 1"),
    ([(X, 1), (X, 2)], TypeError, "hold one iterable of .*, got int in row 0"),
    ([(X, [1]), (X, [1.5])], TypeError, "hold integers, got float in row 1"),
    ([(X, torch.ones(3))], TypeError, "hold integers, got float32 in row 0"),
    ([(X, [1]), (X, [-1])], ValueError, "hold labels >= 0, got -1 in row 1"),
    ([[1], (X, [1])], TypeError, "hold integers, got .*Tensor in row 1"),
    ([{"x": X, "labels": [1]}], TypeError, "hold integers, got str in row 0"),
]


@pytest.mark.parametrize(("samples", "error", "words"), NO_BATCHES)
def test_what_is_no_batch(samples: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^samples must {words}$"):
        collate(samples)
