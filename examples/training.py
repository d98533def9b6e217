"""The small network, its training with one loss, and what it is worth on held-out rows."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from weighted_bce import SparseLabels

from .imports_data import Dataset
from .losses import Loss, places

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
        hidden: Tensor = self.output(torch.relu(self.embedding(*bags(features))))
        return hidden


def bags(features: csr_matrix) -> tuple[Tensor, Tensor, Tensor]:
    """What nn.EmbeddingBag takes: the features of all rows, where each row begins, the values."""
    indices = torch.from_numpy(features.indices.astype(np.int64))
    starts = torch.from_numpy(features.indptr[:-1].astype(np.int64))
    return indices, starts, torch.from_numpy(features.data.astype(np.float32))


def batches(rows: int, epochs: int, seed: int, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Row numbers batch by batch; the same for every loss."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = generator.permutation(rows)
        yield from (order[start : start + batch] for start in range(0, rows, batch))


def steps(rows: int, epochs: int, batch: int = BATCH) -> int:
    return epochs * -(-rows // batch)


def train(
    data: Dataset, loss: Loss, epochs: int, seed: int, advance: Callable[[], None]
) -> Classifier:
    """Trains a network whose first weights and batches depend on `seed` alone."""
    torch.manual_seed(seed)
    model = Classifier(data.features.shape[1], data.labels.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    labels = SparseLabels.from_scipy(data.labels)
    for rows in batches(data.labels.shape[0], epochs, seed):
        optimizer.zero_grad()
        target = labels.select(torch.from_numpy(rows))
        loss.function(model(data.features[rows]), target).backward()
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


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """sklearn's average_precision_score of one row, given where its positives are."""
    own = scores[positives]
    right = torch.stack([(own >= score).sum() for score in own])
    ranked = torch.stack([(scores >= score).sum() for score in own])
    return float((right / ranked).mean())


class Counts:
    """Running sums from which `Quality` follows."""

    def __init__(self) -> None:
        self.rows = self.hits = self.predicted = self.true = self.empty = self.ranked = 0
        self.precisions = 0.0

    def add(self, scores: Tensor, predicted: Tensor, labels: SparseLabels) -> None:
        """Counts a block of rows; scores and predicted are (rows, labels)."""
        self.rows += len(scores)
        self.hits += int(predicted[places(labels)].sum())
        self.predicted += int(predicted.sum())
        self.true += len(labels.col_indices)
        self.empty += int((~predicted.any(1)).sum())
        each = labels.col_indices.split(labels.crow_indices.diff().tolist())
        for row, own in zip(scores, each, strict=True):
            if len(own):  # the ranking of a row without labels has no precision
                self.ranked += 1
                self.precisions += average_precision(row, own)

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
    rows, width = data.labels.shape
    labels = SparseLabels.from_scipy(data.labels)
    block = max(1, BLOCK // width)
    for start in range(0, rows, block):
        some = slice(start, start + block)
        logits = model(data.features[some])
        counts.add(logits, predictions(logits, loss, positives_per_row), labels.select(some))
    return counts.quality()
