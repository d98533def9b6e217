"""Makes batches with sparse labels, for data loaders."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate

from . import _csr
from .sparse import SparseLabels


def collate(samples: Sequence[Any]) -> Any:
    """Makes a batch of samples that each list their positive labels; a `collate_fn` for DataLoader.

    Args:
        samples: tuples whose last element is the sample's positives: a list of integers, a 1-d
            integer tensor or a NumPy array, as for `SparseLabels.from_lists`. Samples may also be
            the positives alone, not in a tuple.

    Returns:
        A tuple, or a named tuple like the samples. Its last element is the SparseLabels of the
        batch, and torch.utils.data.default_collate makes each of the others. If samples are
        positives alone, the result is the SparseLabels.

    Raises:
        TypeError: if positives are not integers, or a sample holds no list of them. SparseLabels
            are not accepted as a sample.
        ValueError: if there are no samples, samples have different lengths, or a label is negative.

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
