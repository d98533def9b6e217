"""How the ops act on DTensors: each device computes on its own shard.

A sum over sharded logits is partial: the sums of the shards have yet to be added, one number each.
Factors are sharded as the dimension of the logits that they broadcast to.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from ._ops import ops
from .reference import SUM, Options

Placements = list[Any]


def prepare(input: Tensor, options: Options) -> bool:
    """Whether the logits are a DTensor, for which the ops then have their rules.

    Raises:
        TypeError: if they are, and another argument is a plain tensor.
    """
    tensors = sys.modules.get("torch.distributed.tensor")  # nobody has one who has not imported it
    if tensors is None or not isinstance(input, tensors.DTensor):
        return False
    for name, tensor in zip(("target", "weight", "pos_weight"), options, strict=False):
        if tensor is not None and not isinstance(tensor, tensors.DTensor):
            raise TypeError(f"{name} must be a DTensor like input, got {type(tensor).__name__}")
    register()
    return True


@cache
def register() -> None:
    """Registers the rules, once."""
    from torch.distributed.tensor.experimental import register_sharding

    register_sharding(ops.loss.default)(_loss)
    register_sharding(ops.loss_and_grad.default)(_loss_and_grad)
    register_sharding(ops.grad.default)(_grad)
    register_sharding(ops.unreduced.default)(_unreduced)


# The rules get an op's arguments, tensors as something that has a shape. They return all pairs of
# placements of the results and of the arguments that a dimension of the device mesh may have.
_Rule = Sequence[tuple[Placements, Placements]]


def _loss(*arguments: Any) -> _Rule:
    from torch.distributed.tensor import Partial, Replicate

    return _each(
        arguments[:4],
        _sum_is_local(arguments[7]),
        lambda own, all: ([Replicate() if all else Partial()], [*own, *[None] * 4]),
    )


def _loss_and_grad(*arguments: Any) -> _Rule:
    from torch.distributed.tensor import Partial, Replicate

    return _each(
        arguments[:4],
        _sum_is_local(arguments[7]),
        lambda own, all: (
            [Replicate() if all else Partial(), own[0], Replicate()],
            [*own, *[None] * 4, Replicate()],
        ),
    )


def _grad(upstream: Any, *arguments: Any) -> _Rule:
    from torch.distributed.tensor import Replicate

    return _each(
        arguments[:4],
        _sum_is_local(arguments[7]),
        lambda own, all: ([own[0]], [own[0] if upstream.shape else Replicate(), *own, *[None] * 4]),
    )


def _unreduced(*arguments: Any) -> _Rule:
    return _each(arguments[:4], True, lambda own, all: ([own[0]], [*own, *[None] * 3]))


def _sum_is_local(reduction: int) -> bool:
    """A shard does not know how many elements there are in all."""
    return reduction == SUM


def _each(
    tensors: Sequence[Any],
    shards: bool,
    make: Callable[[Placements, bool], tuple[Placements, Placements]],
) -> _Rule:
    from torch.distributed.tensor import Replicate, Shard

    def placement(tensor: Any, dim: int) -> Any:
        own = dim - (len(tensors[0].shape) - len(tensor.shape))
        return Shard(own) if own >= 0 and tensor.shape[own] != 1 else Replicate()

    whole = [None if tensor is None else Replicate() for tensor in tensors]
    found = [make(whole, True)]
    for dim in range(len(tensors[0].shape) if shards else 0):
        if tensors[0].shape[dim] != 1:
            own = [None if tensor is None else placement(tensor, dim) for tensor in tensors]
            found.append(make(own, False))
    return found
