"""Batches of a DataLoader with sparse labels, made in its workers too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weighted_bce import SparseLabels, collate
from weighted_bce.sparse import check_form, check_indices

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


def check(labels: SparseLabels, rows: list[list[int]]) -> None:
    assert type(labels) is SparseLabels
    check_form(labels)
    check_indices(labels, 11)
    assert labels.num_rows == len(rows)
    for i, row in enumerate(rows):
        assert labels.select(slice(i, i + 1)).col_indices.tolist() == sorted(set(row))


@pytest.mark.parametrize("form", ["tuple", "named", "alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_workers(kind: str, form: str) -> None:
    read(DataLoader(Samples(kind, form), batch_size=10, collate_fn=collate), form)


def read(loader: DataLoader[Any], form: str) -> None:
    at = 0
    for batch in loader:
        rows = ROWS[at : at + 10]
        numbers = list(range(at, at + len(rows)))
        at += 10
        if form == "alone":
            check(batch, rows)
            continue
        check(batch[-1], rows)
        if form == "named":
            assert type(batch) is Sample
            assert list(batch.name) == list(map(str, numbers))
            x = batch.x
        else:
            assert type(batch) is tuple
            x = batch[0]
            assert batch[1]["i"].tolist() == numbers
        assert x.tolist() == [[i] * 3 for i in numbers]
    assert at == 40


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
    loader = DataLoader(
        Samples(kind, form),
        batch_size=10,
        collate_fn=collate,
        num_workers=2,
        persistent_workers=persistent,
        multiprocessing_context=start,
        pin_memory=torch.cuda.is_available(),
    )
    for _ in range(2):
        read(loader, form)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_for_cuda() -> None:
    loader = DataLoader(Samples("list", "tuple"), 10, collate_fn=collate, pin_memory=True)
    for *_, labels in loader:
        assert type(labels) is SparseLabels
        assert all(t.is_pinned() for t in labels)


def test_alone_in_a_tuple() -> None:
    (labels,) = collate([([1, 2],), ([],)])
    check(labels, [[1, 2], []])


def test_what_is_no_batch() -> None:
    x = torch.zeros(2)
    with pytest.raises(TypeError, match="samples must hold lists of labels, got SparseLabels in s"):
        collate([SparseLabels.from_lists([[1]])] * 2)
    bad: Any
    for bad, error, words in (
        ([], ValueError, "samples must not be empty, got none"),
        (
            [()],
            ValueError,
            "samples must be tuples of 1 .*, got 0 in sample 0",
        ),
        ([(x, [1]), (x, x, [1])], ValueError, "samples must be tuples of 2 .*, got 3 in sample 1"),
        ([(x, [1]), [1]], TypeError, "samples must all be tuples like .*, got list in sample 1"),
        ([(x, 1), (x, 2)], TypeError, "samples must hold one iterable of .*, got int in row 0"),
        ([(x, [1]), (x, [1.5])], TypeError, "samples must hold integers, got float in row 1"),
        ([(x, torch.ones(3))], TypeError, "samples must hold integers, got float32 in row 0"),
        ([(x, [1]), (x, [-1])], ValueError, "samples must hold labels >= 0, got -1 in row 1"),
        ([[1], (x, [1])], TypeError, "samples must hold integers, got .*Tensor in row 1"),
        ([{"x": x, "labels": [1]}], TypeError, "samples must hold integers, got str in row 0"),
    ):
        with pytest.raises(error, match=f"^{words}$"):
            collate(bad)
