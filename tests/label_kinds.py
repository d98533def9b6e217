"""The same labels in every form from which weights are counted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from weighted_bce import SparseLabels, collate


def skewed(device: str = "cpu", rows: int = 300) -> Tensor:
    """Label 0 is in nearly every row, 29 in none."""
    y = torch.rand(rows, 30) < torch.linspace(0.98, 0, 30).square()
    y[:, 29] = False
    return y.to(device)


def batches(y: Tensor, size: int = 70, dtype: torch.dtype = torch.int64) -> Iterator[SparseLabels]:
    for part in y.split(size):
        yield SparseLabels.from_dense(part).to(dtype)


class Pair(NamedTuple):
    x: float
    y: Any


@dataclass
class Record:
    labels: Any
    x: float = 0.0


def samples(y: Tensor) -> list[Any]:
    return [{"x": float(i), "labels": row.nonzero()[:, 0].tolist()} for i, row in enumerate(y)]


def read_only(y: Tensor) -> Any:
    array = y.cpu().float().numpy()
    array.flags.writeable = False
    return array


NO_ROW = SparseLabels.from_lists([])
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda y: y,
    "float": lambda y: y.float(),
    "csr": lambda y: y.float().to_sparse_csr(),
    "coo": lambda y: y.to_sparse_coo(),
    "int64": SparseLabels.from_dense,
    "int32": lambda y: SparseLabels.from_dense(y).to(torch.int32),
    "generator": batches,
    "list of int32": lambda y: list(batches(y, 11, torch.int32)),
    "rows one by one": lambda y: batches(y, 1),
    "with an empty batch": lambda y: [NO_ROW.to(y.device), *batches(y, 299), NO_ROW.to(y.device)],
    "loader": lambda y: DataLoader(list(batches(y)), batch_size=None),
    "pairs": lambda y: ((torch.zeros(3), batch) for batch in batches(y)),
    "triples of tensors": lambda y: [(torch.zeros(1), {}, part) for part in y.split(70)],
    "dicts of tensors": lambda y: [{"labels": part, "x": 0} for part in y.float().split(70)],
    "dataclasses of coo": lambda y: [Record(part.to_sparse_coo()) for part in y.split(70)],
    "named tuples": lambda y: [Pair(0.0, part) for part in y.half().split(70)],
    "torch's pairs": lambda y: DataLoader(TensorDataset(y, y), batch_size=64),
}
ON_CPU: dict[str, Callable[[Tensor], Any]] = {
    "bool array": lambda y: y.cpu().numpy(),
    "reversed array of big-endian halves": lambda y: y.cpu().numpy().astype(">f2")[::-1],
    "matrix": lambda y: np.matrix(y.cpu().numpy()),
    "array that is read only": read_only,
    "scipy matrix": lambda y: scipy.sparse.csr_matrix(y.cpu().numpy()),
    "scipy array": lambda y: scipy.sparse.coo_array(y.cpu().numpy()),
    "scipy batches": lambda y: map(scipy.sparse.csr_array, y.cpu().numpy().reshape(4, 75, 30)),
    "array batches": lambda y: iter(y.cpu().numpy().reshape(4, 75, 30)),
    "collated pairs": lambda y: DataLoader(
        [(row["x"], row["labels"]) for row in samples(y)], batch_size=64, collate_fn=collate
    ),
    "collated dicts": lambda y: DataLoader(samples(y), batch_size=64, collate_fn=collate),
}
KINDS.update(ON_CPU)
