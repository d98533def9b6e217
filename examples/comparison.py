"""One small network, trained and judged with each loss."""

import argparse
from statistics import mean

import numpy as np
import psutil
import torch
from rich.progress import Progress
from scipy.sparse import csr_matrix
from torch import Tensor, nn

import weighted_bce
from tools.program import insist
from tools.terminal import console_of, progress_on, say, show
from weighted_bce import SparseLabels

from . import measures, picture, ranking, report
from .data import Dataset, read
from .losses import LOSSES, Loss, peak_bytes, step_milliseconds
from .report import Quality, Result, Undone
from .training import Encoder, train

HIDDEN = 128
BATCH = 256
# Rows are scored in blocks of at most BLOCK logits; of a part that has more scores than SCORES, the
# first rows alone are judged.
BLOCK, SCORES = 2**22, 2**27
# The logits of the measured step: with very many labels they have fewer rows.
COST_ROWS, COST_ELEMENTS = 1024, 2**26
# Rows to train on, to choose a threshold on, and to test on.
Parts = tuple[Dataset, Dataset, Dataset]


def run(options: argparse.Namespace) -> None:
    console, notes = console_of(), console_of(stderr=True)
    data = read(options.data, options.files, options.seed, progress_on(notes))
    about, labels = data.describe(), data.labels.shape[1]
    say(console, about)
    # The weight of the last layer, its gradient, and Adam's averages.
    needed, free = 16 * HIDDEN * labels, psutil.virtual_memory().available
    needs = f"{labels:,} labels need about {needed / 2**30:.1f} GiB"
    insist(needed <= free, f"{needs}, and {free / 2**30:.1f} GiB are free")
    few = f"{labels} labels are too few: the first {ranking.DEEPEST} are ranked"
    insist(labels >= ranking.DEEPEST, few)
    seeds = range(options.seed, options.seed + options.seeds)
    of_seeds = {seed: parts(data, seed) for seed in seeds}
    rows = max(1, min(COST_ROWS, COST_ELEMENTS // labels))
    shape = (rows, labels, of_seeds[options.seed][0].positives_per_row)
    with progress_on(notes) as progress:
        results = compare(of_seeds, shape, options, progress)
    true = mean(test.positives_per_row for _, _, test in of_seeds.values())
    for table in report.tables(results, true, *shape):
        show(console, *table)
        say(console, "")
    options.out.mkdir(parents=True, exist_ok=True)
    saved = picture.draw(results, about, true, labels, options.out)
    used = {
        "data": about,
        "true_per_row": true,
        "seeds": list(seeds),
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "batch": BATCH,
        "loss_step": {"rows": rows, "labels": labels},
        "versions": {"torch": torch.__version__, "weighted_bce": weighted_bce.__version__},
    }
    report.save_json(results, used, options.out / "sparse_labels.json")
    answers = report.answers(results, true, labels)
    for line in (*answers, f"Picture: {saved[0]} and {saved[1].name}"):
        say(console, line)


def compare(
    of_seeds: dict[int, Parts],
    shape: tuple[int, int, float],
    options: argparse.Namespace,
    progress: Progress,
) -> list[Result]:
    """What each loss costs, and what it reaches from both starts of the bias with each seed."""
    losses = [loss for loss in LOSSES if loss.kind in options.losses]
    peaks = peak_bytes(losses, *shape) or [None] * len(losses)
    costs = zip(step_milliseconds(losses, *shape), peaks, strict=True)
    results = []
    for loss, cost in zip(losses, costs, strict=True):
        for prior in (False, True):
            qualities = [
                quality_of(loss, prior, three, seed, options, progress)
                for seed, three in of_seeds.items()
            ]
            results.append(Result(loss.name, loss.kind, loss.pos_weight, prior, qualities, *cost))
    return results


def parts(data: Dataset, seed: int) -> Parts:
    """Rows to train on, rows to choose a threshold on, and a fifth of all to test on."""
    rest, test = data.split(seed)
    some, validation = rest.split(seed)
    most = slice(max(1, SCORES // data.labels.shape[1]))
    validation, test = validation.rows(most), test.rows(most)
    enough = validation.labels.nnz and test.labels.nnz
    insist(enough, "no row to choose a threshold on, or none to test on, has a label; use more")
    return some, validation, test


def quality_of(
    loss: Loss,
    prior: bool,
    three: Parts,
    seed: int,
    options: argparse.Namespace,
    progress: Progress,
) -> Quality:
    """The worth of what the loss trains on the first part of the data."""
    some, validation, test = three
    fitted = loss.on(SparseLabels.from_scipy(some.labels), some.labels.shape[1])
    length = (options.epochs, options.learning_rate)
    model = fit(some, fitted, prior, *length, seed, progress)
    return evaluate(model, fitted, validation, test, some.positives_per_row)


def fit(
    data: Dataset,
    loss: Loss,
    prior: bool,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
) -> nn.Module:
    """Trains a network whose first weights and batches depend on `seed` alone.

    The bias starts at zero, or with `prior` at the frequencies of the labels.
    """
    torch.manual_seed(seed)
    num_labels = data.labels.shape[1]
    classifier = nn.Linear(HIDDEN, num_labels)
    bias = loss.first_bias(SparseLabels.from_scipy(data.labels), num_labels)
    with torch.no_grad():
        classifier.bias.copy_(bias if prior else torch.zeros_like(bias))
    model = nn.Sequential(Encoder(data.features.shape[1], HIDDEN), classifier)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)

    def loss_of(rows: np.ndarray) -> Tensor:
        features, labels = data.at(rows)
        return loss.function(model(features), labels)

    batches = list(data.batches(epochs, seed, BATCH))
    steps = train(loss_of, [optimizer], batches)
    name = f"{loss.name}, prior" if prior else loss.name
    for _ in progress.track(steps, len(batches), description=name):
        pass
    return model


def evaluate(
    model: nn.Module, loss: Loss, validation: Dataset, test: Dataset, positives_per_row: float
) -> Quality:
    threshold, validation_f1 = chosen(scored(model, loss, validation), validation.labels)
    scores, labels = scored(model, loss, test), test.labels
    middle = loss.middle(positives_per_row)
    ranked = torch.from_numpy(scores).topk(ranking.DEEPEST).indices
    same = torch.ones(labels.shape[1])
    first = ranking.quality(ranked, SparseLabels.from_scipy(labels), same).precision
    return Quality(
        measures.predictions(scores, labels, middle),
        measures.predictions(scores, labels, threshold),
        threshold,
        measures.mean_average_precision(scores, labels),
        first[0],
        first[-1],
        validation_f1,
        measures.calibration(scores, labels) if loss.calibrated() else None,
        undone(scores, labels, loss.shift()),
    )


def chosen(scores: np.ndarray, labels: csr_matrix) -> tuple[float, float]:
    """The threshold with the largest micro-F1, and that."""
    threshold = measures.best_threshold(scores, labels)
    return threshold, measures.predictions(scores, labels, threshold).f1


def undone(scores: np.ndarray, labels: csr_matrix, shift: Tensor | None) -> Undone | None:
    """What pos_weight leaves behind when its logarithm is subtracted from the logits."""
    if shift is None:
        return None
    logits = scores - shift.numpy()
    return Undone(measures.predictions(logits, labels, 0.0), measures.calibration(logits, labels))


@torch.no_grad()
def scored(model: nn.Module, loss: Loss, data: Dataset) -> np.ndarray:
    """The score of each label in each row, (rows, labels)."""
    blocks = data.blocks(max(1, BLOCK // data.labels.shape[1]))
    scores = torch.cat([loss.scores(model(data.features[block])) for block in blocks])
    diverged = f"the training with {loss.name} diverged; a smaller --learning-rate may help"
    insist(scores.isfinite().all(), diverged)
    return scores.numpy()
