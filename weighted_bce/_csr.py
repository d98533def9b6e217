"""Makes crow_indices and col_indices from the forms in which labels can be given.

This takes a few operations over all positives at once. Only lists that are mixed with tensors or
arrays need a loop over the rows.
"""

import sys
from array import array
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, index
from typing import Any

import torch
from torch import Tensor

from ._csr_checks import INDEX_DTYPES, Csr, check_all, check_below, check_crow, short

LARGEST = torch.iinfo(torch.int64).max


def of_lists(lists: Iterable[Any], name: str) -> Csr:
    """Makes CSR from an iterable of labels for each row."""
    if not isinstance(lists, Iterable):
        raise TypeError(f"{name} must be an iterable of rows, got {type(lists).__name__}")
    rows = list(lists)
    kinds = set(map(type, rows))
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", ())  # without numpy, no class at all
    if kinds and all(issubclass(kind, Tensor) for kind in kinds):
        counts, labels = _of_tensors(rows, name)
    elif kinds and all(issubclass(kind, ndarray) for kind in kinds):
        counts, labels = _of_arrays(rows, name)
    else:
        if not kinds <= {list, tuple, set, frozenset}:
            rows = _as_lists(rows, (Tensor, ndarray), name)
        counts, labels = _of_iterables(rows, name)
    crow = _cumulated(counts)
    check_all(labels >= 0, crow, labels, f"{name} must hold labels >= 0")
    return sorted_rows(torch.repeat_interleave(counts), labels, len(rows))


def _of_tensors(rows: list[Tensor], name: str) -> tuple[Tensor, Tensor]:
    counts = list(map(Tensor.numel, rows))
    dtypes = _check_arrays(dict(enumerate(rows)), name)
    if len(set(map(attrgetter("device"), rows))) > 1:
        raise ValueError(f"{name} must be on one device, got rows on several")
    labels = torch.cat(rows if len(dtypes) == 1 else [row.long() for row in rows]).long()
    return torch.tensor(counts, device=labels.device), labels


def _of_arrays(rows: list[Any], name: str) -> tuple[Tensor, Tensor]:
    """Joins NumPy arrays. If there are any, NumPy has been imported; otherwise it is not needed."""
    counts = list(map(attrgetter("size"), rows))
    _check_arrays(dict(enumerate(rows)), name)
    joined = sys.modules["numpy"].concatenate(rows, dtype="int64", casting="unsafe")
    return torch.tensor(counts, device="cpu"), _from_buffer(joined)


def _check_arrays(rows: dict[int, Any], name: str) -> set[Any]:
    """Checks that tensors or arrays are 1-d integers, and returns their dtypes.

    Empty ones may be of any dtype: torch.tensor([]) and numpy.array([]) are floating.
    """
    if not set(map(attrgetter("ndim"), rows.values())) <= {1}:
        i, shape = next((i, tuple(row.shape)) for i, row in rows.items() if row.ndim != 1)
        raise ValueError(f"{name} must hold 1-d rows, got shape {shape} in row {i}")
    dtypes = set(map(attrgetter("dtype"), rows.values()))
    if not all(map(_is_integral, dtypes)):
        wrong = ((i, row) for i, row in rows.items() if not _is_integral(row.dtype) and len(row))
        for i, row in wrong:
            raise TypeError(f"{name} must hold integers, got {short(row.dtype)} in row {i}")
    return dtypes


