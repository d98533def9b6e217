"""The part of the networks below the labels, and the training of all of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LEARNING_RATE = 3e-3
Batch = TypeVar("Batch")


class Encoder(nn.Module):
    """A hashed bag of embeddings and a ReLU."""

    def __init__(self, buckets: int, dim: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(buckets, dim, mode="sum")
        self.norm = norm or nn.Identity()

    def forward(self, features: "csr_matrix") -> Tensor:
        device = self.embedding.weight.device
        words = torch.from_numpy(features.indices.astype("int64")).to(device)
        starts = torch.from_numpy(features.indptr[:-1].astype("int64")).to(device)
        values = torch.from_numpy(features.data.astype("float32")).to(device)
        # The number of a word has no meaning, so its remainder is as good a hash as any other.
        bag = self.embedding(words % self.embedding.num_embeddings, starts, values)
        hidden: Tensor = torch.relu(self.norm(bag))
        return hidden


def train(
    loss_of: Callable[[Batch], Tensor],
    optimizers: Sequence[Optimizer],
    batches: Iterable[Batch],
) -> Iterator[float]:
    """Makes one step for each batch, when the step's loss is asked for."""

    def step(batch: Batch) -> float:
        loss = loss_of(batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()  # on CUDA this waits for the step

    return map(step, batches)
