"""Transformers' Trainer, with labels that are sparse, dense or padded with -1."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from weighted_bce import SparseLabels, collate, weighted_bce_with_logits

from ..processes import Processes
from .linear_models import (
    LABELS,
    POS_WEIGHT,
    LinearModel,
    assert_same_weights,
    collate_padded,
    dense,
    features,
    sgd,
    train_truly,
    true_loss,
)
from .ranks import known_to_accelerate
from .trainers import samples_by_name, transformers_trainer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def trainer_of(model: LinearModel, folder: Path, kind: str, **options: Any) -> Any:
    """Returns a trainer that takes the rows in their order, at a constant rate."""
    arguments = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0}
    arguments |= {"num_train_epochs": 1, "lr_scheduler_type": "constant"}
    arguments |= options.pop("arguments", {})
    data: dict[str, Any] = {"train_dataset": samples_by_name()}
    if kind == "dense":
        rows = zip(features(), dense(), strict=True)
        data["train_dataset"] = [{"x": x, "labels": labels} for x, labels in rows]
    collators = {"dense": transformers.default_data_collator, "padded": collate_padded}
    data["data_collator"] = collators.get(kind, collate)
    data["eval_dataset"] = data["train_dataset"]
    optimizers = (sgd(model), None)
    return transformers_trainer(model, folder, arguments, optimizers=optimizers, **data, **options)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(samples_by_name())


class CountsRows(transformers.Trainer):  # type: ignore[misc]
    """Counts elements by rows: the Trainer does not count sparse labels, and counts the padding."""

    def get_batch_samples(self, *arguments: Any) -> Any:
        batches, _ = super().get_batch_samples(*arguments)
        items = sum(len(batch["x"]) for batch in batches) * LABELS
        return batches, self.accelerator.gather(torch.tensor(items)).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        items = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, return_outputs, items)


def loss_of_items(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs["logits"]
    items = logits.numel() if num_items_in_batch is None else num_items_in_batch
    if isinstance(labels, torch.Tensor) and labels.shape != logits.shape:
        labels = SparseLabels.from_padded(labels)
    return weighted_bce_with_logits(logits, labels, pos_weight=POS_WEIGHT, normalizer=items)


def trainer_of_items(model: LinearModel, folder: Path, kind: str, rows: int, parts: int) -> Any:
    """Returns a trainer whose steps have so many rows on each process, in parts."""
    arguments = {
        "per_device_train_batch_size": rows // parts,
        "gradient_accumulation_steps": parts,
    }
    base = {} if kind == "dense" else {"base": CountsRows}
    options = {"arguments": arguments, "compute_loss_func": loss_of_items, **base}
    return trainer_of(model, folder, kind, **options)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", ["dense", "sparse", "padded"])
def test_accumulation_is_the_large_batch(tmp_path: Path, kind: str, accumulate: int) -> None:
    """Its last group has 3 micro-batches. The loss is divided by the items of the group."""
    model = LinearModel()
    loss = trainer_of_items(model, tmp_path, kind, 8, accumulate).train().training_loss
    wanted, losses = train_truly(8)
    assert_same_weights(model, wanted)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)  # summed in float32


@pytest.mark.parametrize("kind", ["dense", "sparse", "padded"])
def test_the_model_computes_the_loss(tmp_path: Path, kind: str) -> None:
    model = LinearModel()
    trainer_of(model, tmp_path, kind, arguments={"per_device_train_batch_size": 2}).train()
    assert_same_weights(model, train_truly(2)[0])


@pytest.mark.parametrize("kind", ["dense", "sparse", "padded"])
def test_evaluation_without_predictions(tmp_path: Path, kind: str) -> None:
    """The last batch has 6 of 8 rows, and each row counts as much as any other."""
    arguments = {"per_device_eval_batch_size": 8, "prediction_loss_only": True}
    model = LinearModel()
    found = trainer_of(model, tmp_path, kind, arguments=arguments).evaluate()
    assert found["eval_loss"] == pytest.approx(true_loss(model).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["dense", "sparse", "padded"])
def test_evaluation_by_a_loss_function(tmp_path: Path, kind: str) -> None:
    """It has the scale of the training loss, though batches of padded labels differ in width."""
    model = LinearModel()
    trainer = trainer_of_items(model, tmp_path, kind, 8, 2)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(true_loss(model).item(), rel=1e-6)


def test_a_stream_of_sparse_labels(tmp_path: Path) -> None:
    """Each process takes its own batches. By default the Trainer cuts them, tensor by tensor."""
    arguments: dict[str, Any] = {"max_steps": 11, "per_device_train_batch_size": 2}
    model = LinearModel()
    trainer = trainer_of(model, tmp_path, "sparse", arguments=arguments)
    trainer.train_dataset = Stream()
    with pytest.raises(ValueError, match=r"target must have 2 rows to match input, got 1"):
        trainer.train()
    arguments["accelerator_config"] = {"dispatch_batches": False}
    trainer = trainer_of(model, tmp_path, "sparse", arguments=arguments)
    trainer.train_dataset = Stream()
    trainer.train()
    assert_same_weights(model, train_truly(2)[0])


def largest_logit(prediction: Any) -> dict[str, float]:
    """A metric that also compares the labels with those of all rows in their order."""
    labels = torch.from_numpy(prediction.label_ids)
    if labels.shape[1] != LABELS:  # joined batches of several widths are padded with -100
        labels = SparseLabels.from_padded(labels.clamp(min=-1)).to_dense(LABELS)
    assert torch.equal(labels.bool(), dense())
    return {"largest": float(prediction.predictions.max())}


def assert_gathers(folder: Path, kind: str, rows: int) -> None:
    """Asserts that metrics see all rows once, where batches have so many rows."""
    arguments = {"per_device_eval_batch_size": rows, "label_names": ["labels"]}
    model = LinearModel()
    trainer = trainer_of(model, folder, kind, arguments=arguments, compute_metrics=largest_logit)
    largest = model(features())["logits"].max().item()
    assert trainer.evaluate()["eval_largest"] == pytest.approx(largest)
    assert trainer.predict(trainer.eval_dataset).metrics["test_largest"] == pytest.approx(largest)


@pytest.mark.parametrize("kind", ["dense", "padded"])
def test_metrics_of_gathered_predictions(tmp_path: Path, kind: str) -> None:
    assert_gathers(tmp_path, kind, 8)


def in_processes(processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, known_to_accelerate(processes):
        for kind in ("dense", "sparse", "padded"):
            model = LinearModel()
            trainer = trainer_of_items(model, Path(folder), kind, 8 // processes, 2)
            assert trainer.args.world_size == processes
            trainer.train_dataset = trainer.train_dataset[:16]
            trainer.train()
            assert_same_weights(model, train_truly(8, rows=16)[0])
            found = trainer.evaluate(trainer.train_dataset)["eval_loss"]
            assert found == pytest.approx(true_loss(model, slice(16)).item(), rel=1e-6)
        assert_gathers(Path(folder), "padded", 4)


def test_sharded_rows(processes: Processes) -> None:
    """Their items are those of all processes, and predictions are gathered."""
    processes(in_processes)


def test_metrics_of_whole_sparse_labels(tmp_path: Path) -> None:
    """What is computed of a batch, before the Trainer joins batches, sees its sparse labels."""

    def hits(logits: torch.Tensor, labels: SparseLabels) -> torch.Tensor:
        return labels.to_dense(LABELS).gather(1, logits.topk(5).indices).sum(1)

    model = LinearModel()
    trainer = trainer_of(
        model,
        tmp_path,
        "sparse",
        arguments={"per_device_eval_batch_size": 8},
        preprocess_logits_for_metrics=hits,
        compute_metrics=lambda found: {"precision": float(found.predictions.mean() / 5)},
    )
    best = model(features())["logits"].topk(5).indices
    precision = dense().gather(1, best).double().mean().item()
    assert trainer.evaluate()["eval_precision"] == pytest.approx(precision)
    assert precision > 0


@pytest.mark.parametrize("kind", ["sparse", "padded"])
def test_goes_on_from_a_checkpoint(tmp_path: Path, kind: str) -> None:
    arguments = {"num_train_epochs": 2, "save_strategy": "epoch"}
    trainer_of(LinearModel(), tmp_path, kind, arguments=arguments).train()
    model = LinearModel()
    trainer = trainer_of(model, tmp_path, kind, arguments=arguments)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))
    assert_same_weights(model, train_truly(2, epochs=2)[0])


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("kind", ["sparse", "padded"])
def test_torch_compile(tmp_path: Path, kind: str, compiler: str) -> None:
    arguments = {"torch_compile": True, "torch_compile_backend": compiler}
    model = LinearModel()
    trainer_of(model, tmp_path, kind, arguments=arguments).train()
    assert_same_weights(model, train_truly(2)[0])


def test_what_tokenizers_give() -> None:
    batch = collate([transformers.BatchEncoding(sample) for sample in samples_by_name()])
    assert type(batch) is transformers.BatchEncoding
    assert torch.equal(batch["labels"].to_dense(LABELS), dense())
    assert torch.equal(batch["x"], features())