def _is_integral(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    return dtype.kind in ("i", "u")  # of numpy


def _as_lists(rows: list[Any], arrays: tuple[Any, ...], name: str) -> list[Any]:
    """Makes lists of tensors, arrays and other iterables, mixed."""
    for i, row in enumerate(rows):
        if not isinstance(row, Iterable):
            got = f"{type(row).__name__} in row {i}"
            raise TypeError(f"{name} must hold one iterable of labels a row, got {got}")
    among = {i: row for i, row in enumerate(rows) if isinstance(row, arrays)}
    _check_arrays(among, name)
    return [row.tolist() if i in among else list(row) for i, row in enumerate(rows)]


def _of_iterables(rows: list[Any], name: str) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(list(map(len, rows)), dtype=torch.int64, device="cpu")
    # An array would take True for 1, also in a tensor: a row of bools is a dense one.
    kinds = set(map(type, chain.from_iterable(rows)))
    if any(issubclass(kind, (bool, Tensor)) for kind in kinds):
        _check_integers(rows, name)
    try:
        labels = array("q", chain.from_iterable(rows))
    except TypeError:
        _check_integers(rows, name)
        raise
    except OverflowError:
        raise ValueError(f"{name} must hold labels below 2**63, got a larger number") from None
    return counts, _from_buffer(labels)


def _from_buffer(numbers: Any) -> Tensor:
    """Makes an int64 tensor without a copy, and without numpy."""
    if not len(numbers):
        # torch.frombuffer refuses an empty buffer.
        return torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(numbers, dtype=torch.int64)


def _check_integers(rows: list[Any], name: str) -> None:
    """Raises TypeError for the first label that is not an integer; slow, so only if needed."""
    for i, row in enumerate(rows):
        for label in row:
            try:
                index(label)
                integral = not (isinstance(label, bool) or _is_bool_tensor(label))
            except TypeError:
                integral = False
            if not integral:
                got = f"{type(label).__name__} in row {i}"
                raise TypeError(f"{name} must hold integers, got {got}") from None


def _is_bool_tensor(label: Any) -> bool:
    return isinstance(label, Tensor) and label.dtype == torch.bool


def of_padded(padded: Tensor) -> Csr:
    """Makes CSR from (rows, k) labels, where -1 stands for no label."""
    _check_matrix(padded, "padded", "rows, k")
    dtype = padded.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"padded must hold integers, got {short(dtype)}")
    if dtype == torch.uint64 and (padded.view(torch.int64) < 0).any():
        raise ValueError("padded must hold labels below 2**63, got a larger number")
    if dtype not in INDEX_DTYPES:
        padded = padded.long()
    wrong = padded < -1
    if wrong.any():
        value, row = _first(wrong, padded)
        raise ValueError(f"padded must hold labels >= 0, or -1 for none, got {value} in row {row}")
    given = padded >= 0
    return sorted_rows(torch.repeat_interleave(given.sum(1)), padded[given], len(padded))


def of_dense(dense: Tensor, binarize: bool) -> Csr:
    """Makes CSR from (rows, labels) zeros and ones."""
    _check_matrix(dense, "dense", "rows, labels")
    if dense.dtype.is_complex:
        raise TypeError(f"dense must be bool, integer or floating point, got {short(dense.dtype)}")
    if dense.dtype != torch.bool:
        wrong = _is_wrong(dense, binarize)
        if wrong.any():
            raise ValueError(_must_be("dense", "dense", binarize, *_first(wrong, dense)))
        dense = dense != 0
    rows, labels = dense.nonzero(as_tuple=True)
    return sorted_rows(rows, labels, len(dense))


def of_scipy(matrix: Any, name: str = "matrix", binarize: bool = False) -> Csr:
    """Makes CSR from a matrix or array of scipy.sparse."""
    if not hasattr(matrix, "tocoo"):
        got = type(matrix).__name__
        raise TypeError(f"{name} must be a matrix or array of scipy.sparse, got {got}")
    if len(matrix.shape) != 2:
        raise ValueError(f"{name} must have shape (rows, labels), got {tuple(matrix.shape)}")
    coo = matrix.tocoo()  # tocsr() would add up the duplicates in a COO matrix
    if coo.data.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be bool, integer or floating point, got {coo.data.dtype}")
    wrong = _is_wrong(coo.data, binarize)
    if wrong.any():
        at = wrong.argmax()
        value, row = coo.data[at].item(), coo.row[at]
        raise ValueError(_must_be(name, "scipy", binarize, value, row))
    # The mask copies, so later changes of the matrix do not change the labels.
    given = coo.data != 0
    rows, labels = torch.from_numpy(coo.row[given]), torch.from_numpy(coo.col[given])
    return sorted_rows(rows, labels, matrix.shape[0])


