"""One small network, trained and judged with each loss."""

import argparse

import numpy as np
import torch
from rich.progress import Progress
from scipy.sparse import csr_matrix
from sklearn.metrics import label_ranking_average_precision_score
from torch import Tensor, nn

from tools.command import progress_on

from . import report
from .data import Dataset, read
from .losses import LOSSES, Loss, peak_bytes, step_milliseconds
from .program import consoles
from .report import Result
from .training import BATCH, LEARNING_RATE, Encoder, train

HIDDEN = 128
# Rows are scored in blocks of at most this many logits, however many labels there are.
BLOCK = 2**22
# The logits of the measured step: with very many labels they have fewer rows.
COST_ROWS, COST_ELEMENTS = 1024, 2**26


def run(options: argparse.Namespace) -> None:
    console, notes = consoles()
    options.out.mkdir(parents=True, exist_ok=True)
    data = read(options.data, options.files, options.seed, progress_on(notes))
    about, labels = data.describe(), data.labels.shape[1]
    console.print(about, highlight=False)
    some, held_out = data.split(options.seed)
    rows = max(1, min(COST_ROWS, COST_ELEMENTS // labels))
    shape = (rows, labels, some.positives_per_row)
    with progress_on(notes) as progress:
        qualities = []
        for loss in LOSSES:
            model = fit(some, loss, options.epochs, options.seed, progress)
            qualities.append(evaluate(model, held_out, loss, some.positives_per_row))
        milliseconds = step_milliseconds(LOSSES, *shape)
        costs = progress.track(LOSSES, description="memory of a step")
        peaks = [peak_bytes(loss, *shape) for loss in costs]
    results = [
        Result(loss.name, loss.kind, loss.pos_weight, *quality, *cost)
        for loss, quality, *cost in zip(LOSSES, qualities, milliseconds, peaks, strict=True)
    ]
    console.print(report.table(results, *shape))
    saved = report.picture(results, about, labels, options.out)
    report.save_json(results, about, rows, labels, options.out / "sparse_labels.json")
    for line in (*report.answers(results, labels), f"Picture: {saved[0]} and {saved[1].name}"):
        console.print(line, highlight=False, soft_wrap=True)


def fit(data: Dataset, loss: Loss, epochs: int, seed: int, progress: Progress) -> nn.Module:
    """Trains a network whose first weights and batches depend on `seed` alone."""
    torch.manual_seed(seed)
    encoder = Encoder(data.features.shape[1], HIDDEN)
    model = nn.Sequential(encoder, nn.Linear(HIDDEN, data.labels.shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)

    def loss_of(rows: np.ndarray) -> Tensor:
        features, labels = data.at(rows)
        return loss.function(model(features), labels)

    batches = list(data.batches(epochs, seed, BATCH))
    steps = train(loss_of, [optimizer], batches)
    for _ in progress.track(steps, len(batches), description=loss.name):
        pass
    return model


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Dataset, loss: Loss, positives_per_row: float
) -> tuple[float, ...]:
    """Those of a Result's numbers that say how good the predictions are."""
    rows, width = data.labels.shape
    counts = []
    for block in data.blocks(max(1, BLOCK // width)):
        logits = model(data.features[block])
        predicted = predictions(logits, loss, positives_per_row)
        counts.append(counted(logits.numpy(), predicted.numpy(), data.labels[block]))
    return quality(rows, counts)


def predictions(logits: Tensor, loss: Loss, positives_per_row: float) -> Tensor:
    """The labels whose probability is at least half of what a positive is trained towards.

    That is 1 for the sigmoid, and for the softmax one share among `positives_per_row` positives.
    """
    if loss.kind == "categorical":
        return logits.softmax(1) >= 0.5 / positives_per_row
    return logits >= 0  # sigmoid(logits) >= 0.5


def counted(scores: np.ndarray, predicted: np.ndarray, labels: csr_matrix) -> list[float]:
    """The sums over a block of rows that `quality` takes; scores, predicted: (rows, labels)."""
    hits, empty = predicted[labels.nonzero()].sum(), (~predicted.any(1)).sum()
    # The ranking of a row without labels has no precision.
    own = np.diff(labels.indptr) > 0
    ranked = own.sum()
    mean = label_ranking_average_precision_score(labels[own], scores[own]) if ranked else 0
    return [hits, predicted.sum(), labels.nnz, empty, mean * ranked, ranked]


def quality(rows: int, counts: list[list[float]]) -> tuple[float, ...]:
    hits, predicted, true, empty, precisions, ranked = np.sum(counts, 0).tolist()
    micro = hits / max(predicted, 1), hits / max(true, 1), 2 * hits / max(predicted + true, 1)
    return (*micro, precisions / max(ranked, 1), predicted / rows, true / rows, empty / rows)
