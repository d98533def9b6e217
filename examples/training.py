"""The small network, its training with one loss, and what it is worth on held-out rows."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from .imports_data import Dataset
from .losses import Loss

HIDDEN = 128
BATCH = 128
LEARNING_RATE = 3e-3
# Rows are scored in blocks of at most this many logits, however many labels there are.
BLOCK = 2**22


class Classifier(nn.Module):
    """A bag of embeddings, a ReLU, and one logit per label."""

    def __init__(self, features: int, labels: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(features, HIDDEN, mode="sum")
        self.output = nn.Linear(HIDDEN, labels)

    def forward(self, features: csr_matrix) -> Tensor:
        indices = torch.from_numpy(features.indices.astype(np.int64))
        starts = torch.from_numpy(features.indptr[:-1].astype(np.int64))
        values = torch.from_numpy(features.data.astype(np.float32))
        hidden: Tensor = self.output(torch.relu(self.embedding(indices, starts, values)))
        return hidden


def dense_target(labels: csr_matrix) -> Tensor:
    """The bool target of one batch; that of the whole data set would not fit in memory."""
    target = np.zeros(labels.shape, dtype=bool)
    target[np.repeat(np.arange(len(target)), np.diff(labels.indptr)), labels.indices] = True
    return torch.from_numpy(target)


def batches(rows: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers batch by batch; the same for every loss."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = generator.permutation(rows)
        yield from (order[start : start + BATCH] for start in range(0, rows, BATCH))


def steps(rows: int, epochs: int) -> int:
    return epochs * -(-rows // BATCH)


def train(
    data: Dataset, loss: Loss, epochs: int, seed: int, advance: Callable[[], None]
) -> Classifier:
    """Trains a network whose first weights and batches depend on `seed` alone."""
    torch.manual_seed(seed)
    model = Classifier(data.features.shape[1], data.labels.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    for rows in batches(data.labels.shape[0], epochs, seed):
        optimizer.zero_grad()
        loss.function(model(data.features[rows]), dense_target(data.labels[rows])).backward()
        optimizer.step()
        advance()
    return model


class Quality(NamedTuple):
    """Micro-averaged over all (row, label) pairs, except where a row is named."""

    precision: float
    recall: float
    f1: float
    mean_average_precision: float  # of each row's ranking of the labels, averaged over rows
    predicted_per_row: float
    true_per_row: float
    empty_rows: float  # the share of rows without a predicted label


class Counts:
    """Running sums from which `Quality` follows."""

    def __init__(self) -> None:
        self.rows = self.hits = self.predicted = self.true = self.empty = self.ranked = 0
        self.precisions = 0.0

    def add(self, scores: Tensor, predicted: Tensor, target: Tensor) -> None:
        """Counts a block of rows; all arguments are (rows, labels)."""
        self.rows += len(target)
        self.hits += int((predicted & target).sum())
        self.predicted += int(predicted.sum())
        self.true += int(target.sum())
        self.empty += int((~predicted.any(1)).sum())
        ranked = target.any(1)  # the ranking of a row without labels has no precision
        count = int(ranked.sum())
        if count:
            self.ranked += count
            self.precisions += count * average_precision_score(
                target[ranked].numpy(), scores[ranked].numpy(), average="samples"
            )

    def quality(self) -> Quality:
        return Quality(
            precision=self.hits / max(self.predicted, 1),
            recall=self.hits / max(self.true, 1),
            f1=2 * self.hits / max(self.predicted + self.true, 1),
            mean_average_precision=self.precisions / max(self.ranked, 1),
            predicted_per_row=self.predicted / max(self.rows, 1),
            true_per_row=self.true / max(self.rows, 1),
            empty_rows=self.empty / max(self.rows, 1),
        )


def predictions(logits: Tensor, loss: Loss, positives_per_row: float) -> Tensor:
    """The labels whose probability is at least half of what a positive is trained towards.

    That is 1 for the sigmoid, and for the softmax one share among `positives_per_row` positives.
    """
    if loss.kind == "categorical":
        return logits.softmax(1) >= 0.5 / positives_per_row
    return logits >= 0  # sigmoid(logits) >= 0.5


@torch.no_grad()
def evaluate(model: Classifier, data: Dataset, loss: Loss, positives_per_row: float) -> Quality:
    counts = Counts()
    rows, labels = data.labels.shape
    block = max(1, BLOCK // labels)
    for start in range(0, rows, block):
        logits = model(data.features[start : start + block])
        target = dense_target(data.labels[start : start + block])
        counts.add(logits, predictions(logits, loss, positives_per_row), target)
    return counts.quality()
