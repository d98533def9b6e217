"""What the gradient of a linear layer's weight is the sum of."""

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._options import Options
from ._chunks import ChunkOptions, Layer


class Call(NamedTuple):
    """One call of the loss, from which a gradient of the weight follows."""

    layer: Layer  # without autograd
    options: Options
    chunk_options: ChunkOptions
    grad_output: Tensor  # 0-d, or one number a row
    loss: Tensor
    versions: tuple[int, ...]

    @classmethod
    def of(
        cls,
        layer: Layer,
        options: Options,
        chunk_options: ChunkOptions,
        grad_output: Tensor,
        loss: Tensor,
    ) -> "Call":
        layer = Layer(*(None if t is None else t.detach() for t in layer))  # type: ignore[arg-type]
        # The input may be memory that is used again, or a part of a weight that step() changes.
        copies = [t.detach().clone() for t in (layer.input, grad_output, loss)]
        layer = layer._replace(input=copies[0])
        call = cls(layer, options, chunk_options, copies[1], copies[2], ())
        return call._replace(versions=call._versions())

    def _versions(self) -> tuple[int, ...]:
        tensors = (self.layer.weight, self.layer.bias, *self.options.tensors)
        return tuple(t._version for t in tensors if t is not None and not t.is_inference())

    def check(self) -> None:
        """Raises RuntimeError if a tensor was modified since the call."""
        if self._versions() != self.versions:
            raise RuntimeError(
                "the gradient of linear_weight is computed when it is used, so the parameters, the "
                "target, its weights and the normalizer must not be modified between the forward "
                "pass and the step(), got one that was modified by an inplace operation"
            )

    def multiplied(self, factor: float | Tensor) -> "Call":
        return self._replace(grad_output=self.grad_output * factor)


class GradientSum:
    """What a gradient is the sum of.

    Args:
        calls: calls of the loss.
        group: the processes whose gradients are averaged; None for this one alone.
    """

    def __init__(self, calls: Sequence[Call] = (), group: Any = None) -> None:
        self.calls = list(calls)
        self.dense: Tensor | None = None  # the other terms, with the shape of the weight
        self.group = group
        self.passes = 1  # how many backward passes have added to it
        self.is_unscaled = False  # whether a GradScaler has divided it

    def copy(self) -> "GradientSum":
        return self.replaced(self.calls, None if self.dense is None else self.dense.clone())

    def replaced(self, calls: Sequence[Call], dense: Tensor | None) -> "GradientSum":
        """Returns another sum, for the same processes and of as many backward passes."""
        other = copy(self)
        other.calls, other.dense = list(calls), dense
        return other

    def multiply_(self, factor: float | Tensor) -> None:
        self.calls = [call.multiplied(factor) for call in self.calls]
        if self.dense is not None:
            self.dense.mul_(factor)

    def add_(self, other: "Tensor | GradientSum", factor: float = 1) -> None:
        if isinstance(other, GradientSum):
            self.calls += [call.multiplied(factor) for call in other.calls]
        dense = other.dense if isinstance(other, GradientSum) else other
        if dense is None:
            return
        if self.dense is None:
            self.dense = dense * factor
        else:
            self.dense.add_(dense, alpha=factor)

    def zero_(self) -> None:
        self.calls, self.dense, self.passes, self.is_unscaled = [], None, 0, False

    def not_finite(self, like: Tensor) -> Tensor:
        """Returns NaN if an input, a loss, a grad_output or another term is not finite on any of
        the processes, and otherwise 0; with the dtype and device of `like`."""
        tensors = [
            t for call in self.calls for t in (call.layer.input, call.loss, call.grad_output)
        ]
        if self.dense is not None:
            tensors.append(self.dense)
        flag = torch.zeros_like(like)
        for tensor in tensors:
            flag = flag.where(torch.isfinite(tensor).all(), torch.nan)
        if self.group is not None:
            torch.distributed.all_reduce(flag, group=self.group)
        return flag
