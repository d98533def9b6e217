"""Weights, propensities and initial biases that are counted from the labels."""

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
_KINDS = "labels must be a torch.Tensor, SparseLabels or an iterable of SparseLabels"


def pos_weight_from_labels(
    labels: Labels,
    num_labels: int | None = None,
    *,
    per_class: bool = True,
    max_weight: float | None = None,
    smoothing: float = 0.0,
) -> Tensor | float:
    r"""Computes the `pos_weight` with which positives and negatives count equally.

    With n positives in `rows` rows and smoothing s, a label's weight is

    .. math::
        (\text{rows} - n + s) / (n + s)

    which is the number of its negatives over that of its positives.

    Args:
        labels: the labels of the training set. A dense tensor has shape (rows, labels) and is bool
            or of any integer or floating dtype, with values in [0, 1]; soft labels are summed.
            Sparse labels are SparseLabels, or a torch.sparse_csr or torch.sparse_coo tensor of
            zeros and ones. An iterable of SparseLabels is also accepted. It is counted one batch at
            a time, so that only one is in memory.
        num_labels: the number of labels. It is required for SparseLabels. For tensors it is
            optional and checked against the shape.
        per_class: whether each label gets its own weight. Otherwise all labels together get one.
            Default: True.
        max_weight: an upper limit for weights, above 0. Default: None, which means no limit.
        smoothing: s, a finite number >= 0. If it is above 0, all weights are finite and above 0.
            With ``per_class=False`` it is added to the counts over all labels. Default: 0.

    Returns:
        A float32 tensor of shape (labels,), or a float with ``per_class=False``. Without smoothing,
        a label without positives gets the largest weight among the others. If no label has
        positives, weights are `max_weight`, or 1 without it.

    Raises:
        TypeError: if `labels` is not a real tensor, SparseLabels or an iterable of SparseLabels.
        ValueError: if there are no rows, a shape or a value is wrong, `num_labels` is missing for
            SparseLabels, or `max_weight` or `smoothing` is out of its range.

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
    r"""Computes the propensity of each label: how likely it was recorded where it is true.

    Rare labels are missed more often, so a label's propensity grows with its number of positives.
    With N rows and n positives of the label, it is

    .. math::
        p = 1 / (1 + C (n + B)^{-A}), \quad C = (\log N - 1) (B + 1)^A

    The usual weight of positives is its inverse, ``pos_weight=1 / propensity``. Source: Jain,
    Prabhu and Varma, "Extreme Multi-label Loss Functions for Recommendation, Tagging, Ranking &
    Other Missing Label Applications" (KDD 2016).

    Args:
        labels: the labels of the whole training set, as for `pos_weight_from_labels`.
        num_labels: the number of labels. It is required for SparseLabels. For tensors it is
            optional and checked against the shape.
        A: a finite number >= 0. Default: 0.55.
        B: a finite number above 0. Default: 1.5. The benchmarks of extreme classification use A 0.5
            and B 0.4 for Wikipedia, A 0.6 and B 2.6 for Amazon, and the defaults for all others.

    Returns:
        A float32 tensor of shape (labels,), with values above 0 and at most 1.

    Raises:
        TypeError: if `labels` is not a real tensor, SparseLabels or an iterable of SparseLabels, or
            if A or B is not a number.
        ValueError: if there are no rows, a shape or a value is wrong, `num_labels` is missing for
            SparseLabels, or A or B is out of its range.

    Note:
        With 1 or 2 rows, C would be negative. All propensities are then 1.

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
    r"""Computes the log-odds of each label, with which a classifier's bias can be initialized.

    With n positives in `rows` rows, a label's log-odds are

    .. math::
        \log (n / (\text{rows} - n))

    A classifier whose logits start at 0 spends its first steps on making every label rare. With
    this bias, it starts at the frequency of each label. Lin et al., "Focal Loss for Dense Object
    Detection" (ICCV 2017), sections 3.3 and 4.1, propose the idea with one prior for all classes.

    Args:
        labels: the labels of the whole training set, as for `pos_weight_from_labels`.
        num_labels: the number of labels. It is required for SparseLabels. For tensors it is
            optional and checked against the shape.

    Returns:
        A float32 tensor of shape (labels,). All values are finite, since n is limited to
        [0.5, rows - 0.5]. A label that is never true counts as half a positive, and one that is
        always true as half a negative.

    Raises:
        TypeError: if `labels` is not a real tensor, SparseLabels or an iterable of SparseLabels.
        ValueError: if there are no rows, a shape or a value is wrong, or `num_labels` is missing
            for SparseLabels.

    Note:
        These are the logits at which a constant classifier has the smallest BCE. With a
        `pos_weight` of p, those logits are higher by log(p).

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
    """Returns the number of positives of each label, float64, and the number of rows."""
    if isinstance(labels, Tensor):
        if labels.layout == torch.strided:
            return _counted_dense(labels, num_labels)
        sparse = SparseLabels(*of_tensor(labels, "labels"))
        _check_num_labels(num_labels, labels.shape[1])
        return _counted_batches([sparse], labels.shape[1])
    if isinstance(labels, SparseLabels):
        return _counted_batches([labels], num_labels)
    if not isinstance(labels, Iterable):
        raise TypeError(f"{_KINDS}, got {_name(labels)}")
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
            raise TypeError(f"{_KINDS}, got {got}")
        num_labels = _checked_num_labels(num_labels)
        check_form(batch, "labels")
        check_indices(batch, num_labels, "labels")
        col = batch.col_indices
        if counts is None:
            counts = torch.zeros(num_labels, dtype=torch.int64, device=col.device)
        # bincount would write as many numbers as there are labels for every batch.
        counts.index_add_(0, col.to(counts.device), counts.new_ones(len(col)))
        rows += batch.num_rows
    if counts is None or rows == 0:
        raise ValueError("labels must have at least one row, got none")
    return counts.double(), rows


def _check_num_labels(num_labels: int | None, expected: int) -> None:
    if num_labels is not None and num_labels != expected:
        raise ValueError(f"num_labels must be {expected} to match labels, got {num_labels}")


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
