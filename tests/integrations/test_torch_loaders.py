"""What torch's own loaders do with sparse labels: pin them, collate them and move them."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from weighted_bce import SparseLabels, collate

from .linear_models import LinearModel, dense, lists
from .trainers import LABELS, loader, samples


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The tensors that were pinned, on a machine without an accelerator too."""
    tensors: list[torch.Tensor] = []

    def pin(self: torch.Tensor, *_: Any) -> torch.Tensor:
        tensors.append(self.clone())
        return tensors[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return tensors


class Batch(NamedTuple):
    x: torch.Tensor
    labels: SparseLabels


def test_pinned_batches(pinned: list[torch.Tensor]) -> None:
    x, labels = next(iter(loader()))
    for batch in ((x, labels), [x, labels], {"x": x, "labels": labels}, Batch(x, labels)):
        pinned.clear()
        copied = pin_memory(batch)
        assert type(copied) is type(batch)
        copied = copied["labels"] if isinstance(copied, dict) else copied[1]
        assert type(copied) is SparseLabels
        assert [t is p for t, p in zip(copied, pinned[1:], strict=True)] == [True, True]
        assert torch.equal(copied.to_dense(LABELS), labels.to_dense(LABELS))


def test_default_collate_keeps_made_batches() -> None:
    """A loader without batches, of a data set that makes them, converts and keeps its items."""
    batches = list(loader())
    found = list(DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert all(type(labels) is SparseLabels for _, labels in found)
    assert torch.equal(torch.cat([labels.to_dense(LABELS) for _, labels in found]), dense())


def test_default_collate_of_sparse_labels_is_named() -> None:
    """It stacks the fields of rows with equally many positives, which is no CSR form."""
    rows = [SparseLabels.from_lists([[i]]) for i in range(3)]
    stacked = default_collate(rows)
    with pytest.raises((TypeError, ValueError), match=r"crow_indices|one-dimensional|2-d|1-d"):
        LinearModel().criterion(torch.zeros(3, LABELS), stacked)


def test_default_collate_of_padded_rows() -> None:
    """Padded rows of one width need no collate function."""
    width = max(map(len, lists()))
    rows = [torch.tensor(row + [-1] * (width - len(row))) for row in lists()]
    labels = SparseLabels.from_padded(default_collate(rows))
    assert torch.equal(labels.to_dense(LABELS), dense())


class Labelled(Dataset[Any]):
    """Rows of sparse labels in memory, which `__getitems__` picks for a batch at once."""

    def __init__(self) -> None:
        self.x = torch.stack([x for x, _ in samples()])
        self.labels = SparseLabels.from_lists(lists())

    def __len__(self) -> int:
        return self.labels.num_rows

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, SparseLabels]:
        return self.x[rows], self.labels.select(torch.tensor(rows))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_memory(workers: int) -> None:
    """Workers send sparse labels through shared memory as they are."""
    batches = DataLoader(Labelled(), 8, collate_fn=lambda batch: batch, num_workers=workers)
    found = [labels.to_dense(LABELS) for _, labels in batches]
    assert torch.equal(torch.cat(found), dense())


def test_workers_collate() -> None:
    data: Any = samples()
    batches = DataLoader(data, 8, collate_fn=collate, num_workers=2, persistent_workers=True)
    for _ in range(2):
        found = [labels.to_dense(LABELS) for _, labels in batches]
        assert torch.equal(torch.cat(found), dense())
