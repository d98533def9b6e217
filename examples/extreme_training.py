"""A classifier of very many labels: made-up rows, training, and what a step costs."""

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tools.measuring import PROC, rise_of_peak
from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    empty_cache,
    propensity_from_labels,
)

from .imports_data import Dataset
from .ranking import DEEPEST, Quality, Ranking
from .training import bags

LEARNING_RATES = {"sgd": 1.0, "adam": 3e-3}
OPTIMIZERS = {"sgd": (SGD, FusedSGD), "adam": (Adam, FusedAdam)}
# Of made-up data: words that each label brings into a row, words of no label, labels of a row.
WORDS, OTHER_WORDS, LABELS = 4, 10, 5
EVALUATED_ROWS = 256


class Settings(NamedTuple):
    """How to train."""

    dim: int
    buckets: int
    optimizer: str
    fused: bool
    learning_rate: float | None  # None: the optimizer's
    pos_weight: float | str
    chunk_labels: int | None
    propensity: tuple[float, float]
    seed: int
    device: str


def made_up(labels: int, rows: int, features: int, seed: int) -> Dataset:
    """Rows whose words are those of their labels and some others; labels follow Zipf's law."""
    generator = np.random.default_rng(seed)
    words = generator.integers(features, size=(labels, WORDS), dtype=np.int32)
    # exp(u log(labels + 1)) has the density 1 / x.
    drawn = ((labels + 1.0) ** generator.random((rows, LABELS)) - 1).astype(np.int64)
    drawn = drawn.clip(max=labels - 1)
    others = generator.integers(features, size=(rows, OTHER_WORDS))
    found = np.concatenate((words[drawn].reshape(rows, -1), others), 1)
    name = "made-up rows"
    return Dataset(name, normalize(_csr(found, features, np.float32)), _csr(drawn, labels, bool))


def _csr(columns: np.ndarray, width: int, dtype: type) -> csr_matrix:
    """Each row of `columns` lists where a row of the matrix is not 0."""
    rows, each = columns.shape
    starts = np.arange(0, rows * each + 1, each)
    made = csr_matrix((np.ones(rows * each, dtype), columns.ravel(), starts), (rows, width))
    made.sum_duplicates()
    return made


class Encoder(nn.Module):
    """A hashed bag of words."""

    def __init__(self, buckets: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets, dim, mode="sum")
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: csr_matrix) -> Tensor:
        words, starts, values = (t.to(self.norm.weight.device) for t in bags(features))
        # Numbers of words say nothing, so the remainder is as good a hash as any other.
        bag = self.embedding(words % self.embedding.num_embeddings, starts, values)
        hidden: Tensor = torch.relu(self.norm(bag))
        return hidden


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

    def __init__(self, train: Dataset, settings: Settings, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        labels = train.labels.shape[1]
        pos_weight: float | Tensor
        if isinstance(settings.pos_weight, str):
            pos_weight = 1 / propensity(train, settings)
        else:
            pos_weight = settings.pos_weight
        self.encoder = Encoder(settings.buckets, settings.dim)
        self.criterion: PlainLoss | LinearWeightedBCEWithLogitsLoss
        if plain:
            self.criterion = PlainLoss(settings.dim, labels, torch.as_tensor(pos_weight))
        else:
            # The mean over all labels would have gradients as small as Adam's eps.
            self.criterion = LinearWeightedBCEWithLogitsLoss(
                settings.dim,
                labels,
                pos_weight=pos_weight,
                reduction="batchmean",
                chunk_labels=settings.chunk_labels,
            )
        # The first step need not teach all labels that they are rare.
        rate = (train.labels.nnz + 1) / (train.labels.shape[0] * labels)
        nn.init.constant_(self.criterion.linear.bias, math.log(rate))
        self.to(settings.device)

    def forward(self, features: csr_matrix, labels: SparseLabels) -> Tensor:
        loss: Tensor = self.criterion(self.encoder(features), labels)
        return loss


def propensity(train: Dataset, settings: Settings) -> Tensor:
    """How likely each label was marked where it is true."""
    a, b = settings.propensity
    labels = SparseLabels.from_scipy(train.labels)
    return propensity_from_labels(labels, train.labels.shape[1], A=a, B=b)


def _optimizers(model: Model, settings: Settings) -> list[Optimizer]:
    """Adam for the encoder, and the chosen one for the classifier."""
    ordinary, fused = OPTIMIZERS[settings.optimizer]
    rate = settings.learning_rate or LEARNING_RATES[settings.optimizer]
    parameters = list(model.criterion.linear.parameters())
    chosen: Optimizer
    if settings.fused and isinstance(model.criterion, LinearWeightedBCEWithLogitsLoss):
        chosen = model.criterion.fused_step = fused(parameters, lr=rate, fused=True)
    else:
        chosen = ordinary(parameters, lr=rate, fused=True)
    encoder = Adam(model.encoder.parameters(), LEARNING_RATES["adam"], fused=True)
    return [encoder, chosen]


class Cost(NamedTuple):
    """What the steps of a training brought and took."""

    losses: list[float]
    seconds: float  # of the median step
    peak_bytes: int | None  # of the last step, beyond what was there before it


def train(
    data: Dataset,
    batches: Sequence[np.ndarray],
    settings: Settings,
    plain: bool = False,
    shown: Callable[[float], None] = lambda loss: None,
) -> tuple[Model, Cost]:
    """One step for each batch of row numbers; `shown` is given each step's loss."""
    model = Model(data, settings, plain)
    optimizers = _optimizers(model, settings)
    labels = SparseLabels.from_scipy(data.labels)
    losses: list[float] = []
    seconds: list[float] = []

    def step(rows: np.ndarray) -> None:
        start = time.perf_counter()
        target = labels.select(torch.from_numpy(rows)).to(settings.device)
        loss = model(data.features[rows], target)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()  # a fused one has nothing left to do
            optimizer.zero_grad()
        losses.append(loss.item())  # on CUDA this waits for the step
        seconds.append(time.perf_counter() - start)
        shown(losses[-1])

    *others, last = batches
    for rows in others:
        step(rows)
    peak = _peak_bytes(lambda: step(last), settings.device)
    return model, Cost(losses, statistics.median(seconds), peak)


def _peak_bytes(step: Callable[[], object], device: str) -> int | None:
    """Beyond the memory that was in use before; None where that is not known."""
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
def evaluate(
    model: Model, test: Dataset, propensities: Tensor, advance: Callable[[int], object] = int
) -> Quality:
    """How good the first labels of each row are; no more logits than a chunk's are held."""
    assert isinstance(model.criterion, LinearWeightedBCEWithLogitsLoss)
    labels = SparseLabels.from_scipy(test.labels)
    ranking = Ranking(propensities)
    for start in range(0, labels.num_rows, EVALUATED_ROWS):
        some = slice(start, start + EVALUATED_ROWS)
        found = model.criterion.topk(model.encoder(test.features[some]), DEEPEST)
        ranking.add(found.indices.cpu(), labels.select(some))
        advance(len(found.indices))
    return ranking.quality()


def bytes_of_plain(rows: int, labels: int, settings: Settings) -> int:
    """About what training in the usual way needs at once, without the encoder."""
    # The weight, its gradient, and Adam's averages; of matrices as large as the logits 4.75 were
    # measured.
    weights = {"sgd": 2, "adam": 4}[settings.optimizer]
    return 4 * labels * (weights * settings.dim + 5 * rows)


def free_bytes(device: str) -> int:
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return int(psutil.virtual_memory().available)
