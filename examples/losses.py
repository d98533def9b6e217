"""The losses that are compared, and what one step of each costs."""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.measuring import deaf_to_interrupts, made_up_labels, rise_of_peak
from weighted_bce import (
    Asymmetric,
    Focal,
    MultilabelLoss,
    SparseLabels,
    empty_cache,
    pos_weight_from_labels,
    prior_logits,
    weighted_bce_with_logits,
)

from . import program

LossFunction = Callable[[Tensor, SparseLabels], Tensor]


def places(labels: SparseLabels) -> tuple[Tensor, Tensor]:
    """The row and the label of each positive."""
    crow, label = labels
    return torch.repeat_interleave(crow.diff()), label


# None of these makes a target of rows x labels, which at a million labels would not fit.


def plain_bce(logits: Tensor, labels: SparseLabels) -> Tensor:
    """softplus(x) - x y."""
    return (F.softplus(logits).sum() - logits[places(labels)].sum()) / logits.numel()


def categorical(logits: Tensor, labels: SparseLabels) -> Tensor:
    """Softmax cross-entropy against a target that shares 1 among the positives of a row."""
    rows, _ = at = places(labels)
    share = 1 / labels.crow_indices.diff()[rows]
    return -(logits.log_softmax(1)[at] * share).sum() / len(logits)


def masked_multiply(logits: Tensor, labels: SparseLabels, weight: float) -> Tensor:
    at = places(labels)
    loss = F.softplus(logits)
    loss[at] = weight * F.softplus(-logits[at])
    return loss.mean()


class Loss(NamedTuple):
    """One loss of the comparison."""

    name: str
    kind: str
    function: LossFunction
    pos_weight: float | Tensor | None = None
    power: float | None = None  # of the labels' (negatives / positives), which is their pos_weight

    def on(self, labels: SparseLabels, num_labels: int) -> "Loss":
        """This loss, with the pos_weight of these labels where it follows from labels."""
        if self.power is None:
            return self
        weight = pos_weight_from_labels(labels, num_labels) ** self.power
        function = partial(weighted_bce_with_logits, pos_weight=weight)
        return self._replace(function=function, pos_weight=weight)

    def calibrated(self) -> bool:
        """Whether the sigmoid of its logits is meant as a probability."""
        return self.kind not in ("categorical", "squared-hinge")

    def shift(self) -> Tensor | None:
        """How much pos_weight raises the logits of a model that fits; None without it.

        Weighting by p changes the odds q / (1 - q) of a label to p q / (1 - q).
        """
        if self.pos_weight is None or self.kind == "plain":
            return None
        return torch.as_tensor(self.pos_weight).log()

    def scores(self, logits: Tensor) -> Tensor:
        """What is compared with a threshold, and over rows; of one row it has the logits' order."""
        return logits.log_softmax(1) if self.kind == "categorical" else logits

    def middle(self, positives_per_row: float) -> float:
        """The score of half the probability that a positive is trained towards.

        The sigmoid's is 1, and logit 0 is half of it; the softmax shares 1 among the positives.
        """
        return math.log(0.5 / positives_per_row) if self.kind == "categorical" else 0.0

    def first_bias(self, labels: SparseLabels, num_labels: int) -> Tensor:
        """The bias with which a classifier starts at the frequency of each label.

        The softmax of the frequencies' logarithms is each label's share of all positives.
        """
        prior = prior_logits(labels, num_labels)
        return F.logsigmoid(prior) if self.kind == "categorical" else prior


LOSSES = (
    Loss("plain BCE", "plain", plain_bce, 1.0),
    Loss("categorical CE", "categorical", categorical),
    Loss("masked multiply, 7", "masked", partial(masked_multiply, weight=7.0), 7.0),
    *(
        Loss(f"ours, weight {w:g}", "weighted", partial(weighted_bce_with_logits, pos_weight=w), w)
        for w in (3.0, 7.0, 30.0, 300.0)
    ),
    Loss("ours, balanced", "balanced", weighted_bce_with_logits, power=1.0),
    Loss("ours, root balanced", "balanced", weighted_bce_with_logits, power=0.5),
    *(
        Loss(f"ours, {name}", kind, MultilabelLoss(program.loss_named(kind)))
        for kind, name in program.LOSSES.items()
        if kind != "bce"
    ),
    *(
        Loss(f"Focal, gamma {gamma:g}", "gammas", MultilabelLoss(Focal(gamma)))
        for gamma in (0.25, 0.5, 1.0, 4.0)
    ),
    *(
        Loss(f"Asymmetric, {neg:g}-{pos:g}", "gammas", MultilabelLoss(Asymmetric(neg, pos, 0.0)))
        for neg, pos in ((0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (4.0, 0.0))
    ),
)


def _step(loss: Loss, logits: Tensor, target: SparseLabels) -> None:
    """Loss and gradient with respect to the logits; nothing is kept."""
    torch.autograd.grad(loss.function(logits, target), logits)


def _sample(rows: int, labels: int, positives: float) -> tuple[Tensor, SparseLabels]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, labels, generator=generator).requires_grad_()
    return logits, made_up_labels(rows, labels, max(1, round(positives)), generator)


def step_milliseconds(
    losses: Sequence[Loss], rows: int, labels: int, positives: float, rounds: int = 15
) -> list[float]:
    """The median time of a step of each loss, over rounds in which all take turns."""
    sample = _sample(rows, labels, positives)
    losses = [loss.on(sample[1], labels) for loss in losses]
    times: list[list[float]] = [[] for _ in losses]
    for _ in range(rounds):
        for loss, spent in zip(losses, times, strict=True):
            _step(loss, *sample)  # caches hold what the last loss left
            start = time.perf_counter()
            _step(loss, *sample)
            spent.append(1000 * (time.perf_counter() - start))
    return [statistics.median(spent) for spent in times]


def peak_bytes(
    losses: Sequence[Loss], rows: int, labels: int, positives: float
) -> list[int] | None:
    """How far a step of each raises the resident set of a process; None where that is not known."""
    # Large blocks go back to the system when freed, so that the inputs' temporary memory is not
    # silently used again; glibc's own threshold moves, and with it the peak.
    threshold = patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536")
    try:
        with threshold, ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            with deaf_to_interrupts():
                measured = fresh.submit(_measure_peaks, losses, rows, labels, positives)
            return measured.result()
    except (OSError, BrokenProcessPool):
        return None


def _measure_peaks(losses: Sequence[Loss], rows: int, labels: int, positives: float) -> list[int]:
    # Code, threads and pools come into memory on first use, by steps that are too small to leave
    # memory behind that a measured one could use.
    few = max(1, min(rows, 2**16 // labels))
    for loss in losses * 3:
        _step(loss, *_sample(few, labels, positives))
    sample = _sample(rows, labels, positives)
    losses = [loss.on(sample[1], labels) for loss in losses]
    peaks = []
    for loss in losses:
        empty_cache()
        peaks.append(rise_of_peak(partial(_step, loss, *sample)))
    return peaks
