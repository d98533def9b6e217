"""Lightning: every loop of a trainer, logged losses, optimization by hand and half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch

from weighted_bce import SparseLabels, WeightedBCEWithLogitsLoss

from .linear_models import (
    LinearModel,
    assert_same_weights,
    features,
    sgd,
    train_truly,
    true_loss,
)
from .trainers import LABELS, lightning_trainer, loader

lightning = pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec"),
]
ROWS_OF_A_BATCH = 8  # the last one has 6


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, by_hand: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.model = LinearModel(dtype)
        self.automatic_optimization = not by_hand

    def training_step(self, batch: tuple[torch.Tensor, SparseLabels], index: int) -> Any:
        x, labels = batch
        loss = self.model(x, labels)["loss"]
        self.log("loss", loss, on_epoch=True, batch_size=labels.num_rows)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        x, labels = batch
        self.log("seen", self.model(x, labels)["loss"], batch_size=labels.num_rows)

    test_step = validation_step

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        x, labels = batch
        assert type(labels) is SparseLabels
        return self.model(x)["logits"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.model)


@pytest.mark.parametrize("by_hand", [False, True])
def test_fit(tmp_path: Path, by_hand: bool) -> None:
    """The loss of an epoch is that of its rows, though the last batch has fewer."""
    module = Module(by_hand)
    trainer = lightning_trainer(tmp_path, max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, loader(ROWS_OF_A_BATCH), loader())
    wanted, losses = train_truly(ROWS_OF_A_BATCH)
    assert_same_weights(module.model, wanted)
    mean = (8 * losses[0] + 8 * losses[1] + 6 * losses[2]) / 22
    assert trainer.callback_metrics["loss_epoch"].item() == pytest.approx(mean, rel=1e-6)


def test_validate_test_and_predict(tmp_path: Path) -> None:
    module = Module()
    trainer = lightning_trainer(tmp_path)
    for evaluate in (trainer.validate, trainer.test):
        (found,) = evaluate(module, loader(ROWS_OF_A_BATCH), verbose=False)
        assert found["seen"] == pytest.approx(true_loss(module.model).item(), rel=1e-6)
    predicted = torch.cat(trainer.predict(module, loader(ROWS_OF_A_BATCH)))
    torch.testing.assert_close(predicted, module.model(features())["logits"])


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_half_precision(tmp_path: Path, precision: str) -> None:
    """A weight above the largest number of float16 stays what it is."""
    module = Module(dtype=torch.float32)
    module.model.criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.full((LABELS,), 70_001.0))
    trainer = lightning_trainer(tmp_path, max_epochs=1, precision=precision)
    trainer.fit(module, loader(), loader())
    assert module.model.criterion.pos_weight.unique().item() == 70_001
    assert trainer.callback_metrics["seen"].isfinite()
    assert all(p.isfinite().all() for p in module.parameters())
