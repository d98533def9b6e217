"""Weights of the positives from the labels themselves."""

import torch
from torch import Tensor


def pos_weight_from_labels(
    labels: Tensor,
    num_labels: int | None = None,
    *,
    per_class: bool = True,
    max_weight: float | None = None,
) -> Tensor | float:
    """The weight that makes positives and negatives count alike: negatives / positives.

    Args:
        labels: (rows, labels), 0/1 of bool, integer or floating dtype (soft labels are summed).
        num_labels: checked against the shape, where given.
        per_class: one weight a label; otherwise one for all labels together. Default: True.
        max_weight: the largest weight given. Default: no limit.

    Returns:
        (labels,) float32, or a float with ``per_class=False``. A label without positives gets the
        largest weight of those that have some; where none has any, `max_weight` or 1.

    Raises:
        TypeError: `labels` is no real tensor.
        ValueError: a wrong shape, no rows, or a `max_weight` that is not above 0.

    Example:
        >>> import torch
        >>> from weighted_bce import pos_weight_from_labels
        >>> pos_weight_from_labels(torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]]))
        tensor([1., 3.])
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
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
    if num_labels is not None and num_labels != labels.shape[1]:
        raise ValueError(f"num_labels must be {labels.shape[1]} like labels, got {num_labels}")
    if max_weight is not None and not max_weight > 0:
        raise ValueError(f"max_weight must be above 0, got {max_weight}")
    counts = labels.sum(0, dtype=torch.float64)
    if not per_class:
        positives = counts.sum().item()
        if positives == 0:
            return 1.0 if max_weight is None else float(max_weight)
        weight = (labels.numel() - positives) / positives
        return weight if max_weight is None else min(weight, float(max_weight))
    weights = (labels.shape[0] - counts) / counts
    seen = counts > 0
    missing = weights[seen].max() if bool(seen.any()) else weights.new_tensor(max_weight or 1.0)
    weights = torch.where(seen, weights, missing)
    return weights.clamp(max=max_weight).float() if max_weight is not None else weights.float()
