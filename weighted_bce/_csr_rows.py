"""The methods of SparseLabels that take rows apart and join them."""

import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, distributed
from typing_extensions import Self

from ._csr import csr
from ._csr_checks import (
    INDEX_DTYPES,
    Csr,
    check_ascending,
    check_ends,
    check_form,
    check_labels,
    short,
)
from ._csr_tuple import CsrTuple
from ._numbers import checked_count

_ROWS = "rows must be an int, a slice, a range, or a list, NumPy array or tensor of int or bool"


class CsrRows(CsrTuple):
    """What SparseLabels do with rows."""

    __slots__ = ()

    @property
    def num_rows(self) -> int:
        """The number of rows, with and without positives."""
        return self.crow_indices.shape[0] - 1

    def select(self, rows: Any) -> Self:
        """Picks the labels of some rows, for example of a batch from a data set in memory.

        Args:
            rows: row numbers or a mask. Row numbers are an int, a slice, a range, a list, or a
                NumPy array or 1-d tensor of int32 or int64. They may be negative, which counts from
                the end, and may repeat. A mask is a list, array or tensor of a bool for each row.

        Returns:
            SparseLabels of the rows in the order of `rows`, with the same dtype and device. An int
            gives one row.

        Raises:
            TypeError: if `rows` is none of these.
            ValueError: if `rows` has the wrong shape, or the labels of these rows are malformed.
            IndexError: if a row does not exist.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> labels = SparseLabels.from_lists([[3, 1], [], [2]])
            >>> labels.select([-1, 0]).col_indices
            tensor([2, 1, 3])
            >>> labels.select(0).col_indices
            tensor([1, 3])
        """
        crow, col = self
        check_form(self, "labels")
        check_ends(crow, col.numel(), "labels.crow_indices")
        # Only the chosen rows are checked further, for the labels may be those of a large data set.
        chosen = _row_numbers(rows, self.num_rows, crow.device)
        begin, end = crow[chosen], crow[chosen + 1]
        wrong = (begin < 0) | (end < begin) | (end > len(col))
        if wrong.any():
            first = int(wrong.nonzero()[0])
            got = f"got {int(end[first])} after {int(begin[first])} in row {int(chosen[first])}"
            must = f"labels.crow_indices must ascend from 0 to {len(col)}"
            raise ValueError(f"{must}, {got}")
        counts = end - begin
        ends = counts.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        # Position i of the result comes from i - (where its row begins there) + (where here).
        shift = torch.repeat_interleave(begin - (ends - counts), counts, output_size=total)
        col = col[torch.arange(total, device=col.device) + shift]
        selected = type(self)(*csr(counts, col))
        check_ascending(selected, "labels", chosen)
        return selected

    @classmethod
    def cat(cls, labels: Iterable[Self]) -> Self:
        """Joins several SparseLabels along rows, as torch.cat joins matrices.

        Args:
            labels: the SparseLabels, one or more, all on the same device.

        Returns:
            SparseLabels of all rows in order; int32 if all of `labels` are and the number of
            positives fits, otherwise int64.

        Raises:
            TypeError: if an element is not SparseLabels.
            ValueError: if there is none, they are on several devices, or one is malformed.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> a, b = SparseLabels.from_lists([[3, 1], []]), SparseLabels.from_lists([[2]])
            >>> SparseLabels.cat([a, b])
            SparseLabels(rows=3, positives=3, dtype=int64, device=cpu)
        """
        parts = list(labels)
        if not parts:
            raise ValueError("labels must hold at least one SparseLabels, got none")
        for i, part in enumerate(parts):
            if not isinstance(part, cls):
                raise TypeError(f"labels must hold SparseLabels, got {type(part).__name__} at {i}")
            check_labels(part, name=f"labels[{i}]")
            device, first = part.col_indices.device, parts[0].col_indices.device
            if device != first:
                raise ValueError(f"labels[{i}] must be on {first} like labels[0], got {device}")
        counts = torch.cat([part.crow_indices.diff() for part in parts])
        return cls(*csr(counts, torch.cat([part.col_indices for part in parts])))

    def split(self, split_size_or_sections: int | Sequence[int]) -> tuple[Self, ...]:
        """Cuts the labels into parts of consecutive rows, as torch.split cuts matrices.

        Args:
            split_size_or_sections: the number of rows of each part, of which the last may have
                fewer, or a list of the number of rows of each part.

        Returns:
            A tuple of SparseLabels, whose `col_indices` share memory with those of the labels.

        Raises:
            TypeError: if a number of rows is not an integer.
            ValueError: if a number of rows is negative, a list does not add up to the rows, or the
                labels are malformed.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> labels = SparseLabels.from_lists([[3, 1], [], [2]])
            >>> [part.num_rows for part in labels.split(2)]
            [2, 1]
        """
        check_labels(self)
        name, rows = "split_size_or_sections", self.num_rows
        if isinstance(split_size_or_sections, Sequence):
            sizes = [checked_count(name, size, 0) for size in split_size_or_sections]
            if sum(sizes) != rows:
                raise ValueError(f"{name} must add up to {rows} rows, got {sum(sizes)}")
        else:
            size = checked_count(name, split_size_or_sections, 1 if rows else 0)
            sizes = [min(size, rows - begin) for begin in range(0, rows, size)] if rows else [0]
        crow, col = self
        ends = list(accumulate(sizes, initial=0))
        places = crow[torch.tensor(ends, device=crow.device)].tolist()  # waits once for a GPU
        rows_and_places = zip(pairwise(ends), pairwise(places), strict=True)
        return tuple(
            type(self)(crow[begin : end + 1] - first, col[first:last])
            for (begin, end), (first, last) in rows_and_places
        )

    def chunk(self, chunks: int) -> tuple[Self, ...]:
        """Cuts the labels into about equal parts of consecutive rows, as torch.chunk cuts matrices.

        Args:
            chunks: the number of parts, 1 or more. Fewer are returned where rows / chunks, rounded
                up, is too much for all of them.

        Returns:
            A tuple of SparseLabels, as from `split`.

        Raises:
            TypeError: if `chunks` is not an integer.
            ValueError: if `chunks` is below 1, or the labels are malformed.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> labels = SparseLabels.from_lists([[3, 1], [], [2]])
            >>> [part.num_rows for part in labels.chunk(2)]
            [2, 1]
        """
        check_form(self, "labels")
        chunks, rows = checked_count("chunks", chunks), self.num_rows
        return self.split(-(-rows // chunks) if rows else [0] * chunks)

    def all_gather(self, group: "distributed.ProcessGroup | None" = None) -> Self:
        """Joins the labels of all processes of torch.distributed, on each of them.

        Every process of the group must call it. The numbers of rows and of positives may differ.

        Args:
            group: the processes. Default: None, which means all.

        Returns:
            SparseLabels of the rows of all processes, in the order of their ranks, on the same
            device; int32 if the labels of all processes are and the number of positives fits,
            otherwise int64. If no group of processes has been initialised, the labels themselves.

        Raises:
            TypeError: if the fields are not int32 or int64 tensors.
            ValueError: if the labels of any process are malformed, or `group` does not contain this
                process. If one process raises an error about its labels, all do.

        Note:
            The group's backend decides on the device: NCCL takes labels on a GPU.

        Example:
            >>> from weighted_bce import SparseLabels
            >>> labels = SparseLabels.from_lists([[3, 1], [], [2]])
            >>> labels.all_gather()
            SparseLabels(rows=3, positives=3, dtype=int64, device=cpu)
        """
        fault = _fault(self)
        if distributed.is_available() and distributed.is_initialized():
            return type(self)(*_joined_over_ranks(self, fault, group))
        if fault is not None:
            raise fault
        return self


def _row_numbers(rows: Any, num_rows: int, device: torch.device) -> Tensor:
    if isinstance(rows, slice):
        rows = range(num_rows)[rows]
    if isinstance(rows, Integral) and not isinstance(rows, bool):
        rows = range(int(rows), int(rows) + 1)
    if isinstance(rows, range):  # without a list of its numbers, which may not fit in int64
        for row in (*rows[:1], *rows[-1:]):
            _check_row(row, num_rows)
        numbers = torch.arange(len(rows), device=device) * rows.step + rows.start
    else:
        numbers = _as_tensor(rows).to(device)
    if numbers.dtype == torch.bool:
        if len(numbers) != num_rows:
            got = f"({len(numbers)},)"
            raise ValueError(f"rows must have shape ({num_rows},) as a mask, got {got}")
        return numbers.nonzero().squeeze(1)
    outside = (numbers < -num_rows) | (numbers >= num_rows)
    if outside.any():
        _check_row(int(numbers[outside][0]), num_rows)
    return torch.where(numbers < 0, numbers + num_rows, numbers).long()


def _check_row(row: int, num_rows: int) -> None:
    if not -num_rows <= row < num_rows:
        raise IndexError(f"rows must be from {-num_rows} to {num_rows - 1}, got {row}")


def _as_tensor(rows: Any) -> Tensor:
    got = type(rows).__name__
    if hasattr(rows, "__array__") and not isinstance(rows, Tensor):
        rows = sys.modules["numpy"].array(rows)  # torch takes no negative strides
    try:
        numbers = rows if isinstance(rows, Tensor) else torch.tensor(rows, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{_ROWS}, got {got}") from None
    if numbers.dim() != 1:
        raise ValueError(f"rows must be one-dimensional, got shape {tuple(numbers.shape)}")
    if numbers.dtype in (torch.bool, *INDEX_DTYPES):
        return numbers
    if len(numbers):  # an empty list is floating
        raise TypeError(f"rows must be bool, int32 or int64, got {short(numbers.dtype)}")
    return numbers.long()


def _fault(labels: CsrTuple) -> TypeError | ValueError | None:
    try:
        check_labels(labels)
    except (TypeError, ValueError) as fault:
        return fault
    return None


def _joined_over_ranks(labels: CsrTuple, fault: Exception | None, group: Any) -> Csr:
    """Joins the labels of all ranks, or raises on all of them, so that none waits for another."""
    crow, col = labels
    mine, rows, positives = [0, 0, 0, 1], 0, 0
    if fault is None:
        rows, positives = len(crow) - 1, col.numel()
        mine = [rows, positives, crow.dtype == torch.int64, 0]
    device = getattr(col, "device", "cpu")  # wrong fields may be no tensors
    every = _gathered(torch.tensor(mine, dtype=torch.int64, device=device), group).tolist()
    if fault is not None:
        raise fault
    for rank, (*_, has_fault) in enumerate(every):
        if has_fault:
            raise ValueError(f"labels must be right on all ranks, got wrong ones on rank {rank}")
    numbers = col.new_zeros(max(r + p for r, p, *_ in every), dtype=torch.int64)
    numbers[:rows], numbers[rows : rows + positives] = crow.diff(), col
    gathered = list(zip(_gathered(numbers, group), every, strict=True))
    counts = torch.cat([n[:r] for n, (r, *_) in gathered])
    col = torch.cat([n[r : r + p] for n, (r, p, *_) in gathered])
    dtype = torch.int64 if any(is_long for *_, is_long, _ in every) else torch.int32
    return csr(counts, col.to(dtype))


def _gathered(tensor: Tensor, group: Any) -> Tensor:
    """Returns the tensors of all ranks, which have the same shape, stacked."""
    ranks = distributed.get_world_size(group)
    if ranks < 1:
        raise ValueError("group must contain this process, got one without it")
    stacked = tensor.new_empty(ranks, *tensor.shape)
    distributed.all_gather(list(stacked), tensor, group=group)
    return stacked
