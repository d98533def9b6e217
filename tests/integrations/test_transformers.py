"""Transformers' Trainer, with labels that are sparse, dense or padded with -1."""

from pathlib import Path
from typing import Any

import pytest
import torch

from weighted_bce import SparseLabels, weighted_bce_with_logits

from .linear_models import (
    LABELS,
    POS_WEIGHT,
    LinearModel,
    assert_same_weights,
    dense,
    features,
    padded,
    sgd,
    train_truly,
    true_loss,
)
from .trainers import samples_by_name, transformers_trainer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def trainer_of(model: LinearModel, folder: Path, kind: str, **options: Any) -> Any:
    """Returns a trainer that takes the rows in their order, at a constant rate."""
    arguments = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0}
    arguments |= {"num_train_epochs": 1, "lr_scheduler_type": "constant"}
    arguments |= options.pop("arguments", {})
    data: dict[str, Any] = {"train_dataset": samples_by_name()}
    if kind != "sparse":
        labels = {"dense": dense, "padded": padded}[kind]()
        data["train_dataset"] = [
            {"x": x, "labels": row} for x, row in zip(features(), labels, strict=True)
        ]
        data["data_collator"] = transformers.default_data_collator
    data["eval_dataset"] = data["train_dataset"]
    optimizers = (sgd(model), None)
    return transformers_trainer(model, folder, arguments, optimizers=optimizers, **data, **options)


class CountsRows(transformers.Trainer):  # type: ignore[misc]
    """Counts the elements of sparse labels, of which the Trainer knows no number."""

    def get_batch_samples(self, *arguments: Any) -> Any:
        batches, _ = super().get_batch_samples(*arguments)
        return batches, sum(batch["labels"].num_rows for batch in batches) * LABELS


def loss_of_items(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    if isinstance(labels, torch.Tensor) and labels.shape != outputs["logits"].shape:
        labels = SparseLabels.from_padded(labels)
    return weighted_bce_with_logits(
        outputs["logits"], labels, pos_weight=POS_WEIGHT, normalizer=num_items_in_batch
    )


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_accumulation_is_the_large_batch(tmp_path: Path, kind: str, accumulate: int) -> None:
    """Its last group has 3 micro-batches. The loss is divided by the items of the group."""
    arguments = {
        "per_device_train_batch_size": 8 // accumulate,
        "gradient_accumulation_steps": accumulate,
    }
    model = LinearModel()
    base = {"base": CountsRows} if kind == "sparse" else {}
    options = {"arguments": arguments, "compute_loss_func": loss_of_items, **base}
    loss = trainer_of(model, tmp_path, kind, **options).train().training_loss
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


@pytest.mark.parametrize("kind", ["dense", "padded"])
def test_metrics_of_gathered_predictions(tmp_path: Path, kind: str) -> None:
    def compute_metrics(prediction: Any) -> dict[str, float]:
        labels = torch.from_numpy(prediction.label_ids)
        if kind == "padded":
            labels = SparseLabels.from_padded(labels).to_dense(LABELS)
        assert torch.equal(labels.bool(), dense())
        return {"largest": float(prediction.predictions.max())}

    arguments = {"per_device_eval_batch_size": 8, "label_names": ["labels"]}
    model = LinearModel()
    options = {"arguments": arguments, "compute_metrics": compute_metrics}
    trainer = trainer_of(model, tmp_path, kind, **options)
    largest = model(features())["logits"].max().item()
    assert trainer.evaluate()["eval_largest"] == pytest.approx(largest)
    assert trainer.predict(trainer.eval_dataset).metrics["test_largest"] == pytest.approx(largest)


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
