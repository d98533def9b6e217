"""Weights, propensities and initial biases that are counted from the labels."""

import math
from typing import Literal, overload

import torch
from torch import Tensor

from ._counting import Labels, counted
from ._numbers import checked_at_least_0


@overload
def pos_weight_from_labels(
    labels: Labels,
    num_labels: int | None = None,
    *,
    per_class: Literal[True] = True,
    max_weight: float | None = None,
    smoothing: float = 0.0,
) -> Tensor: ...


@overload
def pos_weight_from_labels(
    labels: Labels,
    num_labels: int | None = None,
    *,
    per_class: Literal[False],
    max_weight: float | None = None,
    smoothing: float = 0.0,
) -> float: ...


@overload
def pos_weight_from_labels(
    labels: Labels,
    num_labels: int | None = None,
    *,
    per_class: bool,
    max_weight: float | None = None,
    smoothing: float = 0.0,
) -> Tensor | float: ...


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
        labels: the labels of the training set. A dense tensor or NumPy array has shape (rows,
            labels) and is bool or of any integer or floating dtype, with values in [0, 1]; soft
            labels are summed. Sparse labels are SparseLabels, or of torch.sparse_csr,
            torch.sparse_coo or scipy.sparse with zeros and ones. An iterable of batches is also
            accepted, such as a DataLoader. A batch is one of these, a tuple or list that ends with
            it, or a dict, dataclass or named tuple with the element "labels", as `collate` makes
            it. Only one batch at a time is in memory.
        num_labels: the number of labels. It is required for SparseLabels. For all others it is
            optional and checked against the shape.
        per_class: whether each label gets its own weight. Otherwise all labels together get one.
            Default: True.
        max_weight: an upper limit for weights, above 0. Default: None, which means no limit.
        smoothing: s, a finite number >= 0. If it is above 0, all weights are finite and above 0.
            With ``per_class=False`` it is added to the counts over all labels. Default: 0.

    Returns:
        A float32 tensor of shape (labels,) on the device of the labels, or a float with
        ``per_class=False``. Without smoothing, a label without positives gets the largest weight
        among the others. If no label has positives, weights are `max_weight`, or 1 without it.

    Raises:
        TypeError: if `labels` are of no such kind, or batches are of different kinds.
        ValueError: if there are no rows, a shape or a value is wrong, a batch has no element
            "labels", `num_labels` is missing for SparseLabels, or `max_weight` or `smoothing` is
            out of its range.

    Note:
        Zeros and ones are counted exactly. Soft labels are summed in float64 on the CPU, also if
        their device does not have that dtype.

    Example:
        >>> import torch
        >>> from weighted_bce import SparseLabels, pos_weight_from_labels
        >>> pos_weight_from_labels(torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]]))
        tensor([1., 3.])
        >>> batches = (SparseLabels.from_lists(rows) for rows in ([[0], []], [[0], [1]]))
        >>> pos_weight_from_labels(batches, num_labels=3, smoothing=1.0)
        tensor([1., 2., 5.])
        >>> from torch.utils.data import DataLoader
        >>> from weighted_bce import collate
        >>> samples = [{"x": 0.5, "labels": [0]}, {"x": 0.1, "labels": []}]
        >>> loader = DataLoader(samples, batch_size=2, collate_fn=collate)
        >>> pos_weight_from_labels(loader, num_labels=2, smoothing=1.0)
        tensor([1., 3.])
    """
    counts, rows, device = counted(labels, num_labels)
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
    if seen.any():
        weights = torch.where(seen, weights, torch.where(seen, weights, -1.0).max())
    else:
        weights = torch.full_like(weights, 1.0 if max_weight is None else max_weight)
    if max_weight is not None:
        weights = weights.clamp(max=max_weight)
    return weights.float().to(device)


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
        num_labels: the number of labels. It is required for SparseLabels. For all others it is
            optional and checked against the shape.
        A: a finite number >= 0. Default: 0.55.
        B: a finite number above 0. Default: 1.5. The benchmarks of extreme classification use A 0.5
            and B 0.4 for Wikipedia, A 0.6 and B 2.6 for Amazon, and the defaults for all others.

    Returns:
        A float32 tensor of shape (labels,), with values above 0 and at most 1.

    Raises:
        TypeError: if `labels` are of no kind that `pos_weight_from_labels` takes, or if A or B is
            not a number.
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
    counts, rows, device = counted(labels, num_labels)
    C = max(math.log(rows) - 1, 0.0) * (B + 1) ** A
    inverse: Tensor = 1 + C * (counts + B).pow(-A)
    return inverse.reciprocal().float().to(device)


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
        num_labels: the number of labels. It is required for SparseLabels. For all others it is
            optional and checked against the shape.

    Returns:
        A float32 tensor of shape (labels,). All values are finite, since n is limited to
        [0.5, rows - 0.5]. A label that is never true counts as half a positive, and one that is
        always true as half a negative.

    Raises:
        TypeError: if `labels` are of no kind that `pos_weight_from_labels` takes.
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
    counts, rows, device = counted(labels, num_labels)
    counts = counts.clamp(0.5, rows - 0.5)
    return (counts / (rows - counts)).log().float().to(device)
