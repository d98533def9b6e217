"""A small model, and how accelerate, Lightning, its Fabric and Transformers train it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from weighted_bce import (
    ChainedOptimizer,
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    collate,
)

FEATURES, HIDDEN, LABELS = 6, 12, 150
BATCHES = 11  # of 2 samples each, so that the last of the groups of 4 has 3
KINDS = ("adam", "sgd", "chained")
SGD_OPTIONS = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
ADAM_OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


class Classifier(nn.Module):
    """An encoder and a classifier with its loss."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU())
            self.criterion = LinearWeightedBCEWithLogitsLoss(
                HIDDEN, LABELS, pos_weight=3.0, reduction="batchmean", chunk_labels=40
            )

    def forward(self, x: Tensor, labels: SparseLabels) -> dict[str, Tensor]:
        return {"loss": self.criterion(self.encoder(x), labels)}


def samples() -> list[tuple[Tensor, list[int]]]:
    generator = torch.Generator().manual_seed(2)
    xs = torch.randn(2 * BATCHES, FEATURES, generator=generator)
    labels = torch.randint(LABELS, (2 * BATCHES, 5), generator=generator)
    return [(x, sorted({*row})) for x, row in zip(xs, labels.tolist(), strict=True)]


def samples_by_name() -> list[dict[str, Any]]:
    """The samples as Transformers wants them, with the names of the arguments of the model."""
    return [{"x": x, "labels": labels} for x, labels in samples()]


def loader(batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(samples(), batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


def optimizer_of(model: Classifier, kind: str, in_chunks: bool, **options: Any) -> Any:
    """Returns one optimizer of all parameters: a fused one, or the ordinary one of the same kind.

    Args:
        model: its classifier gets the fused optimizer as its fused step.
        kind: one of `KINDS`. "chained" holds an AdamW of the encoder and an SGD of the classifier.
        in_chunks: whether the optimizer of the classifier is a fused one.
        options: of the optimizer of the classifier.
    """
    sgd: Any = partial(FusedSGD if in_chunks else SGD, **SGD_OPTIONS, **options)
    adam: Any = partial(FusedAdam, decoupled_weight_decay=True) if in_chunks else AdamW
    if kind == "adam":
        optimizer = step = adam(model.parameters(), **ADAM_OPTIONS, **options)
    elif kind == "sgd":
        optimizer = step = sgd(model.parameters())
    else:
        step = sgd(model.criterion.parameters())
        optimizer = ChainedOptimizer([AdamW(model.encoder.parameters(), **ADAM_OPTIONS), step])
    if in_chunks:
        model.criterion.fused_step = step
    return optimizer


@dataclass
class Run:
    """A model in training. The learning rate falls with each step."""

    model: Classifier
    optimizer: Optimizer
    folder: Path  # for what a library writes
    clip: float | None = None
    accumulate: int = 1
    epochs: int = 2
    saves: bool = False
    resumes: bool = False  # after the first epoch, which another run has saved in the folder
    more: dict[str, Any] = field(default_factory=dict)  # options of Lightning's Trainer
    steps: int = 0

    def __post_init__(self) -> None:
        self.scheduler = LambdaLR(self.optimizer, lambda n: 0.9**n)
        self.optimizer.register_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self.steps += 1


def with_torch(run: Run) -> None:
    file = run.folder / "state.pt"
    parts = run.model, run.optimizer, run.scheduler
    if run.resumes:
        for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
    for _ in range(run.resumes, run.epochs):
        for i, (x, labels) in enumerate(loader(), 1):
            (run.model(x, labels)["loss"] / run.accumulate).backward()
            if i % run.accumulate == 0 or i == BATCHES:
                if run.clip is not None:
                    nn.utils.clip_grad_norm_(run.model.parameters(), run.clip)
                run.optimizer.step()
                run.scheduler.step()
                run.optimizer.zero_grad()
    if run.saves:
        torch.save([part.state_dict() for part in parts], file)


def with_accelerate(run: Run) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=run.accumulate)
    model, optimizer, scheduler, batches = accelerator.prepare(
        run.model, run.optimizer, run.scheduler, loader()
    )
    if run.resumes:
        accelerator.load_state(str(run.folder / "state"))
    for _ in range(run.resumes, run.epochs):
        for x, labels in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(x, labels)["loss"])
                if accelerator.sync_gradients and run.clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), run.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    if run.saves:
        accelerator.save_state(str(run.folder / "state"))


