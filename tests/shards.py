"""Tensors on the device meshes of several processes, in parts and whole."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .processes import mesh_of


def layouts(processes: int) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Device meshes and how the logits lie on them: over rows, labels, both, and whole."""
    from torch.distributed.tensor import Replicate, Shard

    line = mesh_of(processes)
    yield from ((line, (placement,)) for placement in (Shard(0), Shard(1), Replicate()))
    if processes == 4:
        square = mesh_of(2, 2)
        yield square, (Shard(0), Shard(1))
        yield square, (Shard(1), Replicate())
        yield square, (Shard(1), Shard(1))


def distributed(tensor: Tensor, mesh: Any, placements: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mesh, placements)


def distributed_like(factor: Tensor, logits: Any) -> Any:
    """A factor, distributed as the logits that it belongs to."""
    from torch.distributed.tensor import Replicate, Shard

    missing, own = logits.dim() - factor.dim(), []
    for p in logits.placements:
        dim = p.dim - missing if isinstance(p, Shard) else -1
        own.append(Shard(dim) if dim >= 0 and factor.shape[dim] > 1 else Replicate())
    return distributed(factor, logits.device_mesh, own)


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_whole(sharded: Any, expected: Tensor) -> None:
    torch.testing.assert_close(sharded.full_tensor(), expected)


def flattens(stacked: Any) -> bool:
    """Whether torch joins a dimension that is sharded with another one; torch 2.11 does not."""
    try:
        stacked.flatten(0, 1)
    except RuntimeError:
        return False
    return True
