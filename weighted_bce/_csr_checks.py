"""Checks crow_indices and col_indices: their form, which reads no values, and their values."""

import torch
from torch import Tensor

Csr = tuple[Tensor, Tensor]  # crow_indices and col_indices, as SparseLabels are
INDEX_DTYPES = frozenset({torch.int32, torch.int64})


def is_readable(t: Tensor) -> bool:
    """Tells whether Python may read the values: there is no trace and no transform."""
    return (
        type(t) is Tensor
        and not t.is_meta
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    )


def check_form(labels: Csr, name: str = "target") -> None:
    """Raises TypeError or ValueError if the tensors do not fit each other; reads no values.

    Args:
        labels: crow_indices and col_indices.
        name: the name of the argument in messages.
    """
    crow, col = labels
    for part, t in (("crow_indices", crow), ("col_indices", col)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}.{part} must be a torch.Tensor, got {type(t).__name__}")
        if t.dtype not in INDEX_DTYPES:
            got = short(t.dtype)
            raise TypeError(f"{name}.{part} must be int32 or int64, got {got}")
        if t.dim() != 1:
            raise ValueError(f"{name}.{part} must be one-dimensional, got shape {tuple(t.shape)}")
    if col.dtype != crow.dtype:
        wanted, got = short(crow.dtype), short(col.dtype)
        raise TypeError(f"{name}.col_indices must be {wanted} like crow_indices, got {got}")
    if col.device != crow.device:
        wanted = f"{crow.device} like crow_indices"
        raise ValueError(f"{name}.col_indices must be on {wanted}, got {col.device}")
    if crow.shape[0] == 0:
        raise ValueError(f"{name}.crow_indices must have rows + 1 elements, got none")


def check_labels(labels: Csr, num_labels: int | None = None, name: str = "labels") -> None:
    """Raises TypeError or ValueError for any fault, as far as the values may be read.

    Unlike the losses, the methods of SparseLabels wait for a GPU.
    """
    check_form(labels, name)
    if all(map(is_readable, labels)):
        check_indices(labels, num_labels, name)


def check_indices(labels: Csr, num_labels: int | None = None, name: str = "target") -> None:
    """Raises ValueError if the indices are wrong; on a GPU it waits for them.

    Args:
        labels: crow_indices and col_indices that have passed `check_form`.
        num_labels: all labels must be below it. Default: None, which means no limit.
        name: the name of the argument in messages.
    """
    crow, col = labels
    check_crow(crow, col.numel(), f"{name}.crow_indices")
    if num_labels is not None:
        must = f"{name}.col_indices must be below {num_labels}, the number of labels"
        check_all(col < num_labels, crow, col, must)
    check_ascending(labels, name)


def check_ascending(labels: Csr, name: str, numbers: Tensor | None = None) -> None:
    """Raises ValueError if a label is negative, or not above the one before in its row.

    Args:
        labels: crow_indices and col_indices, of which crow_indices are right.
        name: the name of the argument in messages.
        numbers: the number of each row in messages. Default: None, which counts from 0.
    """
    crow, col = labels
    check_all(col >= 0, crow, col, f"{name}.col_indices must be >= 0", numbers)
    begins = torch.zeros(col.numel() + 1, dtype=torch.bool, device=col.device)
    begins[crow.long()] = True
    good = begins[:-1].clone()
    good[1:] |= col[1:] > col[:-1]
    must = f"{name}.col_indices must ascend within a row, without duplicates"
    check_all(good, crow, col, must, numbers)


def check_crow(crow: Tensor, count: int, name: str) -> None:
    """Raises ValueError if crow_indices does not ascend from 0 to `count`."""
    check_ends(crow, count, name)
    falls = crow[1:] < crow[:-1]
    if falls.any():
        row = int(falls.nonzero()[0])
        got = f"got {int(crow[row + 1])} after {int(crow[row])} in row {row}"
        raise ValueError(f"{name} must not fall, {got}")


def check_ends(crow: Tensor, count: int, name: str) -> None:
    """Raises ValueError if crow_indices does not begin with 0 and end with `count`."""
    if crow[0] != 0:
        raise ValueError(f"{name} must begin with 0, got {int(crow[0])}")
    if crow[-1] != count:
        raise ValueError(
            f"{name} must end with {count}, the number of indices, got {int(crow[-1])}"
        )


def check_all(
    good: Tensor, crow: Tensor, labels: Tensor, must: str, numbers: Tensor | None = None
) -> None:
    """Raises ValueError if a label is not good, with the first such label and its row."""
    if good.all():
        return
    at = int((~good).nonzero()[0])
    row = int(torch.searchsorted(crow, at, right=True)) - 1
    row = row if numbers is None else int(numbers[row])
    raise ValueError(f"{must}, got {int(labels[at])} in row {row}")


def check_below(indices: Tensor, end: int, must: str) -> None:
    """Raises ValueError if an index is not in [0, end)."""
    if indices.numel() and (indices.min() < 0 or indices.max() >= end):
        got = f"got numbers from {int(indices.min())} to {int(indices.max())}"
        raise ValueError(f"{must} from 0 to {end - 1}, {got}")


def short(dtype: torch.dtype) -> str:
    """Returns the name of a dtype without torch."""
    return str(dtype).removeprefix("torch.")
