"""The gradient of a linear layer's weight, computed a chunk of labels at a time when it is used.

`DeferredGrad` is a tensor that does not hold the gradient, but what it is computed from. The
operations in _deferred_ops.py, such as a sum or a norm, do not need all of it at once. Any other
operation gets the whole gradient, which is then made and kept.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ._gradient_sum import GradientSum
from ._not_compiled import not_compiled
from ._passes import WeightGradients

# What is computed without the whole gradient; it returns NotImplemented for the arguments that need
# the whole one. The first argument is the operator.
operations: dict[Any, Callable[..., Any]] = {}

_data: Any = Tensor.data


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
    """The gradient of a weight, which is not computed until it is used.

    Args:
        weight: the weight, (labels, features). The gradient has its shape, dtype and device.
        gradient_sum: what it is the sum of.
    """

    gradient_sum: GradientSum
    _weight: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor, gradient_sum: GradientSum) -> "DeferredGrad":
        make: Any = Tensor._make_wrapper_subclass
        self: DeferredGrad = make(
            cls, weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device
        )
        self.gradient_sum, self._weight = gradient_sum, weight.detach()
        # Extensions that ask for the memory get an error, and not a null pointer.
        torch._C._set_throw_on_mutable_data_ptr(self)
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
        for call in self.gradient_sum.calls:
            call.check()
        return self._chunks()

    @torch.no_grad()
    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        weight, group = self._weight, self.gradient_sum.group
        calls = [call[:4] for call in self.gradient_sum.calls]
        gradients = WeightGradients(calls, weight, self.gradient_sum.dense)
        if group is None:
            yield from gradients.chunks(gradients.size, buffers=1)
            return
        size = _smallest(gradients.size, weight.device, group)
        begun: _Exchange | None = None  # the next chunk is computed during the exchange of this one
        for labels, gradient in gradients.chunks(size, buffers=2):
            work = torch.distributed.all_reduce(gradient, group=group, async_op=True)
            if begun is not None:
                yield begun.averaged(group)
            begun = _Exchange(labels, gradient, work)
        if begun is not None:
            yield begun.averaged(group)

    def whole(self) -> Tensor:
        """Returns the gradient as an ordinary tensor, which from now on is kept."""
        gradient_sum = self.gradient_sum
        if gradient_sum.calls or gradient_sum.dense is None:
            weight = self._weight
            whole = torch.empty_strided(
                weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device
            )
            for labels, gradient in self.chunks():
                whole[labels] = gradient
            gradient_sum.calls, gradient_sum.dense = [], whole
        return gradient_sum.dense

    @property
    def data(self) -> Tensor:
        return cast(Tensor, _data.__get__(self))

    @data.setter
    def data(self, value: Tensor) -> None:
        _data.__set__(self, value)  # the dtype and the shape, which may be others
        if isinstance(value, DeferredGrad):
            self.gradient_sum, self._weight = value.gradient_sum, value._weight
            return
        self.gradient_sum, self._weight = self.gradient_sum.replaced((), value.detach()), value

    def with_sum(self, gradient_sum: GradientSum) -> "DeferredGrad":
        return DeferredGrad(self._weight, gradient_sum)

    def copy(self) -> "DeferredGrad":
        return self.with_sum(self.gradient_sum.copy())

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
