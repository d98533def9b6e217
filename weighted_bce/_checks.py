"""Checks the arguments that users pass; _numbers.py has the checks of numbers and bools."""

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ._csr_checks import check_form, check_indices, is_readable, short
from ._numbers import checked_at_least_0, checked_number
from ._options import BATCHMEAN, MEAN, NONE, REDUCTIONS, SUM, Options
from .losses import Loss
from .sparse import SparseLabels

Target = Tensor | SparseLabels
_SPARSE_LAYOUTS = frozenset({torch.sparse_csr, torch.sparse_coo})
INPUT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def checked_options(
    input: Tensor,
    target: Target,
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    label_smoothing: float,
    ignore_index: float | None,
    reduction: int,
    loss: Loss,
    normalizer: float | Tensor | None = None,
    *,
    logits_name: str = "input",
    rows: Tensor | None = None,
) -> Options:
    """Returns the arguments besides the logits as options.

    Args:
        input: the logits. They and the following arguments are as the user passed them.
        reduction: the number of the reduction, which was checked before, as was `loss`. With a
            normalizer, a sum becomes a mean over it.
        logits_name: the name of the logits in messages.
        rows: the logits as the matrix whose rows sparse labels are for. Default: `input`.

    Raises:
        TypeError, ValueError: if an argument is wrong. The message names it, what is expected,
            and what it is.
    """
    crow_indices = None
    if isinstance(target, Tensor) and target.layout is torch.strided:
        _check_tensors(input, target, logits_name)
    else:
        matrix = input if rows is None else rows
        target, crow_indices = _checked_sparse(matrix, target, logits_name)
    value: float = 1.0
    if pos_weight is not None:
        if isinstance(pos_weight, Tensor):
            _check_factor("pos_weight", pos_weight, input, logits_name)
        else:
            value, pos_weight = pos_weight, None
            if not (type(value) is float and 0 <= value < math.inf):
                value = checked_pos_weight(value)
    if weight is not None:
        _check_factor("weight", weight, input, logits_name)
    if reduction == BATCHMEAN and input.dim() == 0:
        raise ValueError("reduction 'batchmean' needs an input with a first dimension, got 0-d")
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = checked_smoothing(label_smoothing)
    if ignore_index is not None:
        ignore_index = checked_ignore_index(ignore_index)
    if normalizer is not None:
        normalizer = _checked_normalizer(normalizer, input, reduction)
        reduction = MEAN
    return Options(
        target,
        crow_indices,
        weight,
        pos_weight,
        value,
        label_smoothing,
        ignore_index,
        None,
        reduction,
        loss._loss_id,
        loss._parameters,
        normalizer,
    )


def check_input(input: Tensor) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}")
    if input.dtype not in INPUT_DTYPES:
        raise TypeError(
            f"input must be float16, bfloat16, float32 or float64, got {short(input.dtype)}"
        )


def _check_tensors(input: Tensor, target: Tensor, logits_name: str) -> None:
    check_input(input)
    if target.dtype.is_complex:
        raise TypeError(
            f"target must be bool, integer or floating point, got {short(target.dtype)}"
        )
    if target.layout is not input.layout:
        raise TypeError(f"target must be {input.layout} like input, got {target.layout}")
    if target.shape != input.shape:
        _refuse_shape(input, target, logits_name)
    if target.device != input.device:
        raise ValueError(f"target must be on {input.device} like input, got {target.device}")


def _refuse_shape(input: Tensor, target: Tensor, logits_name: str) -> NoReturn:
    raise ValueError(
        f"target must have shape {tuple(input.shape)} to match {logits_name}, "
        f"got {tuple(target.shape)}"
    )


def _checked_sparse(
    input: Tensor, target: Target, logits_name: str
) -> tuple[Tensor, Tensor | None]:
    """Returns col_indices and crow_indices, whose values are not read; or the target and None if
    `input` has the same layout, which is not strided."""
    if isinstance(target, Tensor):
        if target.layout not in _SPARSE_LAYOUTS or input.layout is target.layout:
            _check_tensors(input, target, logits_name)
            return target, None
        if target.requires_grad:
            raise TypeError("target must not require a gradient if it is sparse")
        if target.shape != input.shape:
            _refuse_shape(input, target, logits_name)
        target = SparseLabels.from_tensor(target)
    elif not isinstance(target, SparseLabels):
        raise TypeError(
            f"target must be a torch.Tensor or SparseLabels, got {type(target).__name__}"
        )
    check_input(input)
    if input.layout is not torch.strided:
        raise TypeError(f"input must be torch.strided with sparse labels, got {input.layout}")
    check_form(target)
    if input.dim() != 2:
        raise ValueError(
            f"input must have shape (rows, labels) with sparse labels, got {tuple(input.shape)}"
        )
    crow, col = target
    rows = input.shape[0]  # len() would make it a constant of what is traced
    if crow.shape[0] != rows + 1:
        raise ValueError(
            f"target must have {rows} rows to match {logits_name}, got {crow.shape[0] - 1}"
        )
    if col.device != input.device:
        raise ValueError(f"target must be on {input.device} like input, got {col.device}")
    return col.contiguous(), crow.contiguous()


