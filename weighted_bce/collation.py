"""Makes batches with sparse labels, for data loaders."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from . import _csr
from .sparse import SparseLabels

Parts = dict[Any, Any]


def collate(samples: Sequence[Any], *, labels: str | None = None) -> Any:
    """Makes a batch of samples that each list their positive labels; a `collate_fn` for DataLoader.

    It is also a `data_collator` for the Trainer of Transformers.

    Args:
        samples: dicts or other mappings, dataclasses, tuples, named tuples or lists, all of one
            type and with the same keys or length. One element of a sample holds its positives: a
            list of integers, a 1-d integer tensor or a NumPy array, as for
            `SparseLabels.from_lists`, a row of a scipy.sparse matrix, or SparseLabels of one row.
            Samples may also be the positives alone. A list is a sample if its last element is a
            list, a tensor or an array, and positives alone if it is an integer.
        labels: the key or the field with the positives. To choose it in a DataLoader, write
            ``collate_fn=functools.partial(collate, labels="tags")``. Default: None, which means
            "labels", and the last element of a sample whose elements have no names. It also means
            the last element of a named tuple without a field "labels".

    Returns:
        A batch of the type of the samples. Its labels are the SparseLabels of the batch, and
        torch.utils.data.default_collate makes each of the other elements. If samples are positives
        alone, the result is the SparseLabels.

    Raises:
        TypeError: if samples have different types, positives are not integers, or a sample holds
            no list of them.
        ValueError: if there are no samples, samples have different keys or lengths or no element
            with the labels, or a label is negative.

    Note:
        Batches are made on the CPU, whatever torch's default device is. Only tensors in samples
        stay on the device where they are.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from weighted_bce import collate
        >>> samples = [(torch.zeros(4), [3, 1]), (torch.ones(4), []), (torch.ones(4), [2])]
        >>> features, labels = next(iter(DataLoader(samples, batch_size=3, collate_fn=collate)))
        >>> features.shape, labels
        (torch.Size([3, 4]), SparseLabels(rows=3, positives=3, dtype=int64, device=cpu))
        >>> batch = collate([{"x": 1.0, "labels": [3, 1]}, {"x": 2.0, "labels": []}])
        >>> batch["labels"]
        SparseLabels(rows=2, positives=2, dtype=int64, device=cpu)
    """
    if len(samples) == 0:
        raise ValueError("samples must not be empty, got none")
    first = samples[0]
    parts = parts_of(first)
    with torch.device("cpu"):  # default_collate makes tensors on the default device
        if parts is None:
            if labels is not None:
                got = f"{type(first).__name__} in sample 0"
                raise ValueError(f"samples must have an element {labels!r}, got {got}")
            return _joined(samples)
        key = labels_key(first, parts, labels)
        if key is None:
            name, got = labels or "labels", f"{shown(parts)} in sample 0"
            remedy = "name another one by functools.partial(collate, labels=...)"
            raise ValueError(f"samples must have an element {name!r}, got {got}; {remedy}")
        rows = [_parts_like(first, parts, sample, i) for i, sample in enumerate(samples)]
        columns = {name: [row[name] for row in rows] for name in parts}
        batch = {
            name: _joined(values) if name == key else default_collate(values)
            for name, values in columns.items()
        }
    return _with_parts(first, batch)


def parts_of(sample: Any) -> Parts | None:
    """Returns the elements of a sample or batch by key, name or place; None for labels alone."""
    if isinstance(sample, SparseLabels):  # a named tuple, but no sample
        return None
    if isinstance(sample, Mapping):
        return dict(sample)
    if dataclasses.is_dataclass(sample):
        return {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample) if f.init}
    if isinstance(sample, tuple):
        names = getattr(sample, "_fields", range(len(sample)))
        return dict(zip(names, sample, strict=True))
    if isinstance(sample, list) and sample and _is_row(sample[-1]):
        return dict(enumerate(sample))
    return None


def labels_key(sample: Any, parts: Parts, labels: str | None = None) -> Any:
    """Returns the key of the labels among the parts of a sample or batch; None if there is none.

    Args:
        sample: what `parts_of` was called with.
        parts: its result.
        labels: the key that the user has named, or None.
    """
    if labels is None and "labels" not in parts and isinstance(sample, (tuple, list)):
        return next(reversed(parts), None)
    key = "labels" if labels is None else labels
    return key if key in parts else None


def _parts_like(first: Any, parts: Parts, sample: Any, i: int) -> Parts:
    """Returns the parts of sample i, which are those of the first sample."""
    if type(sample) is not type(first):
        wanted, got = type(first).__name__, f"{type(sample).__name__} in sample {i}"
        raise TypeError(f"samples must all be of type {wanted} like the first, got {got}")
    # Whether a later list is a sample is known from the first one.
    found = dict(enumerate(sample)) if isinstance(sample, list) else parts_of(sample)
    assert found is not None
    if found.keys() != parts.keys():
        got = f"{shown(found)} in sample {i}"
        raise ValueError(f"samples must all have {shown(parts)} like the first, got {got}")
    return found


def _with_parts(sample: Any, parts: Parts) -> Any:
    """Makes an object like the sample with other parts."""
    if isinstance(sample, MutableMapping):  # it may have other attributes
        batch = copy.copy(sample)
        batch.update(parts)
        return batch
    if dataclasses.is_dataclass(sample) or hasattr(sample, "_fields"):
        return type(sample)(**parts)
    return type(sample)(parts if isinstance(sample, Mapping) else parts.values())


def _is_row(value: Any) -> bool:
    """Tells whether a value may list labels: an integer and a string do not."""
    is_list = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    return is_list and getattr(value, "ndim", 1) > 0


def _joined(rows: Sequence[Any]) -> SparseLabels:
    """Makes the labels of a batch from the positives of each sample."""
    for i, row in enumerate(rows):
        if not _is_row(row):
            got = f"{type(row).__name__} in sample {i}"
            raise TypeError(f"samples must hold a list of labels each, got {got}")
    lists = [_of_one_row(row, i) for i, row in enumerate(rows)]
    return SparseLabels(*_csr.of_lists(lists, "samples"))


def _of_one_row(row: Any, i: int) -> Any:
    """Returns the positives of SparseLabels or of a scipy.sparse row as a tensor or an array."""
    if isinstance(row, SparseLabels):
        if row.num_rows != 1:
            raise ValueError(f"samples must hold one row each, got {row.num_rows} in sample {i}")
        return row.col_indices
    if not hasattr(row, "tocoo"):
        return row
    if row.ndim > 1 and row.shape[0] != 1:
        got = f"shape {row.shape} in sample {i}"
        raise ValueError(f"samples must hold one row each, got {got}")
    coo = row.tocoo()
    wrong = coo.data[(coo.data != 0) & (coo.data != 1)]
    if len(wrong):
        raise ValueError(f"samples must hold 0 and 1 only, got {wrong[0]} in sample {i}")
    return (coo.coords[-1] if hasattr(coo, "coords") else coo.col)[coo.data == 1]


def shown(parts: Parts) -> str:
    """Returns how messages show the parts of a sample."""
    if all(isinstance(name, int) for name in parts):
        return f"{len(parts)} elements" if parts else "none"
    return f"the elements {', '.join(map(str, parts))}"
