"""The classifier of very many labels: its training, what a step costs, and how well it ranks."""

import argparse
import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from rich import box
from rich.progress import Progress
from rich.table import Table
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tools.command import obstacle, progress_on
from tools.measuring import PROC, rise_of_peak
from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    empty_cache,
    propensity_from_labels,
)

from . import training
from .data import Dataset, dataset_of_file, made_up
from .extreme_labels import COMPARED_STEPS, MADE_UP_ROWS
from .program import UserError, consoles, insist
from .python_imports import imports_of_environment
from .ranking import DEEPEST, KS, Quality, Ranking

# With their learning rates.
OPTIMIZERS = {"sgd": (SGD, FusedSGD, 1.0), "adam": (Adam, FusedAdam, training.LEARNING_RATE)}
EVALUATED_ROWS = 256


def run(options: argparse.Namespace) -> None:
    console, notes = consoles()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU, and torch finds none")
    insist(obstacle((), options.reference, options.device))
    data, held_out = load(options, progress_on(notes))
    rows, labels = data.labels.shape
    batches = batches_of(rows, options)
    compared = batches[:COMPARED_STEPS]
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(
        f"{data.source}: {rows:,} rows to train on and {held_out.labels.shape[0]:,} held out, "
        f"{labels:,} labels, {data.positives_per_row:.1f} per row"
    )
    left_out = ""
    with progress_on(notes) as progress:
        model, ours = train(data, batches, options, progress)
        costs = {"chunks, fused step" if options.fused else "chunks": ours}
        quality = evaluate(model, held_out, propensity(data, options), progress)
        del model  # plain torch may need all memory
        if options.compare:
            left_out = too_large_for_plain(len(batches[0]), labels, options)
            if not left_out:
                costs["plain torch"] = train(data, compared, options, progress, plain=True)[1]
    say(f"loss of a row: {ours.losses[0]:.2f} at first, {ours.losses[-1]:.2f} in the last step")
    shares = [[f"{100 * share:.1f}" for share in shares] for shares in quality]
    names = ("precision", "nDCG", "propensity-scored precision")
    console.print(_table(["held-out rows, %", *(f"at {k}" for k in KS)], names, shares))
    if left_out:
        say(left_out)
    header = ["a training step", "median s", "peak MiB", f"loss, step {len(compared)}"]
    cells = [cost.cells(len(compared)) for cost in costs.values()]
    console.print(_table(header, costs, cells))
    encoder = 4 * options.buckets * options.dim / 2**20
    say(f"The encoder's gradient has {encoder:,.1f} MiB of the peak.")


def _table(header: list[str], names: Iterable[str], rows: Iterable[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(header[0], min_width=len("propensity-scored precision"))
    for column in header[1:]:
        table.add_column(column, justify="right", min_width=10)
    for name, cells in zip(names, rows, strict=True):
        table.add_row(name, *cells)
    return table


def load(options: argparse.Namespace, progress: Progress) -> tuple[Dataset, Dataset]:
    """Rows to train on and held-out ones."""
    if options.labels is not None:
        rows = options.rows or MADE_UP_ROWS
        data = made_up(options.labels, rows, options.features, options.seed)
    elif options.data in (None, "imports"):
        data = imports_of_environment(options.rows, options.seed, progress)
    else:
        data = dataset_of_file(Path(options.data), options.rows)
    rows, labels = data.labels.shape
    if rows < 2:
        raise UserError(f"{rows} row is not enough to train and to test")
    if labels < DEEPEST:
        raise UserError(f"{labels} labels are too few: the first {DEEPEST} are ranked")
    if options.test is None:
        return data.split(options.seed)
    held_out = dataset_of_file(Path(options.test))
    others = held_out.labels.shape[1]
    if others != labels:
        raise UserError(f"{options.test} has {others} labels and {options.data} has {labels}")
    return data, held_out


def batches_of(rows: int, options: argparse.Namespace) -> list[np.ndarray]:
    epochs = options.steps or options.epochs  # an epoch has a step at least
    return list(islice(training.batches(rows, epochs, options.seed, options.batch), options.steps))


class PlainLoss(nn.Module):
    """The usual way: all logits, and a target as large as they are."""

    pos_weight: Tensor

    def __init__(self, dim: int, labels: int, pos_weight: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, labels)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, hidden: Tensor, labels: SparseLabels) -> Tensor:
        logits = self.linear(hidden)
        target = labels.to_dense(logits.shape[1], logits.dtype)
        loss = F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=self.pos_weight, reduction="sum"
        )
        return loss / len(hidden)


