"""The part of the networks below the labels, and the training of all of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.optim import Optimizer

from weighted_bce import SparseLabels

from .data import Dataset

BATCH = 128
LEARNING_RATE = 3e-3


class Encoder(nn.Module):
    """A hashed bag of embeddings and a ReLU."""

    def __init__(self, buckets: int, dim: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets, dim, mode="sum")
        self.norm = norm or nn.Identity()

    def forward(self, features: csr_matrix) -> Tensor:
        parts = (features.indices, np.int64), (features.indptr[:-1], np.int64)
        words, starts, values = (
            torch.from_numpy(part.astype(dtype)).to(self.embedding.weight.device)
            for part, dtype in (*parts, (features.data, np.float32))
        )
        # Numbers of words say nothing, so the remainder is as good a hash as any other.
        bag = self.embedding(words % self.embedding.num_embeddings, starts, values)
        hidden: Tensor = torch.relu(self.norm(bag))
        return hidden


def batches(rows: int, epochs: int, seed: int, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Row numbers batch by batch; the same for every loss."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = generator.permutation(rows)
        yield from (order[start : start + batch] for start in range(0, rows, batch))


def train(
    loss_of: Callable[[csr_matrix, SparseLabels], Tensor],
    optimizers: Sequence[Optimizer],
    data: Dataset,
    batches: Iterable[np.ndarray],
    device: str = "cpu",
) -> Iterator[float]:
    """Makes one step for each batch of row numbers, when the step's loss is asked for."""
    labels = SparseLabels.from_scipy(data.labels)

    def step(rows: np.ndarray) -> float:
        target = labels.select(torch.from_numpy(rows)).to(device)
        loss = loss_of(data.features[rows], target)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()  # a fused one has nothing left to do
            optimizer.zero_grad()
        return loss.item()  # on CUDA this waits for the step

    return map(step, batches)
