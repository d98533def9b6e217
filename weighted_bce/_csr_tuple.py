"""The named tuple of crow_indices and col_indices: how it is made, indexed, compared and hashed."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor


class CsrTuple(NamedTuple):
    """The two index tensors of a matrix in CSR form."""

    #: Where each row begins in `col_indices`, and where the last one ends; shape (rows + 1,).
    crow_indices: Tensor
    #: The labels of all rows, one row after the other; shape (positives,).
    col_indices: Tensor

    def __getitem__(self, index: Any) -> Any:
        """Returns one of the two tensors for 0 or 1, which torch itself asks for, not a row.

        Exported programs read the fields by number, and torch's parser of arguments, which is C++,
        crashes if this raises for 0. `len` is 2 because the guards of torch.compile ask for it.
        """
        if type(index) is int and index in (0, 1):
            return tuple.__getitem__(self, index)
        kind = IndexError if type(index) is int else TypeError
        got = index if type(index) is int else type(index).__name__
        raise kind(f"SparseLabels must not be indexed for rows, got {got}: use select or split")

    def __add__(self, other: object) -> Any:
        raise TypeError("SparseLabels must not be added, which joins tuples: use SparseLabels.cat")

    def __eq__(self, other: object) -> bool:
        """Tells whether both have the same rows, on the same device; int32 may equal int64."""
        if not isinstance(other, tuple):
            return NotImplemented
        return len(other) == 2 and all(map(_is_same, self, other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        """Hashes the shapes, which are the same for equal labels and stay when values change."""
        return hash(tuple(getattr(field, "shape", field) for field in self))


def _new(cls: type[CsrTuple], crow_indices: Any, col_indices: Any = ...) -> CsrTuple:
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


# typing.NamedTuple takes no __new__ in the class, and torch.compile no subclass that has its own.
_new.__qualname__ = "SparseLabels.__new__"  # for errors about the number of arguments
CsrTuple.__new__ = _new  # type: ignore[assignment, method-assign]


def _is_same(a: Any, b: Any) -> bool:
    """Compares two fields, which are tensors, or arrays or other leaves of pytrees."""
    if a is b:
        return True
    if any(getattr(a, name, None) != getattr(b, name, None) for name in ("shape", "device")):
        return False
    same = a == b
    return bool(same.all() if hasattr(same, "all") else same)
