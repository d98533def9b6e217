"""A device without float64, as MPS is one, that the CPU stands for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")  # no other one of a torch for the CPU can be claimed


class OnDevice(Tensor):
    """Says that it is on the device; its values are in a tensor on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        if values.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        shape, strides = values.shape, values.stride()
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, strides=strides, dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator on the CPU. The result is on the device unless it is copied from it."""
        given = tree_map(lambda t: t.values if isinstance(t, OnDevice) else t, (args, kwargs or {}))
        result = func(*given[0], **given[1])
        if given[1].get("device") not in (None, DEVICE):
            return result
        return tree_map(lambda t: OnDevice(t) if isinstance(t, Tensor) else t, result)


class WithoutFloat64(TorchFunctionMode):
    """Within it, tensors can be moved to the device."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.to and DEVICE in (*args, *(kwargs or {}).values()):
            return args[0] if isinstance(args[0], OnDevice) else OnDevice(args[0])
        return func(*args, **(kwargs or {}))
