"""Counts the positives of each label, in labels of every kind that a loader gives."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _csr
from ._csr_checks import check_form, check_indices, short
from ._numbers import checked_count
from .collation import labels_key, parts_of, shown
from .sparse import SparseLabels

Labels = Tensor | SparseLabels | Iterable[Any]
BLOCK = 2**22  # elements of a dense matrix that are converted at once
NO_ROWS = "labels must have at least one row, got none"
_KINDS = "a tensor, an array, a scipy.sparse matrix or SparseLabels"


class Counted(NamedTuple):
    """What weights are computed from."""

    positives: Tensor  # of each label; float64 on the CPU, since not all devices have that dtype
    rows: int
    device: torch.device  # of the labels


def counted(labels: Labels, num_labels: int | None) -> Counted:
    """Counts labels, of which one batch at a time is in memory."""
    if isinstance(labels, Tensor) and hasattr(labels, "full_tensor"):
        return _of_dtensor(labels, num_labels)
    positives, rows, kind, device = None, 0, None, torch.device("cpu")
    for matrix, place in _matrices(labels):
        if positives is None:
            kind, device = _kind(matrix), _device(matrix)
            num_labels = _checked_num_labels(num_labels, matrix, place)
            positives = torch.zeros(num_labels, dtype=torch.float64, device="cpu")
        elif _kind(matrix) != kind:
            got = f"{_kind(matrix)}{place}"
            raise TypeError(f"labels must be of one kind, got {kind} and then {got}")
        elif not isinstance(matrix, SparseLabels) and _width(matrix, place) != num_labels:
            wanted = f"(rows, {num_labels}) as before"
            raise ValueError(f"labels must have shape {wanted}, got {tuple(matrix.shape)}{place}")
        rows += _add(positives, matrix)
    if positives is None or rows == 0:
        raise ValueError(NO_ROWS)
    return Counted(positives, rows, device)


def _of_dtensor(labels: Any, num_labels: int | None) -> Counted:
    """Counts in a DTensor; every process has all counts, as a loss of DTensors needs them."""
    from torch.distributed.tensor import Replicate

    _checked_num_labels(num_labels, labels, "")
    _check_dtype(labels)
    _check_range(labels)
    if len(labels) == 0:
        raise ValueError(NO_ROWS)
    everywhere = [Replicate()] * labels.device_mesh.ndim
    positives = labels.sum(0, dtype=torch.float64).redistribute(placements=everywhere)
    return Counted(positives, len(labels), labels.device)


def _matrices(labels: Labels) -> Iterator[tuple[Any, str]]:
    """Yields the labels of each batch, and how messages name the batch."""
    if _kind(labels) is not None:
        yield labels, ""
        return
    if not isinstance(labels, Iterable):
        got = type(labels).__name__
        raise TypeError(f"labels must be {_KINDS}, or an iterable of batches of them, got {got}")
    for i, batch in enumerate(labels):
        yield _labels_in(batch, i), f" in batch {i}"


def _labels_in(batch: Any, i: int) -> Any:
    """Returns the labels of a batch, which are where `collate` puts them."""
    if _kind(batch) is not None:
        return batch
    got, parts = type(batch).__name__, parts_of(batch)
    if parts is not None:
        key = labels_key(batch, parts)
        if key is None:
            remedy = "pass the labels of each batch alone"
            got = f"{shown(parts)} in batch {i}; {remedy}"
            raise ValueError(f"labels must be in the element 'labels' of a batch, got {got}")
        if _kind(parts[key]) is not None:
            return parts[key]
        got = f"{type(parts[key]).__name__} in a {got}"
    remedy = "SparseLabels.from_lists takes lists of labels"
    raise TypeError(f"labels must be {_KINDS} in each batch, got {got} in batch {i}; {remedy}")


def _kind(matrix: object) -> str | None:
    """Returns what a matrix of labels is, in words; None if it is no such matrix."""
    if isinstance(matrix, SparseLabels):
        return "SparseLabels"
    if isinstance(matrix, Tensor):
        return f"a {str(matrix.layout).removeprefix('torch.')} tensor"
    if _is_array(matrix):
        return "an array"
    return "a scipy.sparse matrix" if hasattr(matrix, "tocoo") else None


def _is_array(matrix: object) -> bool:
    numpy = sys.modules.get("numpy")  # without numpy there is no array
    return numpy is not None and isinstance(matrix, numpy.ndarray)


def _device(matrix: Any) -> torch.device:
    if isinstance(matrix, SparseLabels):
        check_form(matrix, "labels")
        matrix = matrix.col_indices
    return matrix.device if isinstance(matrix, Tensor) else torch.device("cpu")


def _width(matrix: Any, place: str) -> int:
    shape = tuple(matrix.shape)
    if len(shape) != 2:
        raise ValueError(f"labels must have shape (rows, labels), got {shape}{place}")
    return int(shape[1])


def _checked_num_labels(num_labels: int | None, matrix: Any, place: str) -> int:
    if not isinstance(matrix, SparseLabels):
        width = _width(matrix, place)
        if num_labels is not None and num_labels != width:
            raise ValueError(f"num_labels must be {width} to match labels, got {num_labels}")
        return width
    if num_labels is None:
        raise ValueError("num_labels must be given for SparseLabels, got None")
    return checked_count("num_labels", num_labels)


def _add(positives: Tensor, matrix: Any) -> int:
    """Adds the positives of a matrix, in place, and returns its number of rows."""
    if _is_array(matrix) or (isinstance(matrix, Tensor) and matrix.layout == torch.strided):
        _check_dtype(matrix)
        _add_dense(positives, matrix)
        return len(matrix)
    if isinstance(matrix, Tensor):
        matrix = SparseLabels(*_csr.of_tensor(matrix, "labels"))
    elif not isinstance(matrix, SparseLabels):
        matrix = SparseLabels(*_csr.of_scipy(matrix, "labels"))
    check_form(matrix, "labels")
    matrix = matrix.to("cpu")
    check_indices(matrix, len(positives), "labels")
    # bincount would write as many numbers as there are labels for every batch.
    positives.index_add_(0, matrix.col_indices, positives.new_ones(len(matrix.col_indices)))
    return int(matrix.num_rows)


def _add_dense(positives: Tensor, matrix: Any) -> None:
    """Adds the positives of a dense matrix; soft labels are summed in float64 on the CPU."""
    rows = max(BLOCK // max(len(positives), 1), 1)
    for start in range(0, len(matrix), rows):  # in blocks, whose conversion takes little memory
        block = matrix[start : start + rows]
        if not isinstance(block, Tensor):
            block = torch.from_numpy(block.astype("float64", subok=False))
        _check_range(block)
        block = block.cpu().double() if block.is_floating_point() else block.long()
        positives += block.sum(0).cpu()


def _check_dtype(matrix: Any) -> None:
    is_real = matrix.dtype.kind in "biuf" if _is_array(matrix) else not matrix.dtype.is_complex
    if not is_real:
        got = short(matrix.dtype)
        raise TypeError(f"labels must be bool, integer or floating point, got {got}")


def _check_range(block: Tensor) -> None:
    if block.dtype == torch.bool or block.numel() == 0:
        return
    bounds: Any = torch.aminmax(block.float())
    if hasattr(block, "full_tensor"):  # each process has the bounds of its part
        bounds = [bound.full_tensor() for bound in bounds]
    low, high = (bound.item() for bound in bounds)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"labels must be in [0, 1], got values from {low:g} to {high:g}")
