"""Weights, propensities and first biases, counted from the labels themselves."""

import math
from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor

from ._csr import of_tensor
from ._csr_checks import check_form, check_indices
from ._numbers import checked_at_least_0
from .sparse import SparseLabels

Labels = Tensor | SparseLabels | Iterable[SparseLabels]


def pos_weight_from_labels(
    labels: Labels,
    num_labels: int | None = None,
    *,
    per_class: bool = True,
    max_weight: float | None = None,
    smoothing: float = 0.0,
) -> Tensor | float:
    """The weight with which positives and negatives count equally: negatives / positives.

    With smoothing s, a label with n positives in `rows` rows gets (rows - n + s) / (n + s).

    Args:
        labels: (rows, labels), 0/1 of bool, integer or floating dtype (soft labels are summed); or
            0/1 as torch.sparse_csr or torch.sparse_coo; or SparseLabels; or an iterable of
            SparseLabels, which are counted one after the other, so that one batch at a time is in
            memory: all batches of an epoch.
        num_labels: needed for SparseLabels; otherwise checked against the shape, where given.
        per_class: one weight a label; otherwise one for all labels together. Default: True.
        max_weight: the largest weight given. Default: no limit.
        smoothing: s >= 0; above 0, no label's weight is infinite, nor 0. With
            ``per_class=False`` it is added to the sums over all labels. Default: 0.

    Returns:
        (labels,) float32, or a float with ``per_class=False``. Without smoothing, a label without
        positives gets the largest weight of those that have some; where none has any,
        `max_weight` or 1.

    Raises:
        TypeError: `labels` is no real tensor and no SparseLabels.
        ValueError: a wrong shape or value, no rows, no `num_labels` for SparseLabels, a
            `max_weight` that is not above 0, or a `smoothing` below 0.

    Example:
        >>> import torch
        >>> from weighted_bce import SparseLabels, pos_weight_from_labels
        >>> pos_weight_from_labels(torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]]))
        tensor([1., 3.])
        >>> batches = (SparseLabels.from_lists(rows) for rows in ([[0], []], [[0], [1]]))
        >>> pos_weight_from_labels(batches, num_labels=3, smoothing=1.0)
        tensor([1., 2., 5.])
    """
    counts, rows = _counted(labels, num_labels)
    if max_weight is not None and not max_weight > 0:
        raise ValueError(f"max_weight must be above 0, got {max_weight}")
    s = checked_at_least_0("smoothing", smoothing)
    if not per_class:
        positives = counts.sum().item() + s
        if positives == 0:
            return 1.0 if max_weight is None else float(max_weight)
        weight = (rows * len(counts) + 2 * s - positives) / positives
        return weight if max_weight is None else min(weight, float(max_weight))
    weights = (rows - counts + s) / (counts + s)
    seen = counts + s > 0
    missing = weights[seen].max() if bool(seen.any()) else weights.new_tensor(max_weight or 1.0)
    weights = torch.where(seen, weights, missing)
    return weights.clamp(max=max_weight).float() if max_weight is not None else weights.float()


def propensity_from_labels(
    labels: Labels, num_labels: int | None = None, *, A: float = 0.55, B: float = 1.5
) -> Tensor:
    r"""How likely a true label was marked, by its number of positives: rare ones are often missed.

    The model of Jain, Prabhu and Varma, "Extreme Multi-label Loss Functions for Recommendation,
    Tagging, Ranking & Other Missing Label Applications" (KDD 2016): of N rows and n positives

    .. math::
        p = 1 / (1 + C (n + B)^{-A}), \quad C = (\log N - 1) (B + 1)^A

    Its inverse is the usual weight of the positives: ``pos_weight=1 / propensity``.

    Args:
        labels: as for `pos_weight_from_labels`: those of the whole training set.
        num_labels: needed for SparseLabels; otherwise checked against the shape, where given.
        A: >= 0. Default: 0.55.
        B: above 0. Default: 1.5. The benchmarks of extreme classification use A 0.5 and B 0.4 for
            Wikipedia, 0.6 and 2.6 for Amazon, and the defaults for all others.

    Returns:
        (labels,) float32, above 0 and at most 1.

    Raises:
        TypeError: `labels` is no real tensor and no SparseLabels, or A or B is no number.
        ValueError: a wrong shape or value, no rows, or A or B out of range.

    Note:
        With 1 or 2 rows C is negative, and the formula no probability: all propensities are then 1.

    Example:
        >>> import torch
        >>> from weighted_bce import SparseLabels, WeightedBCEWithLogitsLoss, propensity_from_labels
        >>> labels = SparseLabels.from_lists([[0], [0, 1]] * 50)
        >>> propensity = propensity_from_labels(labels, num_labels=3)
        >>> propensity
        tensor([0.6802, 0.5942, 0.1732])
        >>> criterion = WeightedBCEWithLogitsLoss(pos_weight=1 / propensity)
    """
    A, B = checked_at_least_0("A", A), checked_at_least_0("B", B)
    if B == 0:
        raise ValueError("B must be above 0, got 0")
    counts, rows = _counted(labels, num_labels)
    C = max(math.log(rows) - 1, 0.0) * (B + 1) ** A
    inverse: Tensor = 1 + C * (counts + B).pow(-A)
    return inverse.reciprocal().float()


