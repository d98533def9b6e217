"""Accelerate in two processes: prepared, split and dispatched loaders, and what it gathers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from weighted_bce import SparseLabels, collate

from ..processes import Processes
from .linear_models import (
    LinearModel,
    assert_same_weights,
    dense,
    features,
    lists,
    padded,
    sgd,
    train_truly,
    true_loss,
)
from .ranks import known_to_accelerate
from .trainers import LABELS, samples

pytest.importorskip("accelerate")


@contextmanager
def accelerator_of(processes: int, **options: Any) -> Iterator[Any]:
    """An Accelerator of the processes that run; its options are those of its loaders."""
    import accelerate
    from accelerate.utils import DataLoaderConfiguration

    with known_to_accelerate(processes):
        loaders = DataLoaderConfiguration(**options)
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=loaders)
        assert accelerator.num_processes == processes
        yield accelerator


class Stream(IterableDataset[Any]):
    """The samples, which have no number and no length, with padded labels or with lists of them."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __iter__(self) -> Iterator[Any]:
        return zip(features(), self.labels, strict=True)


def train(accelerator: Any, loader: Any) -> tuple[LinearModel, int]:
    """Returns the model after an epoch, and the number of rows that this process has seen."""
    model, rows = LinearModel(), 0
    prepared, optimizer, batches = accelerator.prepare(model, sgd(model), loader)
    for x, labels in batches:
        optimizer.zero_grad()
        accelerator.backward(prepared(x, labels)["loss"])
        optimizer.step()
        rows += len(x)
    return model, rows


def prepared(processes: int) -> None:
    """Each process takes batches of its own, and the mean over processes is the mean of both."""
    loader = DataLoader(samples()[:20], batch_size=5, collate_fn=collate)
    with accelerator_of(processes) as accelerator:
        model, rows = train(accelerator, loader)
    assert rows * processes == 20
    assert_same_weights(model, train_truly(5 * processes, rows=20)[0])


def split(processes: int) -> None:
    loader = DataLoader(samples()[:20], batch_size=4, collate_fn=collate)
    with accelerator_of(processes, split_batches=True) as accelerator:
        model, rows = train(accelerator, loader)
    assert rows * processes == 20
    assert_same_weights(model, train_truly(4, rows=20)[0])


def dispatched(processes: int) -> None:
    """The first process reads a stream, and sends the others their rows."""
    for options in ({}, {"split_batches": True}):
        batch_size = 4 if options else 4 // processes
        with accelerator_of(processes, dispatch_batches=True, **options) as accelerator:
            model, rows = train(
                accelerator, DataLoader(Stream(padded()), batch_size, drop_last=True)
            )
        assert rows * processes == 20
        assert_same_weights(model, train_truly(4, rows=20)[0])


def streamed(processes: int) -> None:
    """Each process takes every other batch of a stream, with sparse labels."""
    loader = DataLoader(Stream(lists()), 4 // processes, drop_last=True, collate_fn=collate)
    with accelerator_of(processes, dispatch_batches=False) as accelerator:
        model, rows = train(accelerator, loader)
    assert rows * processes == 20
    assert_same_weights(model, train_truly(4, rows=20)[0])


def gathered(processes: int) -> None:
    """Rows that a process has taken twice to complete its last batch count once."""
    model = LinearModel()
    loader = DataLoader(TensorDataset(features(), padded()), batch_size=4)
    with accelerator_of(processes) as accelerator, torch.no_grad():
        loader = accelerator.prepare(loader)
        found = [
            accelerator.gather_for_metrics((model(x)["logits"], labels)) for x, labels in loader
        ]
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    torch.testing.assert_close(logits, model(features())["logits"])
    labels = SparseLabels.from_padded(labels)
    assert torch.equal(labels.to_dense(LABELS), dense())
    torch.testing.assert_close(model.criterion(logits, labels), true_loss(model))


def joined_fields_are_named(processes: int) -> None:
    """Accelerate joins the fields, not the rows; equally many positives do not hide it."""
    labels = SparseLabels.from_lists([[dist.get_rank()], [7]])
    with accelerator_of(processes) as accelerator:
        joined = accelerator.gather(labels)
        padded = accelerator.pad_across_processes(labels)
    assert type(joined) is SparseLabels
    rows = 2 * processes
    logits = torch.zeros(rows, LABELS)
    words = f"crow_indices must |must have {rows} rows to match input, got {3 * processes - 1}"
    for use in (
        lambda: LinearModel().criterion(logits, joined),
        lambda: joined.to_dense(LABELS),
        lambda: joined.select(torch.tensor([0])),
    ):
        with pytest.raises(ValueError, match=words):
            use()
    assert torch.equal(padded.to_dense(LABELS), labels.to_dense(LABELS))


CHECKS = [prepared, split, dispatched, streamed, gathered, joined_fields_are_named]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_processes(processes: Processes, check: Any) -> None:
    processes(check)
