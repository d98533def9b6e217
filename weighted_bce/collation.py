"""Batches with sparse labels, for data loaders."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate

from . import _csr
from .sparse import SparseLabels


def collate(samples: Sequence[Any]) -> Any:
    """Puts samples together whose last element lists their positives: a `collate_fn`.

    Args:
        samples: tuples whose last element is the positives of the sample, as for
            `SparseLabels.from_lists` (a list of integers, a 1-d integer tensor or NumPy array);
            or the positives alone, not as a tuple.

    Returns:
        A tuple like the samples (of the same type, if named): `torch.utils.data.default_collate`
        of each element but the last, then the SparseLabels. Of positives alone, the SparseLabels.

    Raises:
        TypeError: positives that are no integers, or no list of them (SparseLabels among them).
        ValueError: no samples, samples of unequal length, negative labels.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from weighted_bce import collate
        >>> samples = [(torch.zeros(4), [3, 1]), (torch.ones(4), []), (torch.ones(4), [2])]
        >>> features, labels = next(iter(DataLoader(samples, batch_size=3, collate_fn=collate)))
        >>> features.shape, labels
        (torch.Size([3, 4]), SparseLabels(rows=3, positives=3, dtype=int64, device=cpu))
    """
    if not samples:
        raise ValueError("samples must not be empty, got none")
    for i, sample in enumerate(samples):
        if isinstance(sample, SparseLabels):  # a tuple, but no sample
            raise TypeError(f"samples must hold lists of labels, got SparseLabels in sample {i}")
    first = samples[0]
    if not isinstance(first, tuple):
        return SparseLabels(*_csr.of_lists(samples, "samples"))
    for i, sample in enumerate(samples):
        if not isinstance(sample, tuple):
            got = f"{type(sample).__name__} in sample {i}"
            raise TypeError(f"samples must all be tuples like the first, got {got}")
        if len(sample) != len(first) or not sample:
            wanted = f"tuples of {max(len(first), 1)} elements like the first"
            raise ValueError(f"samples must be {wanted}, got {len(sample)} in sample {i}")
    *others, positives = zip(*samples, strict=True)
    labels = SparseLabels(*_csr.of_lists(positives, "samples"))
    batch = (*(default_collate(list(values)) for values in others), labels)
    return type(first)(*batch) if hasattr(first, "_fields") else batch
