"""Data sets of Hugging Face: a column of lists of labels becomes sparse labels."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from weighted_bce import SparseLabels, collate, pos_weight_from_labels

from .linear_models import LinearModel, dense, features, lists, sgd, train_truly
from .trainers import LABELS, transformers_trainer

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rows() -> "datasets.Dataset":
    columns = {"x": features().double().tolist(), "labels": lists(), "text": ["a"] * len(lists())}
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
@pytest.mark.parametrize("workers", [0, 2])
def test_loader(rows: "datasets.Dataset", form: str | None, workers: int) -> None:
    loader = DataLoader(rows.with_format(form), 8, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert {type(batch) for batch in batches} == {dict}
    # Without a format, a row of features is a list, of which default_collate makes columns.
    x = torch.cat([b["x"] if form else torch.stack(b["x"], 1) for b in batches])
    torch.testing.assert_close(x.double(), features().double())
    assert SparseLabels.cat(b["labels"] for b in batches).to_lists() == lists()
    assert [text for b in batches for text in b["text"]] == rows["text"][:]


def test_stream(rows: "datasets.Dataset") -> None:
    stream = rows.to_iterable_dataset(num_shards=2).with_format("torch")
    batches = list(DataLoader(stream, 8, collate_fn=collate))
    assert torch.equal(torch.cat([b["labels"].to_dense(LABELS) for b in batches]), dense())


def test_whole_column(rows: "datasets.Dataset") -> None:
    labels = SparseLabels.from_lists(rows["labels"])
    assert collate(rows["labels"]) == labels
    assert torch.equal(labels.to_dense(LABELS), dense())
    weight = pos_weight_from_labels(labels, LABELS)
    torch.testing.assert_close(weight, pos_weight_from_labels(dense()))


def test_transformers(rows: "datasets.Dataset", tmp_path: Path) -> None:
    """The Trainer drops the columns that the model does not take."""
    pytest.importorskip("transformers")
    model = LinearModel()
    arguments = {
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
    }
    data = rows.with_format("torch", columns=["x", "labels"], output_all_columns=True)
    options = {"train_dataset": data, "optimizers": (sgd(model), None)}
    transformers_trainer(model, tmp_path, arguments, **options).train()
    for p, q in zip(model.parameters(), train_truly(2)[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)  # the features were float32
