"""One small network, trained and judged with each loss."""

import argparse

import torch
from rich.console import Console
from rich.progress import Progress
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from tools.command import progress_on
from weighted_bce import SparseLabels

from . import report
from .data import Dataset, dataset_of_file
from .losses import LOSSES, Loss, peak_bytes, places, step_milliseconds
from .program import consoles
from .python_imports import imports_of_environment
from .report import Quality, Result, Shape
from .training import LEARNING_RATE, Encoder, batches, train

HIDDEN = 128
# Rows are scored in blocks of at most this many logits, however many labels there are.
BLOCK = 2**22
# The logits of the measured step: with very many labels they have fewer rows.
COST_ROWS, COST_ELEMENTS = 1024, 2**26


def run(options: argparse.Namespace) -> None:
    console, notes = consoles()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        data = imports_of_environment(options.files, options.seed, progress_on(notes))
    else:
        data = dataset_of_file(options.data, options.files)
    about, labels = data.describe(), data.labels.shape[1]
    console.print(about, highlight=False)
    some, held_out = data.split(options.seed)
    shape = Shape(max(1, min(COST_ROWS, COST_ELEMENTS // labels)), labels)
    results = compare(some, held_out, shape, options.epochs, options.seed, notes)
    console.print(report.table(results, shape, some.positives_per_row))
    saved = report.picture(results, about, labels, options.out)
    report.save_json(results, about, shape, options.out / "sparse_labels.json")
    for line in (*report.answers(results, labels), f"Picture: {saved[0]} and {saved[1].name}"):
        console.print(line, highlight=False, soft_wrap=True)


def compare(
    data: Dataset, held_out: Dataset, shape: Shape, epochs: int, seed: int, notes: Console
) -> list[Result]:
    """Trains and judges with every loss, then measures what a step of each costs."""
    positives = data.positives_per_row
    with progress_on(notes) as progress:
        qualities = []
        for loss in LOSSES:
            model = fit(data, loss, epochs, seed, progress)
            qualities.append(evaluate(model, held_out, loss, positives))
        milliseconds = step_milliseconds(LOSSES, *shape, positives)
        costs = progress.track(LOSSES, description="memory of a step")
        peaks = [peak_bytes(loss, *shape, positives) for loss in costs]
    return [Result(*each) for each in zip(LOSSES, qualities, milliseconds, peaks, strict=True)]


def fit(data: Dataset, loss: Loss, epochs: int, seed: int, progress: Progress) -> nn.Module:
    """Trains a network whose first weights and batches depend on `seed` alone."""
    torch.manual_seed(seed)
    rows, features = data.features.shape
    model = nn.Sequential(Encoder(features, HIDDEN), nn.Linear(HIDDEN, data.labels.shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)

    def loss_of(features: csr_matrix, labels: SparseLabels) -> Tensor:
        return loss.function(model(features), labels)

    some = list(batches(rows, epochs, seed))
    steps = train(loss_of, [optimizer], data, some)
    for _ in progress.track(steps, len(some), description=loss.name):
        pass
    return model


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, loss: Loss, positives_per_row: float) -> Quality:
    rows, width = data.labels.shape
    labels = SparseLabels.from_scipy(data.labels)
    block = max(1, BLOCK // width)
    counts = []
    for start in range(0, rows, block):
        some = slice(start, start + block)
        logits = model(data.features[some])
        predicted = predictions(logits, loss, positives_per_row)
        counts.append(counted(logits, predicted, labels.select(some)))
    return quality(rows, counts)


def predictions(logits: Tensor, loss: Loss, positives_per_row: float) -> Tensor:
    """The labels whose probability is at least half of what a positive is trained towards.

    That is 1 for the sigmoid, and for the softmax one share among `positives_per_row` positives.
    """
    if loss.kind == "categorical":
        return logits.softmax(1) >= 0.5 / positives_per_row
    return logits >= 0  # sigmoid(logits) >= 0.5


def counted(scores: Tensor, predicted: Tensor, labels: SparseLabels) -> list[float]:
    """The sums over a block of rows that `quality` takes; scores, predicted: (rows, labels)."""
    each = labels.col_indices.split(labels.crow_indices.diff().tolist())
    # The ranking of a row without labels has no precision.
    ranked = [
        average_precision(row, own) for row, own in zip(scores, each, strict=True) if len(own)
    ]
    hits, empty = predicted[places(labels)].sum(), (~predicted.any(1)).sum()
    sums = (hits, predicted.sum(), len(labels.col_indices), empty, sum(ranked), len(ranked))
    return [float(value) for value in sums]


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """sklearn's average_precision_score of one row, given where its positives are."""
    own = scores[positives]
    right = torch.stack([(own >= score).sum() for score in own])
    ranked = torch.stack([(scores >= score).sum() for score in own])
    return float((right / ranked).mean())


def quality(rows: int, counts: list[list[float]]) -> Quality:
    hits, predicted, true, empty, precisions, ranked = map(sum, zip(*counts, strict=True))
    return Quality(
        precision=hits / max(predicted, 1),
        recall=hits / max(true, 1),
        f1=2 * hits / max(predicted + true, 1),
        mean_average_precision=precisions / max(ranked, 1),
        predicted_per_row=predicted / rows,
        true_per_row=true / rows,
        empty_rows=empty / rows,
    )
