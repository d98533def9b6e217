"""Sparse labels: the positives of each row, in CSR form."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from . import _csr
from ._csr_checks import INDEX_DTYPES, check_range, is_readable, short


class SparseLabels(NamedTuple):
    """Labels of which only the positives are stored, row after row (CSR without values).

    Row i has the labels ``col_indices[crow_indices[i]:crow_indices[i + 1]]``, ascending and
    without duplicates. The constructors see to that: they sort, drop duplicates and check once.

    Args:
        crow_indices: (rows + 1,), int32 or int64: where each row begins, and the end of the last.
        col_indices: (positives,), of the same dtype, on the same device: the labels.

    Note:
        A plain named tuple of two tensors: torch.compile, pytrees, data loaders and pickle take it
        for one. Made by hand, it is not checked: sort the labels of each row.

    Example:
        >>> from weighted_bce import SparseLabels
        >>> labels = SparseLabels.from_lists([[3, 1], [], [2]])
        >>> labels
        SparseLabels(rows=3, positives=3, dtype=int64, device=cpu)
        >>> labels.col_indices
        tensor([1, 3, 2])
        >>> labels.to_dense(4).int()
        tensor([[0, 1, 0, 1],
                [0, 0, 0, 0],
                [0, 0, 1, 0]], dtype=torch.int32)
    """

    crow_indices: Tensor
    col_indices: Tensor

    @classmethod
    def from_lists(cls, lists: Iterable[Any]) -> "SparseLabels":
        """Makes them of the labels of each row.

        Args:
            lists: an iterable of rows: lists, tuples or sets of integers, 1-d integer tensors or
                NumPy arrays. An empty row may have any dtype.

        Returns:
            int64, on the device of the rows where all of them are tensors, otherwise on the CPU.

        Raises:
            TypeError: a row that is no iterable, labels that are no integers (bools among them).
            ValueError: negative labels, or a row with more than one dimension.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_lists([[5, 2, 5], []]).col_indices
            tensor([2, 5])
        """
        return cls(*_csr.of_lists(lists, "lists"))

    @classmethod
    def from_padded(cls, padded: Tensor) -> "SparseLabels":
        """Makes them of rows of equal length, filled up with -1.

        Args:
            padded: (rows, k), any integer dtype; -1, at any place, is no label.

        Returns:
            int32 from int32 and int64 from all others, on the device of `padded`.

        Raises:
            TypeError: `padded` is no integer tensor.
            ValueError: another shape, or a label below -1.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_padded(torch.tensor([[7, 4], [6, -1]])).col_indices
            tensor([4, 7, 6])
        """
        return cls(*_csr.of_padded(padded))

    @classmethod
    def from_dense(cls, dense: Tensor) -> "SparseLabels":
        """Makes them of a matrix of zeros and ones.

        Args:
            dense: (rows, labels), 0/1 of bool, integer or floating dtype.

        Returns:
            int64, on the device of `dense`.

        Raises:
            TypeError: `dense` is no real, strided tensor.
            ValueError: another shape, or a value that is neither 0 nor 1.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_dense(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).col_indices
            tensor([1, 0, 1])
        """
        return cls(*_csr.of_dense(dense))

    @classmethod
    def from_scipy(cls, matrix: Any) -> "SparseLabels":
        """Makes them of a matrix or array of scipy.sparse.

        Args:
            matrix: (rows, labels), of any sparse format; bool, or the values 0 and 1. Explicit
                zeros are no positives; entries of a COO matrix that repeat are one positive.

        Returns:
            The index dtype of `matrix`, on the CPU. A copy.

        Raises:
            TypeError: `matrix` is not of scipy.sparse, or not of real numbers.
            ValueError: another shape, or a value that is neither 0 nor 1.
        """
        return cls(*_csr.of_scipy(matrix))

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "SparseLabels":
        """Makes them of a torch.sparse_csr or torch.sparse_coo tensor.

        Args:
            tensor: (rows, labels), of bool, integer or floating dtype; the values 0 and 1. Explicit
                zeros are no positives; entries that repeat, uncoalesced, are one positive.
                (Coalesced, their values have been added up to 2.)

        Returns:
            The index dtype and the device of `tensor`.

        Raises:
            TypeError: `tensor` is no real tensor of one of the two layouts.
            ValueError: another shape, a value that is neither 0 nor 1, or indices out of range.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> coo = torch.tensor([[0, 0, 1], [1, 0, 0]]).to_sparse()
            >>> SparseLabels.from_tensor(coo).col_indices
            tensor([2, 0])
        """
        return cls(*_csr.of_tensor(tensor, "tensor"))

    @property
    def num_rows(self) -> int:
        """The number of rows, those without positives included."""
        return self.crow_indices.shape[0] - 1

    def to(self, *args: Any, **kwargs: Any) -> "SparseLabels":
        """Moves them to a device or dtype, by `torch.Tensor.to` and with its arguments.

        Raises:
            TypeError: a dtype that is neither int32 nor int64.
            ValueError: numbers that int32 does not hold.
        """
        moved = SparseLabels(*(t.to(*args, **kwargs) for t in self))
        if moved.crow_indices.dtype not in INDEX_DTYPES:
            got = short(moved.crow_indices.dtype)
            raise TypeError(f"dtype must be int32 or int64, got {got}")
        if moved.crow_indices.dtype == torch.int32:
            for name, t in zip(self._fields, self, strict=True):
                if t.dtype != torch.int32 and is_readable(t) and not (t.int() == t).all():
                    raise ValueError(f"{name} must be below 2**31 for int32, got {int(t.max())}")
        return moved

    def pin_memory(self) -> "SparseLabels":
        """Copies them to page-locked memory, from which a GPU copies without waiting."""
        return SparseLabels(self.crow_indices.pin_memory(), self.col_indices.pin_memory())

    def to_dense(self, num_labels: int, dtype: torch.dtype = torch.bool) -> Tensor:
        """The matrix of zeros and ones.

        Args:
            num_labels: the number of columns.
            dtype: of the matrix. Default: torch.bool.

        Returns:
            (rows, num_labels), on the same device.

        Raises:
            ValueError: a label is not below `num_labels`; on the CPU only.
        """
        crow, col = self
        if col.is_cpu and is_readable(col):
            check_range(self, num_labels, "col_indices")
        dense = col.new_zeros(self.num_rows, num_labels, dtype=dtype)  # under vmap one of each
        dense[_csr.rows_of(crow, col), col.long()] = 1
        return dense

    def select(self, rows: Tensor | slice) -> "SparseLabels":
        """Picks the labels of some rows, as for a batch out of a data set that fits in memory.

        Args:
            rows: row numbers (1-d, int32 or int64; negative ones count from the end, and a row
                may come several times), a bool mask of all rows, or a slice.

        Returns:
            In the order of `rows`; the same dtype and device.

        Raises:
            TypeError: `rows` is neither such a tensor nor a slice.
            ValueError: a wrong shape.
            IndexError: a row that does not exist.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> labels = SparseLabels.from_lists([[3, 1], [], [2]])
            >>> labels.select(torch.tensor([-1, 0])).col_indices
            tensor([2, 1, 3])
        """
        crow, col = self
        chosen = _row_numbers(rows, self.num_rows).to(crow.device)
        begin = crow[chosen]
        counts = crow[chosen + 1] - begin
        ends = counts.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        # Position i of the result comes from i - (where its row begins there) + (where here).
        shift = torch.repeat_interleave(begin - (ends - counts), counts, output_size=total)
        col = col[torch.arange(total, device=col.device) + shift]
        return SparseLabels(*_csr.csr(counts, col))

    def __repr__(self) -> str:
        crow, col = self
        if not (isinstance(crow, Tensor) and isinstance(col, Tensor) and crow.dim() == 1):
            return (
                f"SparseLabels(crow_indices={crow!r}, col_indices={col!r})"  # pytrees hold others
            )
        kind = f"dtype={short(col.dtype)}, device={col.device}"
        return f"SparseLabels(rows={self.num_rows}, positives={col.numel()}, {kind})"


# So that torch.export saves a program whose inputs hold them, and that torch.load, which by default
# takes nothing but weights, takes its example inputs, and data sets.
_pytree._register_namedtuple(SparseLabels, serialized_type_name="weighted_bce.SparseLabels")
torch.serialization.add_safe_globals([SparseLabels])


def _row_numbers(rows: Tensor | slice, num_rows: int) -> Tensor:
    if isinstance(rows, slice):
        numbers = range(num_rows)[rows]
        return torch.arange(len(numbers)) * numbers.step + numbers.start
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows must be a torch.Tensor or a slice, got {type(rows).__name__}")
    if rows.dtype not in (torch.bool, *INDEX_DTYPES):
        raise TypeError(f"rows must be bool, int32 or int64, got {short(rows.dtype)}")
    if rows.dim() != 1:
        raise ValueError(f"rows must be one-dimensional, got shape {tuple(rows.shape)}")
    if rows.dtype == torch.bool:
        if len(rows) != num_rows:
            raise ValueError(f"rows must have shape ({num_rows},) as a mask, got ({len(rows)},)")
        return rows.nonzero().squeeze(1)
    outside = (rows < -num_rows) | (rows >= num_rows)
    if outside.any():
        first = int(rows[outside][0])
        raise IndexError(f"rows must be from {-num_rows} to {num_rows - 1}, got {first}")
    return torch.where(rows < 0, rows + num_rows, rows).long()
