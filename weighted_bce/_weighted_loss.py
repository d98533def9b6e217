"""What the modules share: their arguments and the state of their weights."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import (
    check_factor_dtype,
    checked_ignore_index,
    checked_pos_weight,
    checked_reduction,
    checked_smoothing,
)
from ._csr_checks import is_readable
from ._types import Reduction


class WeightedLoss(nn.Module):
    """The base class of the modules: a weight that is a tensor is a buffer, a number stays one."""

    weight: Tensor | None
    pos_weight: Tensor | float | None

    def __init__(
        self,
        weight: Tensor | None,
        pos_weight: float | Tensor | None,
        reduction: Reduction,
        label_smoothing: float,
        ignore_index: float | None,
    ) -> None:
        super().__init__()
        if weight is not None:
            check_weight("weight", weight)
        if pos_weight is not None:
            check_pos_weight("pos_weight", pos_weight)
        checked_reduction(reduction)
        checked_smoothing(label_smoothing)
        if ignore_index is not None:
            checked_ignore_index(ignore_index)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight if isinstance(pos_weight, Tensor) else None)
        if not isinstance(pos_weight, Tensor):
            self.pos_weight = pos_weight
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pos_weight":  # may become a tensor or a number, whichever it was before
            if not (value is None or isinstance(value, Tensor)):
                self._buffers.pop(name, None)
                self._parameters.pop(name, None)
            elif name in self.__dict__:
                del self.__dict__[name]
                self.register_buffer(name, None)
        super().__setattr__(name, value)

    def _weights(self) -> dict[str, Tensor | float | None]:
        return {"weight": self.weight, "pos_weight": self.pos_weight}

    def _weight_of_call(self, weight: Tensor) -> Tensor:
        """Returns the weight given in a call; raises ValueError if the module has one, too."""
        if self.weight is not None:
            raise ValueError("weight must be given to the module or in the call, got both")
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the weights as `fn` does, but keeps their dtype, since half precision rounds 257 to
        256 and has no 70,000."""
        if recurse:
            for child in self.children():
                child._apply(fn)  # type: ignore[no-untyped-call]
        kept = [w for w in self._weights().values() if isinstance(w, Tensor)]
        kept += [w.grad for w in kept if isinstance(w, nn.Parameter) and w.grad is not None]

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype and any(tensor is w for w in kept):
                return tensor.to(moved.device)
            return moved

        return super()._apply(move, recurse=False)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads as torch does, and lets the errors of strict loading say what to do."""
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        for name, weight in self._weights().items():
            key = prefix + name
            if key in missing_keys:
                note = f"which only a module whose {name} is a tensor saves: assign what {name} "
                note += "was there before loading, or load with strict=False to keep the tensor"
                missing_keys[missing_keys.index(key)] = _Key.of(key, note)
            elif key in unexpected_keys:
                note = f"{name} of the module is {_text(weight)}: assign a tensor of the saved "
                note += f"shape before loading, or remove the key to keep {_text(weight)}"
                unexpected_keys[unexpected_keys.index(key)] = _Key.of(key, note)

    def extra_repr(self) -> str:
        shown = [f"{n}={_text(w)}" for n, w in self._weights().items() if w is not None]
        shown.append(f"reduction={self.reduction!r}")
        if self.label_smoothing:
            shown.append(f"label_smoothing={self.label_smoothing}")
        if self.ignore_index is not None:
            shown.append(f"ignore_index={self.ignore_index}")
        return ", ".join(shown)


def check_weight(name: str, weight: Tensor) -> None:
    """Raises TypeError or ValueError unless the tensor holds finite numbers >= 0.

    The numbers are not looked at where they cannot be read, as those of a meta tensor.
    """
    check_factor_dtype(name, weight)
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return  # what is computed would be fake, of real tensors too
    values = weight.detach()  # a plain tensor, also of a parameter
    if is_readable(values) and values.numel():
        low, high = (values if values.dtype == torch.float64 else values.float()).aminmax()
        if not (low >= 0 and high < math.inf):
            got = high if low >= 0 else low  # both are NaN if a number is
            raise ValueError(f"{name} must hold finite numbers >= 0, got {got.item()}")


def check_pos_weight(name: str, pos_weight: float | Tensor) -> None:
    """Raises TypeError or ValueError unless all numbers are finite and >= 0."""
    if isinstance(pos_weight, Tensor):
        check_weight(name, pos_weight)
    else:
        checked_pos_weight(pos_weight, name)


def _text(weight: Tensor | float | None) -> str:
    return f"tensor{tuple(weight.shape)}" if isinstance(weight, Tensor) else str(weight)


class _Key(str):
    """A key of a state_dict with a note, which torch's error shows since it formats the key."""

    note = ""

    @classmethod
    def of(cls, key: str, note: str) -> "_Key":
        self = cls(key)
        self.note = note
        return self

    def __format__(self, format_spec: str) -> str:
        return f"{self!s} ({self.note})"

    def __reduce__(self) -> Any:
        """Makes copies plain strings."""
        return str, (str(self),)