def with_fabric(run: Run) -> None:
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": run.scheduler}
    file = run.folder / "state.ckpt"
    if run.resumes:
        fabric.load(file, state)
    batches = fabric.setup_dataloaders(loader())
    for _ in range(run.resumes, run.epochs):
        for i, (x, labels) in enumerate(batches, 1):
            is_last = i % run.accumulate == 0 or i == BATCHES
            with fabric.no_backward_sync(model, enabled=not is_last):
                fabric.backward(model(x, labels)["loss"] / run.accumulate)
            if is_last:
                if run.clip is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=run.clip)
                optimizer.step()
                run.scheduler.step()
                optimizer.zero_grad()
    if run.saves:
        fabric.save(file, state)


def with_lightning(run: Run) -> None:
    scheduler = {"scheduler": run.scheduler, "interval": "step"}
    module = lightning_module(run.model, {"optimizer": run.optimizer, "lr_scheduler": scheduler})
    trainer = lightning_trainer(
        run.folder,
        max_epochs=run.epochs,
        gradient_clip_val=run.clip,
        accumulate_grad_batches=run.accumulate,
        **run.more,
    )
    file = run.folder / "state.ckpt"
    trainer.fit(module, loader(), ckpt_path=file if run.resumes else None)
    if run.saves:
        trainer.save_checkpoint(file)


def lightning_module(model: Classifier, optimizers: Any) -> Any:
    """Returns a module; a list of optimizers is used by hand."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.automatic_optimization = not isinstance(optimizers, list)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(*batch)["loss"]
            if not self.automatic_optimization:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def configure_optimizers(self) -> Any:
            return optimizers

    return Module()


def lightning_trainer(folder: Path, **options: Any) -> Any:
    """Returns a trainer that writes to `folder` only, and nothing to the terminal."""
    lightning = pytest.importorskip("lightning")
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def with_transformers(run: Run) -> None:
    trainer = transformers_trainer(
        run.model,
        run.folder,
        {
            "num_train_epochs": run.epochs,
            "max_grad_norm": run.clip or 0.0,
            "gradient_accumulation_steps": run.accumulate,
            "save_strategy": "epoch" if run.saves else "no",
        },
        optimizers=(run.optimizer, run.scheduler),
    )
    trainer.train(resume_from_checkpoint=run.resumes)


def transformers_trainer(
    model: nn.Module, folder: Path, arguments: dict[str, Any], **options: Any
) -> Any:
    """Returns a trainer that writes to `folder` only, and nothing to the terminal.

    It makes the optimizer that `options` describe the fused step.
    """
    transformers = pytest.importorskip("transformers")

    class Trainer(options.pop("base", transformers.Trainer)):  # type: ignore[misc]
        def create_optimizer(self, model: Any = None) -> Any:
            optimizer = super().create_optimizer(model)
            if isinstance(optimizer, FusedAdam):
                self.model.criterion.fused_step = optimizer
            return optimizer

    defaults = {
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
        "save_strategy": "no",
    }
    training_arguments = transformers.TrainingArguments(str(folder), **{**defaults, **arguments})
    data = {"data_collator": collate, "train_dataset": samples_by_name()}
    trainer = Trainer(model, training_arguments, **{**data, **options})
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


TRAINERS: dict[str, Callable[[Run], None]] = {
    "torch": with_torch,
    "accelerate": with_accelerate,
    "fabric": with_fabric,
    "lightning": with_lightning,
    "transformers": with_transformers,
}
