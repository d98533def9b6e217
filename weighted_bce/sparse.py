"""Sparse labels: the positives of each row, in CSR form."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from . import _csr
from ._csr_checks import INDEX_DTYPES, check_range, is_readable, short


class SparseLabels(NamedTuple):
    """Labels in CSR form, which stores only the positives of each row.

    The labels of row i are ``col_indices[crow_indices[i]:crow_indices[i + 1]]``, ascending and
    without duplicates. The functions `from_lists`, `from_padded`, `from_dense`, `from_scipy` and
    `from_tensor` sort the labels, drop duplicates and check them once.

    Args:
        crow_indices: where each row begins in `col_indices`, and where the last one ends; shape
            (rows + 1,), int32 or int64.
        col_indices: the labels; shape (positives,), same dtype and device as `crow_indices`.

    Raises:
        TypeError: if there is one argument, and it is not an iterable of two tensors or arrays.

    Note:
        SparseLabels are a named tuple of two tensors, so they work in torch.compile, pytrees, data
        loaders and pickles. The constructor ``SparseLabels(crow_indices, col_indices)`` checks
        nothing. Sort the labels of each row before you use it. It also takes one iterable of
        both, ``type(labels)(t.to(device) for t in labels)``, as some trainers move a batch.

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

    #: Where each row begins in `col_indices`, and where the last one ends; shape (rows + 1,).
    crow_indices: Tensor
    #: The labels of all rows, one row after the other; shape (positives,).
    col_indices: Tensor

    @classmethod
    def from_lists(cls, lists: Iterable[Any]) -> "SparseLabels":
        """Makes sparse labels from the list of labels of each row.

        Args:
            lists: an iterable of rows. A row is a list, tuple or set of integers, a 1-d integer
                tensor or a NumPy array. An empty row may have any dtype.

        Returns:
            SparseLabels of int64. If all rows are tensors, they are on the device of the rows,
            otherwise on the CPU.

        Raises:
            TypeError: if a row is not iterable, or a label is not an integer. Bools are not
                accepted.
            ValueError: if a label is negative, or a row has more than one dimension.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_lists([[5, 2, 5], []]).col_indices
            tensor([2, 5])
        """
        return cls(*_csr.of_lists(lists, "lists"))

    @classmethod
    def from_padded(cls, padded: Tensor) -> "SparseLabels":
        """Makes sparse labels from rows that are padded with -1 to equal length.

        Args:
            padded: the labels of each row, in any order; shape (rows, k), any integer dtype. A -1
                at any place is skipped.

        Returns:
            SparseLabels on the device of `padded`; int32 if `padded` is int32, otherwise int64.

        Raises:
            TypeError: if `padded` is not an integer tensor.
            ValueError: if `padded` has another shape, or a label is below -1.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_padded(torch.tensor([[7, 4], [6, -1]])).col_indices
            tensor([4, 7, 6])
        """
        return cls(*_csr.of_padded(padded))

    @classmethod
    def from_dense(cls, dense: Tensor) -> "SparseLabels":
        """Makes sparse labels from a matrix of zeros and ones.

        Args:
            dense: shape (rows, labels); bool or any integer or floating dtype, with the values 0
                and 1.

        Returns:
            SparseLabels of int64, on the device of `dense`.

        Raises:
            TypeError: if `dense` is not a real, strided tensor.
            ValueError: if `dense` has another shape, or a value is neither 0 nor 1.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_dense(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).col_indices
            tensor([1, 0, 1])
        """
        return cls(*_csr.of_dense(dense))

    @classmethod
    def from_scipy(cls, matrix: Any) -> "SparseLabels":
        """Makes sparse labels from a matrix or array of scipy.sparse.

        Args:
            matrix: shape (rows, labels), any sparse format; bool or real numbers, with the values 0
                and 1. Explicit zeros are not positives. Repeated entries of a COO matrix count
                once.

        Returns:
            SparseLabels on the CPU, with the index dtype of `matrix`. They share no memory with it.

        Raises:
            TypeError: if `matrix` is not from scipy.sparse, or its values are not real numbers.
            ValueError: if `matrix` has another shape, or a value is neither 0 nor 1.

        Example:
            >>> import scipy.sparse
            >>> from weighted_bce import SparseLabels
            >>> matrix = scipy.sparse.csr_array([[0, 1, 1], [0, 0, 0]])
            >>> SparseLabels.from_scipy(matrix).col_indices.tolist()
            [1, 2]
        """
        return cls(*_csr.of_scipy(matrix))

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "SparseLabels":
        """Makes sparse labels from a torch.sparse_csr or torch.sparse_coo tensor.

        Args:
            tensor: shape (rows, labels); bool or any integer or floating dtype, with the values 0
                and 1. Explicit zeros are not positives. Repeated entries of an uncoalesced tensor
                count once; if it was coalesced before, their values have become 2, which is an
                error.

        Returns:
            SparseLabels with the index dtype and the device of `tensor`.

        Raises:
            TypeError: if `tensor` is not a real tensor of one of the two layouts.
            ValueError: if `tensor` has another shape, a value is neither 0 nor 1, or an index is
                out of range.

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
        """The number of rows, with and without positives."""
        return self.crow_indices.shape[0] - 1

    def to(self, *args: Any, **kwargs: Any) -> "SparseLabels":
        """Moves or converts the labels, with the arguments of torch.Tensor.to.

        Returns:
            SparseLabels on the device and of the dtype asked for.

        Raises:
            TypeError: if the dtype is neither int32 nor int64.
            ValueError: if a number does not fit in int32.
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
        """Copies the labels to page-locked memory, from which a copy to a GPU need not block."""
        return SparseLabels(self.crow_indices.pin_memory(), self.col_indices.pin_memory())

    def to_dense(self, num_labels: int, dtype: torch.dtype = torch.bool) -> Tensor:
        """Makes the matrix of zeros and ones.

        Args:
            num_labels: the number of columns.
            dtype: the dtype of the matrix. Default: torch.bool.

        Returns:
            A tensor of shape (rows, num_labels), on the device of the labels.

        Raises:
            ValueError: if a label is not below `num_labels`. This is checked on the CPU only.
        """
        crow, col = self
        if col.is_cpu and is_readable(col):
            check_range(self, num_labels, "col_indices")
        dense = col.new_zeros(self.num_rows, num_labels, dtype=dtype)  # under vmap one of each
        dense[_csr.rows_of(crow, col), col.long()] = 1
        return dense

    def select(self, rows: Tensor | slice) -> "SparseLabels":
        """Picks the labels of some rows, for example of a batch from a data set in memory.

        Args:
            rows: row numbers, a mask or a slice. Row numbers are a 1-d tensor of int32 or int64.
                They may be negative, which counts from the end, and may repeat. A mask is a bool
                tensor with an element for each row.

        Returns:
            SparseLabels of the rows in the order of `rows`, with the same dtype and device.

        Raises:
            TypeError: if `rows` is neither such a tensor nor a slice.
            ValueError: if `rows` has the wrong shape.
            IndexError: if a row does not exist.

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


def _new(cls: type[SparseLabels], crow_indices: Any, col_indices: Any = ...) -> SparseLabels:
    """Takes the two fields, which may be anything in a pytree, or one iterable of both."""
    if col_indices is ...:
        crow_indices, col_indices = _two_fields(crow_indices)
    return tuple.__new__(cls, (crow_indices, col_indices))


def _two_fields(fields: Any) -> tuple[Any, ...]:
    must = "SparseLabels must be given crow_indices and col_indices, or one iterable of both"
    if not isinstance(fields, Iterable) or hasattr(fields, "shape"):  # a matrix of two rows
        raise TypeError(f"{must}, got one {type(fields).__name__}")
    both = tuple(fields)
    if len(both) != 2 or not all(hasattr(field, "shape") for field in both):
        kinds = ", ".join(type(field).__name__ for field in both[:3])
        got = f"{len(both)} of {kinds}" if both else "none"
        raise TypeError(f"{must}, got {got}; lists of labels go to SparseLabels.from_lists")
    return both


# A named tuple takes no __new__ in its class, and torch.compile no subclass that has one.
_new.__qualname__ = "SparseLabels.__new__"  # for errors about the number of arguments
SparseLabels.__new__ = _new  # type: ignore[assignment, method-assign]

# torch.export can then save programs with such inputs, and torch.load, which by default accepts few
# classes, accepts them in data sets and example inputs.
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