def prior_logits(labels: Labels, num_labels: int | None = None) -> Tensor:
    r"""The log-odds of each label, log(n / (rows - n)) for n positives: a classifier's first bias.

    A classifier whose logits start at 0 spends its first steps on making every label rare. With
    this bias it starts at each label's frequency. The idea is that of Lin et al., "Focal Loss for
    Dense Object Detection" (ICCV 2017), sections 3.3 and 4.1, who use one prior for all classes.

    Args:
        labels: as for `pos_weight_from_labels`: those of the whole training set.
        num_labels: needed for SparseLabels; otherwise checked against the shape, where given.

    Returns:
        (labels,) float32, finite. A label that is never true counts as half a positive, one that is
        always true as half a negative: n is limited to [0.5, rows - 0.5].

    Raises:
        TypeError: `labels` is no real tensor and no SparseLabels.
        ValueError: a wrong shape or value, no rows, or no `num_labels` for SparseLabels.

    Note:
        A constant classifier that is trained with BCE ends at these logits; with a `pos_weight` of
        p, at logits that are higher by log(p).

    Example:
        >>> import torch
        >>> from weighted_bce import prior_logits
        >>> labels = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
        >>> linear = torch.nn.Linear(16, 3)
        >>> with torch.no_grad():
        ...     linear.bias.copy_(prior_logits(labels))
        Parameter containing:
        tensor([-1.0986, -1.9459,  1.9459], requires_grad=True)
    """
    counts, rows = _counted(labels, num_labels)
    counts = counts.clamp(0.5, rows - 0.5)
    return (counts / (rows - counts)).log().float()


def _counted(labels: Labels, num_labels: int | None) -> tuple[Tensor, int]:
    """The positives of each label, float64, and the number of rows."""
    if isinstance(labels, Tensor):
        if labels.layout == torch.strided:
            return _counted_dense(labels, num_labels)
        sparse = SparseLabels(*of_tensor(labels, "labels"))
        _check_num_labels(num_labels, labels.shape[1])
        return _counted_batches([sparse], labels.shape[1])
    if isinstance(labels, SparseLabels):
        return _counted_batches([labels], num_labels)
    if not isinstance(labels, Iterable):
        raise TypeError(f"labels must be a torch.Tensor or SparseLabels, got {_name(labels)}")
    return _counted_batches(labels, num_labels)


def _counted_dense(labels: Tensor, num_labels: int | None) -> tuple[Tensor, int]:
    if labels.dtype.is_complex:
        raise TypeError(f"labels must be bool, integer or floating point, got {labels.dtype}")
    if labels.dim() != 2 or labels.shape[0] == 0:
        raise ValueError(
            f"labels must have shape (rows, labels) with at least one row, "
            f"got {tuple(labels.shape)}"
        )
    if labels.dtype != torch.bool and labels.numel() > 0:
        low, high = (bound.item() for bound in torch.aminmax(labels.float()))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"labels must be in [0, 1], got values from {low:g} to {high:g}")
    _check_num_labels(num_labels, labels.shape[1])
    return labels.sum(0, dtype=torch.float64), labels.shape[0]


def _counted_batches(batches: Iterable[SparseLabels], num_labels: int | None) -> tuple[Tensor, int]:
    counts, rows = None, 0
    for batch in batches:
        if not isinstance(batch, SparseLabels):
            got = f"an iterable of {_name(batch)}"
            raise TypeError(
                f"labels must be a torch.Tensor or (batches of) SparseLabels, got {got}"
            )
        num_labels = _checked_num_labels(num_labels)
        check_form(batch, "labels")
        check_indices(batch, num_labels, "labels")
        col = batch.col_indices
        if counts is None:
            counts = torch.zeros(num_labels, dtype=torch.int64, device=col.device)
        # Not bincount, which would write as many numbers as there are labels for every batch.
        counts.index_add_(0, col.to(counts.device), counts.new_ones(len(col)))
        rows += batch.num_rows
    if counts is None or rows == 0:
        raise ValueError("labels must have at least one row, got none")
    return counts.double(), rows


def _check_num_labels(num_labels: int | None, expected: int) -> None:
    if num_labels is not None and num_labels != expected:
        raise ValueError(f"num_labels must be {expected} like labels, got {num_labels}")


def _checked_num_labels(num_labels: int | None) -> int:
    if num_labels is None:
        raise ValueError("num_labels must be given for SparseLabels, got None")
    if isinstance(num_labels, bool) or not isinstance(num_labels, Integral):
        raise TypeError(f"num_labels must be an integer, got {_name(num_labels)}")
    if num_labels < 1:
        raise ValueError(f"num_labels must be above 0, got {num_labels}")
    return int(num_labels)


def _name(value: object) -> str:
    return type(value).__name__
