"""A linear model, and the loss and the weights that plain torch and float64 find for it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_bce import SparseLabels, WeightedBCEWithLogitsLoss

from .trainers import BATCHES, FEATURES, LABELS, samples, samples_by_name

POS_WEIGHT = 3.0
LEARNING_RATE = 0.5


def features() -> Tensor:
    return torch.stack([x for x, _ in samples()])


def lists() -> list[list[int]]:
    return [labels for _, labels in samples()]


def dense() -> Tensor:
    return SparseLabels.from_lists(lists()).to_dense(LABELS)


def padded() -> Tensor:
    """The labels as a matrix, with -1 behind those of a row."""
    return collate_padded(samples_by_name())["labels"]


def collate_padded(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Makes a batch of samples by name, as wide as its longest row of labels."""
    rows = [torch.tensor(sample["labels"], dtype=torch.int64) for sample in batch]
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return {"x": torch.stack([sample["x"] for sample in batch]), "labels": labels}


class LinearModel(nn.Module):
    """Returns the logits, and with labels also the loss, as the models of Transformers do."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, LABELS, dtype=dtype)
        self.criterion = WeightedBCEWithLogitsLoss(pos_weight=POS_WEIGHT)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, LABELS * FEATURES).view(LABELS, -1))
            self.linear.bias.fill_(-1.0)

    def forward(self, x: Tensor, labels: Any = None) -> dict[str, Tensor]:
        logits = self.linear(x.to(self.linear.weight.dtype))
        if labels is None:
            return {"logits": logits}
        if isinstance(labels, Tensor) and labels.shape != logits.shape:
            labels = SparseLabels.from_padded(labels)
        return {"loss": self.criterion(logits, labels), "logits": logits}


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), LEARNING_RATE)


def true_loss(model: LinearModel, rows: slice = slice(None)) -> Tensor:
    """The loss of these rows, by torch."""
    logits = F.linear(features()[rows].double(), model.linear.weight, model.linear.bias)
    weight = torch.tensor(POS_WEIGHT, dtype=torch.float64)
    target = dense()[rows].double()
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


def train_truly(
    batch_size: int, *, epochs: int = 1, rows: int = 2 * BATCHES
) -> tuple[LinearModel, list[float]]:
    """Trains on the first rows in their order; returns the model and the loss of each step."""
    model, losses = LinearModel(), []
    optimizer = sgd(model)
    for _ in range(epochs):
        for begin in range(0, rows, batch_size):
            loss = true_loss(model, slice(begin, min(begin + batch_size, rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, losses


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
