"""Sparse labels: the positives of each row, in CSR form."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from . import _csr
from ._csr_checks import INDEX_DTYPES, check_labels, is_readable, short
from ._csr_rows import CsrRows


class SparseLabels(CsrRows):
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
        loaders and pickles. torch reads the tensors by `len`, iteration and the indices 0 and 1;
        for rows there are `num_rows`, `select` and `split`.

        The constructor ``SparseLabels(crow_indices, col_indices)`` checks nothing. Sort the labels
        of each row before you use it. It also takes one iterable of both, as some trainers move a
        batch: ``type(labels)(t.to(device) for t in labels)``.

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

    __slots__ = ()

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
    def from_dense(cls, dense: Tensor, *, binarize: bool = False) -> "SparseLabels":
        """Makes sparse labels from a matrix of zeros and ones.

        Args:
            dense: shape (rows, labels); bool or any integer or floating dtype, with the values 0
                and 1.
            binarize: whether the values are counts, of which each one above 0 is a positive.
                Default: False.

        Returns:
            SparseLabels of int64, on the device of `dense`.

        Raises:
            TypeError: if `dense` is not a real, strided tensor.
            ValueError: if `dense` has another shape, or a value is not one of those.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_dense(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).col_indices
            tensor([1, 0, 1])
        """
        return cls(*_csr.of_dense(dense, binarize))

    @classmethod
    def from_scipy(cls, matrix: Any, *, binarize: bool = False) -> "SparseLabels":
        """Makes sparse labels from a matrix or array of scipy.sparse.

        Args:
            matrix: shape (rows, labels), any sparse format; bool or real numbers, with the values 0
                and 1. Explicit zeros are not positives. Repeated entries of a COO matrix count
                once.
            binarize: whether the values are counts, of which each one above 0 is a positive.
                Default: False.

        Returns:
            SparseLabels on the CPU, with the index dtype of `matrix`. They share no memory with it.

        Raises:
            TypeError: if `matrix` is not from scipy.sparse, or its values are not real numbers.
            ValueError: if `matrix` has another shape, or a value is not one of those.

        Example:
            >>> import scipy.sparse
            >>> from weighted_bce import SparseLabels
            >>> matrix = scipy.sparse.csr_array([[0, 1, 1], [0, 0, 0]])
            >>> SparseLabels.from_scipy(matrix).col_indices.tolist()
            [1, 2]
        """
        return cls(*_csr.of_scipy(matrix, binarize=binarize))

    @classmethod
    def from_tensor(cls, tensor: Tensor, *, binarize: bool = False) -> "SparseLabels":
        """Makes sparse labels from a torch.sparse_csr or torch.sparse_coo tensor.

        Args:
            tensor: shape (rows, labels); bool or any integer or floating dtype, with the values 0
                and 1. Explicit zeros are not positives. Repeated entries of an uncoalesced tensor
                count once; if it was coalesced before, their values have become 2, which is an
                error.
            binarize: whether the values are counts, of which each one above 0 is a positive.
                Default: False.

        Returns:
            SparseLabels with the index dtype and the device of `tensor`.

        Raises:
            TypeError: if `tensor` is not a real tensor of one of the two layouts.
            ValueError: if `tensor` has another shape, a value is not one of those, or an index is
                out of range.

        Example:
            >>> import torch
            >>> from weighted_bce import SparseLabels
            >>> coo = torch.tensor([[0, 0, 1], [1, 0, 0]]).to_sparse()
            >>> SparseLabels.from_tensor(coo).col_indices
            tensor([2, 0])
        """
        return cls(*_csr.of_tensor(tensor, "tensor", binarize))

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
            ValueError: if a label is not below `num_labels`, or the labels are malformed.
        """
        crow, col = self
        check_labels(self, num_labels)
        dense = col.new_zeros(self.num_rows, num_labels, dtype=dtype)  # under vmap one of each
        dense[_csr.rows_of(crow, col), col.long()] = 1
        return dense

    def to_lists(self) -> list[list[int]]:
        """Makes the list of the labels of each row, the reverse of `from_lists`.

        Raises:
            ValueError: if the labels are malformed.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_lists([[3, 1], [], [2]]).to_lists()
            [[1, 3], [], [2]]
        """
        check_labels(self)
        crow, col = (t.tolist() for t in self)
        return [col[begin:end] for begin, end in pairwise(crow)]

    def to_scipy(self, num_labels: int, dtype: Any = bool) -> Any:
        """Makes a scipy.sparse.csr_array of ones.

        Args:
            num_labels: the number of columns.
            dtype: the NumPy dtype of the ones. Default: bool.

        Returns:
            A csr_array of shape (rows, num_labels) with the index dtype of the labels. It shares no
            memory with them.

        Raises:
            ValueError: if a label is not below `num_labels`, or the labels are malformed.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> SparseLabels.from_lists([[1], [0, 2]]).to_scipy(3, int).toarray().tolist()
            [[0, 1, 0], [1, 0, 1]]
        """
        import numpy
        from scipy.sparse import csr_array  # type: ignore[import-untyped]

        check_labels(self, num_labels)
        crow, col = (t.cpu().numpy() for t in self)
        ones = numpy.ones(len(col), dtype)
        return csr_array((ones, col, crow), (self.num_rows, num_labels), copy=True)

    def __repr__(self) -> str:
        crow, col = self
        if not (isinstance(crow, Tensor) and isinstance(col, Tensor) and crow.dim() == 1):
            # Pytrees hold others.
            return f"SparseLabels(crow_indices={crow!r}, col_indices={col!r})"
        kind = f"dtype={short(col.dtype)}, device={col.device}"
        return f"SparseLabels(rows={self.num_rows}, positives={col.numel()}, {kind})"


# torch.export can then save programs with such inputs, and torch.load, which by default accepts few
# classes, accepts them in data sets and example inputs.
_pytree._register_namedtuple(SparseLabels, serialized_type_name="weighted_bce.SparseLabels")
torch.serialization.add_safe_globals([SparseLabels])
