"""How the ops act on DTensors: each process computes on its own shard.

A sum over sharded logits is partial: the sums of the shards have yet to be added, one number each.
Target and factors are placed as the logits are; where they lie so already, nothing is sent. Sparse
labels are whole in each process.

torch's own sharding rules (register_sharding) cannot say all this: they forget the reduction when
they look up what an earlier call found, gather where there are fewer rows than processes, and may
let an op write to a copy of what it is to change (seen in 2.11 and 2.13).

Imported by _ops.prepare_for_dtensors: torch.distributed.tensor takes half a second to import.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from . import _reference
from ._checks import check_listed
from ._options import SUM, Options, compute_dtype, unpacked
from .sparse import has_values


def placed(
    name: str,
    tensor: Tensor,
    input: DTensor,
    placements: Sequence[Placement],
    in_place: bool = False,
) -> Tensor:
    """A tensor that has these placements; `in_place`, the same one."""
    if not isinstance(tensor, DTensor):
        if tensor.dim() == 0:  # whole in each process, as for torch's own operators
            return tensor
        raise TypeError(f"{name} must be a DTensor like input, got {type(tensor).__name__}")
    if tensor.device_mesh != input.device_mesh:
        raise ValueError(
            f"{name} must be on {input.device_mesh} like input, got {tensor.device_mesh}"
        )
    if tensor.placements == tuple(placements):
        return tensor
    if in_place:
        raise NotImplementedError(
            f"{name} cannot be changed in place: it must be placed as {tuple(placements)}, "
            f"got {tensor.placements}"
        )
    return cast(DTensor, tensor.detach()).redistribute(placements=placements)


def _whole(name: str, number: Tensor, input: DTensor, in_place: bool = False) -> Tensor:
    return placed(name, number, input, [Replicate()] * input.device_mesh.ndim, in_place)


def _split(input: DTensor) -> list[Placement]:
    """The placements of logits that are split or whole, not partial."""
    return [p if type(p) is Shard else Replicate() for p in input.placements]


def _aligned(input: Tensor, options: Options, in_place: bool = False) -> tuple[DTensor, Options]:
    """Logits that are split or whole, not partial, and what belongs to each part of them."""
    if not isinstance(input, DTensor):
        raise TypeError(f"input must be a DTensor like the others, got {type(input).__name__}")
    split = _split(input)

    def factor(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return placed(name, tensor, input, beside(tensor, input.dim(), input.placements))

    x = cast(DTensor, placed("input", input, input, split, in_place))
    options = options._replace(
        weight=factor("weight", options.weight), pos_weight=factor("pos_weight", options.pos_weight)
    )
    if options.is_sparse:
        return x, _part_of_list(x, options)
    return x, options._replace(target=placed("target", options.target, input, split))


def beside(factor: Tensor, dims: int, placements: Sequence[Placement]) -> list[Placement]:
    """How a factor lies where logits of so many dimensions have these placements."""
    missing, own = dims - factor.dim(), list[Placement]()
    for placement in placements:
        dim = placement.dim - missing if type(placement) is Shard else -1
        own.append(Shard(dim) if dim >= 0 and factor.shape[dim] != 1 else Replicate())
    return own


def _part_of_list(input: DTensor, options: Options) -> Options:
    """Of sparse labels, which are whole in each process: the rows of this shard, and where its
    labels begin."""
    whole = [Replicate()] * input.device_mesh.ndim

    def own(name: str, indices: Tensor) -> Tensor:
        if not isinstance(indices, DTensor):
            return indices
        return cast(DTensor, placed(name, indices, input, whole)).to_local()

    crow = own("crow_indices", cast(Tensor, options.crow_indices))
    options = options._replace(crow_indices=crow, target=own("col_indices", options.target))
    # A shard does not know how many labels there are: too large ones are found here. The compiler
    # looks at no value; what it makes lets the kernels refuse them.
    check_listed(input, options)
    label = options.target
    if label.is_cpu and not has_values(label):
        label = label.where(label < input.shape[1], -1)
    rows, labels = (own_part(input, dim) for dim in (0, 1))
    return options._replace(
        target=label, crow_indices=crow[rows.start : rows.stop + 1], first_label=labels.start
    )


def own_part(input: DTensor, dim: int) -> range:
    """Where this process's shard is in a dimension of the whole, cut as torch.chunk cuts."""
    mesh, part = input.device_mesh, range(input.shape[dim])
    ranks = mesh.get_coordinate() or [0] * mesh.ndim
    for rank, processes, placement in zip(ranks, mesh.shape, input.placements, strict=True):
        if isinstance(placement, Shard) and placement.dim == dim:
            size = -(-len(part) // processes)
            part = part[rank * size : (rank + 1) * size]
    return part


def locally(
    compute: Callable[[Tensor, Options], tuple[Tensor, ...]], input: Tensor, options: Options
) -> tuple[Tensor, ...]:
    """What a function gives for each shard of the logits, and of sparse labels; differentiable."""
    x = cast(DTensor, input)
    split = _split(x)
    x = x.redistribute(placements=split)

    def part(factor: Tensor | None) -> Tensor | None:
        if not isinstance(factor, DTensor):
            return factor
        own = beside(factor, x.dim(), x.placements)
        # A factor that several shards share receives a part of its gradient from each.
        of_gradient = [
            Partial() if isinstance(s, Shard) and isinstance(p, Replicate) else p
            for s, p in zip(split, own, strict=True)
        ]
        return factor.redistribute(placements=own).to_local(grad_placements=of_gradient)

    options = _part_of_list(x, options)._replace(
        weight=part(options.weight), pos_weight=part(options.pos_weight)
    )
    return tuple(_as_logits(shard, x) for shard in compute(x.to_local(), options))


def _local(argument: Any) -> Any:
    return argument.to_local() if isinstance(argument, DTensor) else argument


def _upstream(grad_output: Tensor, input: DTensor, options: Options, reduction: int) -> Tensor:
    """What the gradient of the sum over this shard is multiplied by."""
    if grad_output.dim() == 0:
        factor = _whole("grad_output", grad_output, input)
    else:
        factor = placed("grad_output", grad_output, input, input.placements)
    if reduction != SUM:
        factor = _reference.divided(
            factor.to(compute_dtype(input.dtype)), reduction, input, options
        )
    return cast(Tensor, _local(factor))


def _as_sum(total: Tensor, input: DTensor) -> DTensor:
    placements = [Partial() if isinstance(p, Shard) else Replicate() for p in input.placements]
    return DTensor.from_local(total, input.device_mesh, placements, run_check=False)


def _as_logits(shard: Tensor, input: DTensor) -> DTensor:
    whole = torch.empty_strided(input.shape, input.stride(), device="meta")
    return DTensor.from_local(
        shard,
        input.device_mesh,
        input.placements,
        run_check=False,
        shape=input.shape,
        stride=torch.empty_like(whole).stride(),  # the kernels make theirs likewise
    )


def _loss(op: Any, input: Tensor, *rest: Any) -> Tensor:
    given, reduction = unpacked(rest)
    x, options = _aligned(input, given)
    total = op(*map(_local, (x, *options)), SUM)
    return _reference.divided(_as_sum(total, x), reduction, x, given)


def _unreduced(op: Any, input: Tensor, *rest: Any) -> Tensor:
    x, options = _aligned(input, unpacked(rest)[0])
    return _as_logits(op(*map(_local, (x, *options))), x)


def _grad(op: Any, grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
    given, reduction = unpacked(rest)
    x, options = _aligned(input, given)
    upstream = _upstream(grad_output, x, given, reduction)
    return _as_logits(op(upstream, *map(_local, (x, *options)), SUM), x)


def _grad_in_place(op: Any, grad_output: Tensor, input: Tensor, *rest: Any) -> None:
    given, reduction = unpacked(rest)
    x, options = _aligned(input, given, in_place=True)
    op(_upstream(grad_output, x, given, reduction), *map(_local, (x, *options)), SUM)


def _loss_and_grad(
    op: Any, expected: Tensor, input: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    given, reduction = unpacked(rest)
    _only_sum(op, reduction)
    x, options = _aligned(input, given)
    factor = _whole("expected", expected, x)
    total, grad, used = op(*map(_local, (factor, x, *options)), SUM)
    whole = [Replicate()] * x.device_mesh.ndim
    number = DTensor.from_local(used, x.device_mesh, whole, run_check=False)
    return _as_sum(total, x), _as_logits(grad, x), number


def _update_grad(
    op: Any, grad_output: Tensor, used: Tensor, expected: Tensor, grad: Tensor, *rest: Any
) -> None:
    input, *others = rest
    given, reduction = unpacked(others)
    _only_sum(op, reduction)
    x, options = _aligned(input, given)
    changed = (
        _whole("used", used, x, in_place=True),
        _whole("expected", expected, x, in_place=True),
        placed("grad", grad, x, x.placements, in_place=True),
    )
    upstream = _upstream(grad_output, x, options, reduction)
    op(upstream, *map(_local, (*changed, x, *options)), reduction)


def _only_sum(op: Any, reduction: int) -> None:
    """For the ops that write the gradient before its factor is known."""
    if reduction != SUM:
        raise NotImplementedError(f"{op} takes reduction {SUM} (sum) for DTensors, got {reduction}")


def _apply(rule: Callable[..., Any], _: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():  # what differentiates comes before
        return rule(op, *args, **(kwargs or {}))


_RULES: dict[str, Callable[..., Any]] = {
    "loss": _loss,
    "loss_and_grad": _loss_and_grad,
    "update_grad_": _update_grad,
    "grad": _grad,
    "grad_": _grad_in_place,
    "unreduced": _unreduced,
}

for _name, _rule in _RULES.items():
    torch.library.register_torch_dispatch(f"weighted_bce::{_name}", DTensor, partial(_apply, _rule))
