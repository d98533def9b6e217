"""Rules of the ops for DTensors: each process computes on its own shard.

A sum over sharded logits is partial: the sums of the shards, one number each, are not added yet.
Target and factors get the placements of the logits, and nothing is sent if they have them already.
Each process has all sparse labels.

torch's own sharding rules (register_sharding) are not enough: they ignore the reduction when they
look up an earlier call, gather if there are fewer rows than processes, and may let an op write to a
copy of its argument (seen in 2.11 and 2.13).

_dtensor_import.py imports this module: torch.distributed.tensor takes half a second to import.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from . import _reference
from ._checks import check_csr_indices
from ._csr_checks import is_readable
from ._options import SUM, Options, compute_dtype


class GlobalLogits(NamedTuple):
    """The logits of all processes, and how they are split."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]  # Shard or Replicate
    shape: Sequence[int]

    def local_range(self, dim: int) -> range:
        """Returns where this process's shard is in a dimension, cut as torch.chunk cuts."""
        part = range(self.shape[dim])
        ranks = self.mesh.get_coordinate() or [0] * self.mesh.ndim
        for rank, processes, placement in zip(ranks, self.mesh.shape, self.placements, strict=True):
            if isinstance(placement, Shard) and placement.dim == dim:
                size = -(-len(part) // processes)
                part = part[rank * size : (rank + 1) * size]
        return part

    def factor_placements(self, factor: Tensor) -> tuple[Placement, ...]:
        """Returns the placements of a factor that broadcasts to the logits."""
        missing = len(self.shape) - factor.dim()
        dims = [p.dim - missing if isinstance(p, Shard) else -1 for p in self.placements]
        return tuple(
            Shard(dim) if dim >= 0 and factor.shape[dim] != 1 else Replicate() for dim in dims
        )

    def everywhere(self) -> tuple[Placement, ...]:
        return (Replicate(),) * self.mesh.ndim

    def local(self, name: str, tensor: Tensor, placements: Sequence[Placement]) -> Tensor:
        """Returns this process's part of a tensor with the given placements.

        It is differentiable: a tensor that several shards of the logits share receives a part of
        its gradient from each.
        """
        if not isinstance(tensor, DTensor):
            if tensor.dim() == 0:  # each process has all of it, as for torch's own operators
                return tensor
            raise TypeError(f"{name} must be a DTensor like input, got {type(tensor).__name__}")
        if tensor.device_mesh != self.mesh:
            raise ValueError(f"{name} must be on {self.mesh} like input, got {tensor.device_mesh}")
        pairs = zip(self.placements, placements, strict=True)
        of_grad = [Partial() if isinstance(p, Shard) and q == Replicate() else q for p, q in pairs]
        if tensor.requires_grad:  # the gradient is then placed as the tensor
            tensor = tensor.redistribute(placements=placements)
        else:
            tensor = redistributed(tensor, placements)
        return tensor.to_local(grad_placements=of_grad)


def redistributed(tensor: DTensor, placements: Sequence[Placement]) -> DTensor:
    """Returns the tensor with these placements; the tensor itself if it has them.

    Otherwise its graph would have a node that sends the gradient.
    """
    if tensor.placements == tuple(placements):
        return tensor
    return tensor.redistribute(placements=placements)


def local_options(options: Options, all_logits: GlobalLogits) -> Options:
    """Returns the options of this process's part of the logits; differentiable."""

    def factor(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return all_logits.local(name, tensor, all_logits.factor_placements(tensor))

    def indices(name: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):  # each process has all of another kind of tensor
            return tensor
        return all_logits.local(name, tensor, all_logits.everywhere())

    options = options._replace(
        weight=factor("weight", options.weight), pos_weight=factor("pos_weight", options.pos_weight)
    )
    if options.crow_indices is None:
        return options._replace(
            target=all_logits.local("target", options.target, all_logits.placements)
        )
    crow = indices("crow_indices", options.crow_indices)
    label = indices("col_indices", options.target)
    # A shard does not know the number of labels, so labels that are too large are found here. Code
    # for the compiler reads no value, and replaces them by -1, which the kernels refuse.
    num_labels = all_logits.shape[1]
    check_csr_indices(all_logits.shape, options._replace(crow_indices=crow, target=label))
    if label.is_cpu and not is_readable(label):
        label = label.where(label < num_labels, -1)
    rows, labels = all_logits.local_range(0), all_logits.local_range(1)
    return options._replace(
        target=label,
        crow_indices=crow[rows.start : rows.stop + 1],
        first_label=(options.first_label or 0) + labels.start,
    )


def _local(input: Tensor, options: Options) -> tuple[DTensor, GlobalLogits, Options]:
    """Returns the logits, split or replicated and not partial, and the options of this shard."""
    if not isinstance(input, DTensor):
        raise TypeError(f"input must be a DTensor like the others, got {type(input).__name__}")
    split = tuple(p if type(p) is Shard else Replicate() for p in input.placements)
    all_logits = GlobalLogits(input.device_mesh, split, input.shape)
    return redistributed(input, split), all_logits, local_options(options, all_logits)


def _on_shards(compute: _reference.Compute, input: DTensor, options: Options) -> tuple[Tensor, ...]:
    """Computes on each shard of logits and sparse labels; differentiable."""
    x, _, options = _local(input, options)
    return tuple(_as_logits(shard, x) for shard in compute(x.to_local(), options))


_reference.compute_on_shards[DTensor] = _on_shards


def as_sum(total: Tensor, all_logits: GlobalLogits) -> DTensor:
    """Returns the sum over all shards, each of which has its own."""
    placements = [Partial() if isinstance(p, Shard) else Replicate() for p in all_logits.placements]
    return DTensor.from_local(total, all_logits.mesh, placements, run_check=False)


def _as_logits(shard: Tensor, input: DTensor) -> DTensor:
    meta = torch.empty_strided(input.shape, input.stride(), device="meta")
    return DTensor.from_local(
        shard,
        input.device_mesh,
        input.placements,
        run_check=False,
        shape=input.shape,
        stride=torch.empty_like(meta).stride(),  # the kernels make theirs likewise
    )


def _loss(op: Any, input: Tensor, *rest: Any) -> Tensor:
    options = Options.of(rest)
    x, all_logits, local = _local(input, options)
    total = op(x.to_local(), *local.undivided(SUM))
    return _reference.divided(as_sum(total, all_logits), x, options)


def _unreduced(op: Any, input: Tensor, *rest: Any) -> Tensor:
    x, _, local = _local(input, Options.of(rest))
    return _as_logits(op(x.to_local(), *local), x)


def _grad(op: Any, grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
    options = Options.of(rest)
    x, all_logits, local = _local(input, options)
    placements = all_logits.everywhere() if grad_output.dim() == 0 else all_logits.placements
    if options.reduction != SUM:
        grad_output = grad_output.to(compute_dtype(x.dtype))
        grad_output = _reference.divided(grad_output, x, options)
    own = all_logits.local("grad_output", grad_output, placements)
    return _as_logits(op(own, x.to_local(), *local.undivided(SUM)), x)


def _apply(rule: Callable[..., Any], _: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():  # what differentiates comes before
        return rule(op, *args, **(kwargs or {}))


_RULES: dict[str, Callable[..., Any]] = {"loss": _loss, "unreduced": _unreduced, "grad": _grad}

for _name, _rule in _RULES.items():
    torch.library.register_torch_dispatch(f"weighted_bce::{_name}", DTensor, partial(_apply, _rule))
