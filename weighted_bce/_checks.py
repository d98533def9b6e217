"""The one check of the arguments, for all functions."""

import math

import torch
from torch import Tensor

from .reference import Options

REDUCTIONS = ("none", "mean", "sum", "batchmean")

_INPUT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def checked_options(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    label_smoothing: float,
    ignore_index: float | None,
) -> Options:
    """The arguments besides the logits, or TypeError or ValueError in one sentence."""
    _check_tensors(input, target)
    value = 1.0
    if pos_weight is not None:
        if isinstance(pos_weight, Tensor):
            _check_factor("pos_weight", pos_weight, input)
        else:
            value, pos_weight = _checked_number(pos_weight), None
    if weight is not None:
        _check_factor("weight", weight, input)
    if label_smoothing != 0.0:
        _check_smoothing(label_smoothing)
    if ignore_index is not None:
        ignore_index = _checked_ignore_index(ignore_index)
    return Options(target, weight, pos_weight, value, float(label_smoothing), ignore_index)


def _check_tensors(input: Tensor, target: Tensor) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}")
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if input.dtype not in _INPUT_DTYPES:
        raise TypeError(
            f"input must be float16, bfloat16, float32 or float64, got {_name(input.dtype)}"
        )
    if target.dtype.is_complex:
        raise TypeError(
            f"target must be bool, integer or floating point, got {_name(target.dtype)}"
        )
    if target.shape != input.shape:
        raise ValueError(
            f"target must have shape {tuple(input.shape)} to match input, got {tuple(target.shape)}"
        )
    if target.device != input.device:
        raise ValueError(f"target must be on {input.device} like input, got {target.device}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_factor(name: str, factor: Tensor, input: Tensor) -> None:
    if not isinstance(factor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(factor).__name__}")
    if factor.dtype.is_complex or factor.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got {_name(factor.dtype)}")
    shape, missing = factor.shape, input.dim() - factor.dim()
    fits = missing >= 0 and all(
        n in (1, m) for n, m in zip(shape, input.shape[missing:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name} must broadcast to shape {tuple(input.shape)} of input, got {tuple(shape)}"
        )
    if factor.dim() > 0 and factor.device != input.device:
        raise ValueError(f"{name} must be on {input.device} like input, got {factor.device}")


def _checked_number(pos_weight: object) -> float:
    if isinstance(pos_weight, bool) or not isinstance(pos_weight, (int, float)):
        raise TypeError(
            f"pos_weight must be a number or a torch.Tensor, got {type(pos_weight).__name__}"
        )
    if not 0 <= pos_weight < math.inf:
        raise ValueError(f"pos_weight must be a finite number >= 0, got {pos_weight}")
    return float(pos_weight)


def _check_smoothing(label_smoothing: object) -> None:
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"label_smoothing must be a number, got {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")


def _checked_ignore_index(ignore_index: object) -> float:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, float)):
        raise TypeError(f"ignore_index must be a number or None, got {type(ignore_index).__name__}")
    return float(ignore_index)


def check_reduction(reduction: object, input: Tensor) -> None:
    if callable(reduction):
        return
    if not isinstance(reduction, str):
        raise TypeError(f"reduction must be a string or a callable, got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be one of {', '.join(REDUCTIONS)} or a callable, got {reduction!r}"
        )
    if reduction == "batchmean" and input.dim() == 0:
        raise ValueError("reduction 'batchmean' needs an input with a first dimension, got 0-d")