class Model(nn.Module):
    """The encoder, and the classifier with its loss."""

    def __init__(self, data: Dataset, options: argparse.Namespace, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        rows, labels = data.labels.shape
        pos_weight = options.pos_weight
        if pos_weight == "propensity":
            pos_weight = 1 / propensity(data, options)
        self.encoder = training.Encoder(options.buckets, options.dim, nn.LayerNorm(options.dim))
        self.criterion: PlainLoss | LinearWeightedBCEWithLogitsLoss
        if plain:
            self.criterion = PlainLoss(options.dim, labels, torch.as_tensor(pos_weight))
        else:
            # The mean over all labels would have gradients as small as Adam's eps.
            self.criterion = LinearWeightedBCEWithLogitsLoss(
                options.dim,
                labels,
                pos_weight=pos_weight,
                reduction="batchmean",
                chunk_labels=options.chunk_labels,
            )
        # The first step need not teach all labels that they are rare.
        nn.init.constant_(
            self.criterion.linear.bias, math.log((data.labels.nnz + 1) / (rows * labels))
        )
        self.to(options.device)

    def forward(self, features: csr_matrix, labels: SparseLabels) -> Tensor:
        loss: Tensor = self.criterion(self.encoder(features), labels)
        return loss

    def optimizers(self, options: argparse.Namespace) -> list[Optimizer]:
        """Adam for the encoder, and the chosen one for the classifier."""
        ordinary, fused, rate = OPTIMIZERS[options.optimizer]
        how = {
            "params": list(self.criterion.linear.parameters()),
            "lr": options.learning_rate or rate,
        }
        encoder = Adam(self.encoder.parameters(), training.LEARNING_RATE, fused=True)
        if options.fused and isinstance(self.criterion, LinearWeightedBCEWithLogitsLoss):
            self.criterion.fused_step = fused(**how, fused=True)
            return [encoder, self.criterion.fused_step]
        return [encoder, ordinary(**how, fused=True)]


def propensity(data: Dataset, options: argparse.Namespace) -> Tensor:
    """How likely each label is to be given where it is true."""
    a, b = options.propensity
    labels = SparseLabels.from_scipy(data.labels)
    return propensity_from_labels(labels, data.labels.shape[1], A=a, B=b)


class Cost(NamedTuple):
    """The losses of the steps of a training, and what a step took."""

    losses: list[float]
    seconds: float  # of the median step
    peak_bytes: int | None  # of the last step, beyond what was there before it

    def cells(self, step: int) -> list[str]:
        peak = "n/a" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:,.1f}"
        return [f"{self.seconds:.3f}", peak, f"{self.losses[step - 1]:.4f}"]


def train(
    data: Dataset,
    batches: Sequence[np.ndarray],
    options: argparse.Namespace,
    progress: Progress,
    plain: bool = False,
) -> tuple[Model, Cost]:
    """Makes one step for each batch of row numbers."""
    model = Model(data, options, plain)
    steps = training.train(model, model.optimizers(options), data, batches, options.device)
    name = "plain torch" if plain else "training"
    task = progress.add_task(name, total=len(batches))
    losses: list[float] = []
    seconds: list[float] = []

    def step() -> None:
        start = time.perf_counter()
        losses.append(next(steps))
        seconds.append(time.perf_counter() - start)
        progress.update(task, advance=1, description=f"{name}, loss {losses[-1]:.2f}")

    for _ in batches[1:]:
        step()
    peak = _peak_bytes(step, options.device)
    return model, Cost(losses, statistics.median(seconds), peak)


def _peak_bytes(step: Callable[[], object], device: str) -> int | None:
    """The peak of a step beyond the memory in use before it; None where that is not known."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    if not os.access(PROC / "clear_refs", os.W_OK):
        step()
        return None
    # Memory that was freed but not given back to the system would be used again unseen.
    empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    return rise_of_peak(step)


@torch.no_grad()
def evaluate(model: Model, held_out: Dataset, propensities: Tensor, progress: Progress) -> Quality:
    """How good the first labels of each row are; no more logits than a chunk's are held."""
    assert isinstance(model.criterion, LinearWeightedBCEWithLogitsLoss)
    labels = SparseLabels.from_scipy(held_out.labels)
    ranking = Ranking(propensities)
    starts = range(0, labels.num_rows, EVALUATED_ROWS)
    for start in progress.track(starts, description="ranking"):
        some = slice(start, start + EVALUATED_ROWS)
        top = model.criterion.topk(model.encoder(held_out.features[some]), DEEPEST)
        ranking.add(top.indices.cpu(), labels.select(some))
    return ranking.quality()


def too_large_for_plain(rows: int, labels: int, options: argparse.Namespace) -> str:
    """The sentence that says why training in the usual way is not tried; "" where it fits."""
    # The weight, its gradient, and Adam's averages; of matrices as large as the logits 4.75 were
    # measured.
    weights = {"sgd": 2, "adam": 4}[options.optimizer]
    needed, free = 4 * labels * (weights * options.dim + 5 * rows), free_bytes(options.device)
    if needed <= free:
        return ""
    return (
        f"Plain torch is left out: it would take about {needed / 2**30:.1f} GiB, "
        f"and {free / 2**30:.1f} GiB are free."
    )


def free_bytes(device: str) -> int:
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return int(psutil.virtual_memory().available)
