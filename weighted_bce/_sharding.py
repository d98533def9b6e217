"""How the ops act on DTensors: each process computes on its own shard.

A sum over sharded logits is partial: the sums of the shards have yet to be added, one number each.
Target and factors are placed as the logits are; where they lie so already, nothing is sent.

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

from . import reference
from .reference import SUM, Options, compute_dtype


def _placed(
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
    return _placed(name, number, input, [Replicate()] * input.device_mesh.ndim, in_place)


def _aligned(input: Tensor, options: Options, in_place: bool = False) -> tuple[DTensor, Options]:
    """Logits that are split or whole, not partial, and what belongs to each part of them."""
    if not isinstance(input, DTensor):
        raise TypeError(f"input must be a DTensor like the others, got {type(input).__name__}")
    split = [p if type(p) is Shard else Replicate() for p in input.placements]

    def factor(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        missing = input.dim() - tensor.dim()
        dims = [p.dim - missing if isinstance(p, Shard) else -1 for p in split]
        own = [Shard(d) if d >= 0 and tensor.shape[d] != 1 else Replicate() for d in dims]
        return _placed(name, tensor, input, own)

    return cast(DTensor, _placed("input", input, input, split, in_place)), options._replace(
        target=_placed("target", options.target, input, split),
        weight=factor("weight", options.weight),
        pos_weight=factor("pos_weight", options.pos_weight),
    )


def _local(argument: Any) -> Any:
    return argument.to_local() if isinstance(argument, DTensor) else argument


def _upstream(grad_output: Tensor, input: DTensor, options: Options, reduction: int) -> Tensor:
    """What the gradient of the sum over this shard is multiplied by."""
    if grad_output.dim() == 0:
        placed = _whole("grad_output", grad_output, input)
    else:
        placed = _placed("grad_output", grad_output, input, input.placements)
    if reduction != SUM:
        placed = reference.divided(placed.to(compute_dtype(input.dtype)), reduction, options)
    return cast(Tensor, _local(placed))


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
    *others, reduction = rest
    x, options = _aligned(input, Options(*others))
    total = op(*map(_local, (x, *options)), SUM)
    return reference.divided(_as_sum(total, x), reduction, options)


def _unreduced(op: Any, input: Tensor, *rest: Any) -> Tensor:
    x, options = _aligned(input, Options(*rest))
    return _as_logits(op(*map(_local, (x, *options))), x)


def _grad(op: Any, grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
    *others, reduction = rest
    x, options = _aligned(input, Options(*others))
    upstream = _upstream(grad_output, x, options, reduction)
    return _as_logits(op(upstream, *map(_local, (x, *options)), SUM), x)


def _grad_in_place(op: Any, grad_output: Tensor, input: Tensor, *rest: Any) -> None:
    *others, reduction = rest
    x, options = _aligned(input, Options(*others), in_place=True)
    op(_upstream(grad_output, x, options, reduction), *map(_local, (x, *options)), SUM)


def _loss_and_grad(op: Any, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *others, reduction, expected = rest
    _only_sum(op, reduction)
    x, options = _aligned(input, Options(*others))
    factor = _whole("expected", expected, x)
    total, grad, used = op(*map(_local, (x, *options)), SUM, _local(factor))
    whole = [Replicate()] * x.device_mesh.ndim
    number = DTensor.from_local(used, x.device_mesh, whole, run_check=False)
    return _as_sum(total, x), _as_logits(grad, x), number


def _update_grad(
    op: Any, grad_output: Tensor, used: Tensor, expected: Tensor, grad: Tensor, *rest: Any
) -> None:
    input, *others, reduction = rest
    _only_sum(op, reduction)
    x, options = _aligned(input, Options(*others))
    changed = (
        _whole("used", used, x, in_place=True),
        _whole("expected", expected, x, in_place=True),
        _placed("grad", grad, x, x.placements, in_place=True),
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
