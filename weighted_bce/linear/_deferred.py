"""The gradient of a linear layer's weight, computed a chunk of labels at a time when it is used.

`DeferredGrad` is a tensor that does not hold the gradient, but what it is computed from. The
operations in _deferred_ops.py, such as a sum or a norm, do not need all of it at once. Any other
operation gets the whole gradient, which is then made and kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._options import Options
from ._chunks import ChunkOptions, Layer, chunk_size
from ._not_compiled import not_compiled
from ._passes import WeightGradients

# What is computed without the whole gradient; it returns NotImplemented for the arguments that need
# the whole one. The first argument is the operator.
operations: dict[Any, Callable[..., Any]] = {}

_data: Any = Tensor.data


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
                "the gradient of linear_weight is computed when it is used, so the weight, the "
                "bias and the target must not be modified between the forward pass and the step(), "
                "got one that was modified by an inplace operation"
            )

    def multiplied(self, factor: float | Tensor) -> "Call":
        return self._replace(grad_output=self.grad_output * factor)


class Terms:
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

    def copy(self) -> "Terms":
        copy = Terms(self.calls, self.group)
        copy.dense = None if self.dense is None else self.dense.clone()
        copy.passes, copy.is_unscaled = self.passes, self.is_unscaled
        return copy

    def multiply_(self, factor: float | Tensor) -> None:
        self.calls = [call.multiplied(factor) for call in self.calls]
        if self.dense is not None:
            self.dense.mul_(factor)

    def add_(self, other: "Tensor | Terms", factor: float = 1) -> None:
        if isinstance(other, Terms):
            self.calls += [call.multiplied(factor) for call in other.calls]
        dense = other.dense if isinstance(other, Terms) else other
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


class _Exchange(NamedTuple):
    """A chunk of a gradient, to which other processes add theirs."""

    labels: slice
    gradient: Tensor
    work: Any

    def averaged(self, group: Any) -> tuple[slice, Tensor]:
        self.work.wait()
        return self.labels, self.gradient.div_(torch.distributed.get_world_size(group))


def _smallest(size: int, device: torch.device, group: Any) -> int:
    """Returns the smallest of the sizes that the processes have chosen for their own rows."""
    sizes = torch.tensor(size, device=device)
    torch.distributed.all_reduce(sizes, torch.distributed.ReduceOp.MIN, group=group)
    return int(sizes)


class DeferredGrad(Tensor):
    """The gradient of a weight, of which only the terms exist until it is used.

    Args:
        weight: the weight, (labels, features). The gradient has its shape, dtype and device.
        terms: what the gradient is the sum of.
    """

    terms: Terms
    _weight: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor, terms: Terms) -> "DeferredGrad":
        make: Any = Tensor._make_wrapper_subclass
        self: DeferredGrad = make(
            cls, weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device
        )
        self.terms, self._weight = terms, weight.detach()
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Computes the gradient of one chunk of labels after another.

        Returns:
            An iterator over pairs of a slice with the rows of the weight, and their gradient, which
            is valid until the next one is asked for. These rows of the weight may be changed
            meanwhile.

        Raises:
            RuntimeError: if a tensor that the gradient is computed from was modified.
        """
        for call in self.terms.calls:
            call.check()
        return self._chunks()

    @torch.no_grad()
    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        terms = self.terms
        calls = [call[:4] for call in terms.calls]
        size = chunk_size([(layer, how) for layer, _, how, _ in calls], self._weight)
        if terms.group is not None:
            size = _smallest(size, self._weight.device, terms.group)
        gradients = WeightGradients(calls, self._weight, terms.dense, size)
        if terms.group is None:
            yield from gradients.chunks(buffers=1)
            return
        begun: _Exchange | None = None  # the next chunk is computed during the exchange of this one
        for labels, gradient in gradients.chunks(buffers=2):
            work = torch.distributed.all_reduce(gradient, group=terms.group, async_op=True)
            if begun is not None:
                yield begun.averaged(terms.group)
            begun = _Exchange(labels, gradient, work)
        if begun is not None:
            yield begun.averaged(terms.group)

    def whole(self) -> Tensor:
        """Returns the gradient as an ordinary tensor, which from now on is kept."""
        terms = self.terms
        if terms.calls or terms.dense is None:
            weight = self._weight
            whole = torch.empty_strided(
                weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device
            )
            for labels, gradient in self.chunks():
                whole[labels] = gradient
            terms.calls, terms.dense = [], whole
        return terms.dense

    @property
    def data(self) -> Tensor:
        return cast(Tensor, _data.__get__(self))

    @data.setter
    def data(self, value: Tensor) -> None:
        _data.__set__(self, value)  # the dtype and the shape, which may be others
        if isinstance(value, DeferredGrad):
            self.terms, self._weight = value.terms, value._weight
            return
        before, self._weight = self.terms, value
        self.terms = Terms((), before.group)
        self.terms.dense = value.detach()
        self.terms.passes, self.terms.is_unscaled = before.passes, before.is_unscaled

    def with_terms(self, terms: Terms) -> "DeferredGrad":
        return DeferredGrad(self._weight, terms)

    def copy(self) -> "DeferredGrad":
        return self.with_terms(self.terms.copy())

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeferredGrad(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeferredGrad":
        return self.copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.whole().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    @classmethod
    @not_compiled
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        in_chunks = operations.get(func)
        result = NotImplemented if in_chunks is None else in_chunks(func, *args, **kwargs)
        if result is not NotImplemented:
            return result
        wrappers: dict[int, DeferredGrad] = {}

        def whole(deferred: DeferredGrad) -> Tensor:
            wrappers[id(deferred.whole())] = deferred
            return deferred.whole()

        args, kwargs = tree_map_only(DeferredGrad, whole, (args, kwargs))
        result = func(*args, **kwargs)
        # An operation in place returns the tensor that it was given.
        return tree_map_only(Tensor, lambda t: wrappers.get(id(t), t), result)


def _of_whole(name: str) -> Callable[..., Any]:
    def of_whole(deferred: DeferredGrad, *args: Any, **kwargs: Any) -> Any:
        return getattr(deferred.whole(), name)(*args, **kwargs)

    return of_whole


# Methods that read the memory of a tensor without calling an operator.
for _name in (
    *("__dlpack__", "apply_", "data_ptr", "map_", "numpy", "share_memory_", "tolist"),
    *("storage", "_typed_storage", "untyped_storage"),
):
    setattr(DeferredGrad, _name, _of_whole(_name))


def deferred_grad(grad: Tensor | None) -> DeferredGrad | None:
    """Returns a gradient, or the local part of a DTensor, if it is deferred."""
    local = getattr(grad, "_local_tensor", grad)
    return local if isinstance(local, DeferredGrad) else None
