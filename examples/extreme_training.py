"""The classifier of very many labels: its training, what a step costs, and how well it ranks."""

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tools.command import obstacle
from tools.measuring import PROC, rise_of_peak
from tools.program import insist
from tools.terminal import console_of, progress_on, say, show
from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearMultilabelLoss,
    SparseLabels,
    empty_cache,
    prior_logits,
    propensity_from_labels,
)

from . import training
from .data import Dataset, dataset_of_file, made_up, read
from .extreme_labels import COMPARED_STEPS, MADE_UP_ROWS
from .program import loss_named, mebibytes
from .ranking import DEEPEST, KS, Quality, quality

# With their learning rates, and how many matrices as large as the weight a plain step holds.
OPTIMIZERS = {
    "sgd": (SGD, FusedSGD, 1.0, 2),
    "adam": (Adam, FusedAdam, training.LEARNING_RATE, 4),
}
EVALUATED_ROWS = 256


def run(options: argparse.Namespace) -> None:
    console, notes = console_of(), console_of(stderr=True)
    has_device = options.device == "cpu" or torch.cuda.is_available()
    insist(has_device, "--device cuda needs a GPU, and torch finds none")
    problem = obstacle((), options.reference, options.device)
    insist(not problem, problem)
    data, held_out = load(options, progress_on(notes))
    batches = batches_of(data, options)
    compared = batches[:COMPARED_STEPS]
    say(console, f"{data.describe()} to train on; {held_out.labels.shape[0]:,} rows held out")
    left_out = ""
    with progress_on(notes) as progress:
        model, ours = train(data, batches, options, progress)
        costs = {"chunks, fused step" if options.fused else "chunks": ours}
        measured = evaluate(model, held_out, propensity(data, options), progress)
        del model  # plain torch may need all memory
        if options.compare:
            left_out = why_no_plain(len(batches[0]), data.labels.shape[1], options)
            if not left_out:
                costs["plain torch"] = train(data, compared, options, progress, plain=True)[1]
    last = f"{ours.losses[-1]:.2f} in the last step"
    say(console, f"loss of a row: {ours.losses[0]:.2f} at first, {last}")
    measures = zip(("precision", "nDCG", "propensity-scored precision"), measured, strict=True)
    shares = [[name, *(f"{100 * share:.1f}" for share in at_ks)] for name, at_ks in measures]
    show(console, ["held-out rows, %", *(f"at {k}" for k in KS)], shares)
    if left_out:
        say(console, left_out)
    header = ["a training step", "median s", "peak MiB", f"loss, step {len(compared)}"]
    cells = [
        [name, f"{c.seconds:.3f}", mebibytes(c.peak_bytes), f"{c.losses[len(compared) - 1]:.4f}"]
        for name, c in costs.items()
    ]
    show(console, header, cells)
    encoder = mebibytes(4 * options.buckets * options.dim)
    say(console, f"The encoder's gradient has {encoder} MiB of the peak.")


def load(options: argparse.Namespace, progress: Progress) -> tuple[Dataset, Dataset]:
    """Rows to train on and held-out ones."""
    if options.labels is not None:
        rows = options.rows or MADE_UP_ROWS
        data = made_up(options.labels, rows, options.features, options.seed)
    else:
        data = read(options.data, options.rows, options.seed, progress)
    rows, labels = data.labels.shape
    insist(rows > 1, f"{rows} row is not enough to train and to test")
    insist(labels >= DEEPEST, f"{labels} labels are too few: the first {DEEPEST} are ranked")
    if options.test is None:
        return data.split(options.seed)
    held_out = dataset_of_file(Path(options.test))
    others = held_out.labels.shape[1]
    insist(others == labels, f"{options.test} has {others} labels and {options.data} has {labels}")
    return data, held_out


def batches_of(data: Dataset, options: argparse.Namespace) -> list[np.ndarray]:
    epochs = options.steps or options.epochs  # an epoch has a step at least
    return list(islice(data.batches(epochs, options.seed, options.batch), options.steps))


class Model(nn.Module):
    """The encoder, and the classifier with its loss.

    With `plain` the loss is computed in the usual way: from all logits, and a target as large as
    they are.
    """

    def __init__(self, data: Dataset, options: argparse.Namespace, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        self.data, self.options, self.plain = data, options, plain
        num_labels = data.labels.shape[1]
        pos_weight = options.pos_weight
        if pos_weight == "propensity":
            pos_weight = 1 / propensity(data, options)
        self.encoder = training.Encoder(options.buckets, options.dim, nn.LayerNorm(options.dim))
        # The mean over all labels would have gradients as small as Adam's eps.
        self.criterion = LinearMultilabelLoss(
            options.dim,
            num_labels,
            loss_named(options.loss),
            pos_weight=pos_weight,
            reduction="batchmean",
            chunk_labels=options.chunk_labels,
        )
        # The first steps need not teach how rare each label is.
        prior = prior_logits(SparseLabels.from_scipy(data.labels), num_labels)
        with torch.no_grad():
            self.criterion.linear.bias.copy_(prior)
        self.to(options.device)

    def forward(self, rows: np.ndarray) -> Tensor:
        """The loss of some rows of the data."""
        features, labels = self.data.at(rows)
        hidden, labels = self.encoder(features), labels.to(self.options.device)
        if not self.plain:
            loss: Tensor = self.criterion(hidden, labels)
            return loss
        logits = self.criterion.linear(hidden)
        target = labels.to_dense(logits.shape[1], logits.dtype)
        pos_weight = torch.as_tensor(self.criterion.pos_weight, device=logits.device)
        loss = F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=pos_weight, reduction="sum"
        )
        return loss / len(hidden)

    def optimizers(self) -> list[Optimizer]:
        """Adam for the encoder, and the chosen one for the classifier."""
        ordinary, fused, rate, _ = OPTIMIZERS[self.options.optimizer]
        fuses = self.options.fused and not self.plain
        classifier = (fused if fuses else ordinary)(
            list(self.criterion.linear.parameters()),
            lr=self.options.learning_rate or rate,
            fused=True,
        )
        if fuses:
            self.criterion.fused_step = classifier
        return [Adam(self.encoder.parameters(), training.LEARNING_RATE, fused=True), classifier]


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


def train(
    data: Dataset,
    batches: Sequence[np.ndarray],
    options: argparse.Namespace,
    progress: Progress,
    plain: bool = False,
) -> tuple[Model, Cost]:
    """Makes one step for each batch of row numbers."""
    model = Model(data, options, plain)
    steps = training.train(model, model.optimizers(), batches)
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
    blocks = list(held_out.blocks(EVALUATED_ROWS))
    ranked = [
        model.criterion.topk(model.encoder(held_out.features[block]), DEEPEST).indices.cpu()
        for block in progress.track(blocks, description="ranking")
    ]
    return quality(torch.cat(ranked), SparseLabels.from_scipy(held_out.labels), propensities)


def why_no_plain(rows: int, labels: int, options: argparse.Namespace) -> str:
    """The sentence that says why training in the usual way is not tried; "" where it is."""
    if options.loss != "bce":
        return f"Plain torch is left out: it has no function for the loss {options.loss}."
    # The weight, its gradient, and Adam's averages; of matrices as large as the logits 4.75 were
    # measured.
    *_, weights = OPTIMIZERS[options.optimizer]
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