def check_csr_indices(shape: Sequence[int], options: Options) -> None:
    """Raises ValueError for wrong indices of sparse labels, if reading them waits for no device.

    `shape` is the shape of the logits.
    """
    if options.crow_indices is None:
        return
    labels = SparseLabels(options.crow_indices, options.target)
    if all(t.is_cpu and is_readable(t) for t in labels):
        check_indices(labels, shape[1])


def raise_wrong_index(shape: Sequence[int], options: Options) -> None:
    """Raises ValueError for wrong indices of sparse labels after a kernel has raised an error.

    The kernels check each index, but do not name the wrong one.
    """
    try:
        check_csr_indices(shape, options)
    except ValueError as wrong_index:
        raise wrong_index from None


def check_factor_dtype(name: str, factor: Tensor) -> None:
    """Raises TypeError unless `factor`, a weight or a normalizer, is a tensor of numbers."""
    if not isinstance(factor, Tensor):
        got = type(factor).__name__
        if name == "weight" and isinstance(factor, (int, float)):
            got += "; the weight of the positives is pos_weight"
        raise TypeError(f"{name} must be a torch.Tensor or None, got {got}")
    if factor.dtype.is_complex or factor.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer or floating dtype, got {short(factor.dtype)}")
    if factor.dtype.is_floating_point and factor.itemsize == 1:
        raise TypeError(f"{name} must have a dtype of 16 bits or more, got {short(factor.dtype)}")
    if factor.layout is not torch.strided:
        raise TypeError(f"{name} must be torch.strided, got {factor.layout}")


def _check_factor(name: str, factor: Tensor, input: Tensor, logits_name: str) -> None:
    check_factor_dtype(name, factor)
    shape, missing = factor.shape, input.dim() - factor.dim()
    fits = missing >= 0 and all(
        n in (1, m) for n, m in zip(shape, input.shape[missing:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name} must broadcast to shape {tuple(input.shape)} of {logits_name}, "
            f"got {tuple(shape)}"
        )
    movable = factor.dim() == 0 and factor.device.type == "cpu"  # as for torch's own operators
    if factor.device != input.device and not movable:
        raise ValueError(f"{name} must be on {input.device} like input, got {factor.device}")


def _checked_normalizer(normalizer: float | Tensor, input: Tensor, reduction: int) -> Tensor:
    """Returns the normalizer as a 0-d tensor; a number on the CPU, whatever the default device."""
    if reduction not in (MEAN, SUM):
        got = "'batchmean'" if reduction == BATCHMEAN else "'none' or a callable"
        raise ValueError(f"a normalizer needs reduction 'mean' or 'sum', got {got}")
    if not isinstance(normalizer, Tensor):
        if not isinstance(normalizer, (torch.SymInt, torch.SymFloat)):  # a size of an export
            normalizer = checked_number("normalizer", normalizer, ", a 0-d torch.Tensor or None")
            normalizer = checked_at_least_0("normalizer", normalizer)
        # For the compiler, this is a number that may change.
        return torch.ones((), dtype=torch.float64, device="cpu") * normalizer
    check_factor_dtype("normalizer", normalizer)
    if normalizer.dim() != 0:
        raise ValueError(f"normalizer must be 0-d, got shape {tuple(normalizer.shape)}")
    if not normalizer.is_cpu and normalizer.device != input.device:
        raise ValueError(
            f"normalizer must be on {input.device} like input or on cpu, got {normalizer.device}"
        )
    if normalizer.is_cpu and is_readable(normalizer) and not normalizer.item() >= 0:
        raise ValueError(f"normalizer must be >= 0, got {normalizer.item()}")
    return normalizer


def checked_pos_weight(pos_weight: object, name: str = "pos_weight") -> float:
    """Returns a pos_weight that is not a tensor as a float."""
    return checked_at_least_0(name, checked_number(name, pos_weight, " or a torch.Tensor"))


def checked_ignore_index(ignore_index: object) -> float:
    """Returns the number as a float."""
    return checked_number("ignore_index", ignore_index, " or None")


def checked_smoothing(label_smoothing: object) -> float:
    """Returns the number as a float; raises ValueError unless it is in [0, 1)."""
    value = checked_number("label_smoothing", label_smoothing)
    if not 0 <= value < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {value}")
    return value


def checked_reduction(reduction: object) -> int:
    """Returns the number of a reduction; a callable has that of "none"."""
    return NONE if callable(reduction) else checked_named_reduction(reduction, " or a callable")


def checked_named_reduction(reduction: object, otherwise: str = "") -> int:
    """Returns the number of a reduction. `otherwise` names what the caller accepts besides."""
    if not isinstance(reduction, str):
        got = type(reduction).__name__
        raise TypeError(f"reduction must be a string{otherwise}, got {got}")
    if reduction not in REDUCTIONS:
        names = ", ".join(REDUCTIONS)
        raise ValueError(f"reduction must be one of {names}{otherwise}, got {reduction!r}")
    return REDUCTIONS[reduction]