def of_tensor(tensor: Tensor, name: str, binarize: bool = False) -> Csr:
    """Makes CSR from a torch.sparse_csr or torch.sparse_coo tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout not in (torch.sparse_csr, torch.sparse_coo):
        got = f"got {tensor.layout}"
        raise TypeError(f"{name} must be torch.sparse_csr or torch.sparse_coo, {got}")
    if tensor.dtype.is_complex:
        got = short(tensor.dtype)
        raise TypeError(f"{name} must be bool, integer or floating point, got {got}")
    if tensor.dim() != 2 or tensor.dense_dim() != 0:
        got = f"got shape {tuple(tensor.shape)} with dense_dim {tensor.dense_dim()}"
        raise ValueError(f"{name} must have two dimensions, both sparse, {got}")
    if tensor.layout == torch.sparse_coo:
        # Uncoalesced: coalescing adds up the values of duplicates, and two ones would be a 2.
        (rows, labels), values = tensor._indices(), tensor._values()
        check_below(rows, tensor.shape[0], f"{name} must have row numbers")
    else:
        crow, labels, values = tensor.crow_indices(), tensor.col_indices(), tensor.values()
        check_crow(crow, labels.numel(), f"{name}.crow_indices")
        rows = torch.repeat_interleave(crow.diff())
    check_below(labels, tensor.shape[1], f"{name} must have labels")
    wrong = _is_wrong(values, binarize)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise ValueError(_must_be(name, "tensor", binarize, values[at].item(), int(rows[at])))
    given = values != 0
    return sorted_rows(rows[given], labels[given], tensor.shape[0])


def sorted_rows(rows: Tensor, labels: Tensor, num_rows: int) -> Csr:
    """Makes CSR from positives (rows[i], labels[i]), in any order and with repetitions."""
    dtype = labels.dtype
    rows, labels = rows.long(), labels.long()
    same_row = rows[1:] == rows[:-1]
    ascending = (rows[1:] > rows[:-1]) | (same_row & (labels[1:] > labels[:-1]))
    if not ascending.all():
        rows, labels = _sorted(rows, labels, num_rows)
    return csr(torch.bincount(rows, minlength=num_rows), labels.to(dtype))


def _sorted(rows: Tensor, labels: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Sorts by row and label, as one number, and drops duplicates."""
    unique_labels, width = None, int(labels.max()) + 1
    if num_rows * width > LARGEST:
        unique_labels, labels = torch.unique(
            labels, return_inverse=True
        )  # as few numbers as there are labels
        width = len(unique_labels)
    keys = (rows * width + labels).sort().values
    keys = torch.cat([keys[:1], keys[1:][keys[1:] != keys[:-1]]])
    rows, labels = keys // width, keys % width
    return rows, labels if unique_labels is None else unique_labels[labels]


def csr(counts: Tensor, labels: Tensor) -> Csr:
    """Makes CSR from the number of positives in each row; int64 if int32 is too short."""
    if labels.numel() > torch.iinfo(labels.dtype).max:
        labels = labels.long()
    return _cumulated(counts).to(labels.dtype), labels


def _cumulated(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.long().cumsum(0), (1, 0))


def rows_of(crow: Tensor, labels: Tensor) -> Tensor:
    """Returns the row of each positive, int64; outside of all rows, -1 or the number of rows."""
    places = torch.arange(labels.shape[0], device=crow.device) + torch.zeros_like(labels)
    # torch warns about a crow that is not contiguous.
    return torch.searchsorted(crow.contiguous(), places.to(crow.dtype), right=True) - 1


def _check_matrix(matrix: Tensor, name: str, shape: str) -> None:
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
    if matrix.layout != torch.strided:
        raise TypeError(f"{name} must be torch.strided, got {matrix.layout}: use from_tensor")
    if matrix.dim() != 2:
        raise ValueError(f"{name} must have shape ({shape}), got {tuple(matrix.shape)}")


def _first(wrong: Tensor, matrix: Tensor) -> tuple[float, int]:
    row, column = wrong.nonzero()[0].tolist()
    return matrix[row, column].item(), row


def _is_wrong(values: Any, binarize: bool) -> Any:
    """Marks what is no label, in a tensor or in an array."""
    if binarize and isinstance(values, Tensor) and not values.dtype.is_signed:
        return torch.zeros_like(values, dtype=torch.bool)  # torch has no >= for some of them
    if binarize:
        return ~(values >= 0)  # NaN is wrong too
    return (values != 0) & (values != 1)


def _must_be(name: str, kind: str, binarize: bool, value: float, row: int) -> str:
    if binarize:
        return f"{name} must hold values >= 0 with binarize=True, got {value:g} in row {row}"
    hint = f"SparseLabels.from_{kind}(..., binarize=True) takes counts"
    return f"{name} must hold 0 and 1 only, got {value:g} in row {row}; {hint}"
