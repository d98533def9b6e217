"""The losses as functions."""

from collections.abc import Callable

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _dispatch, _probabilities
from ._checks import Target, check_csr_indices, checked_options, checked_reduction
from ._dtensor_import import import_rules_for_dtensors
from ._options import MEAN
from .losses import BCE, Loss, check_loss

Reduction = str | Callable[[Tensor], Tensor]
_BCE = BCE()


def weighted_bce_with_logits(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    r"""Binary cross-entropy of logits in which the positives weigh more, in one pass.

    With :math:`y' = y (1 - e) + e / 2`, label smoothing e, weight w and positive weight p:

    .. math::
        w [ p y' \log(1 + e^{-x}) + (1 - y') \log(1 + e^{x}) ]

    Equivalent to::

        F.binary_cross_entropy_with_logits(
            input, target.to(input.dtype), weight, pos_weight=pos_weight, reduction=reduction)

    and for 0/1 targets to multiplying the positives' losses by `pos_weight`, but it accepts any
    target dtype, infinite logits, and keeps the gradient of confident positives.

    Args:
        input: logits of any shape; float16, bfloat16, float32 or float64. Half precision is
            computed and summed in float32.
        target: labels in [0, 1], of the shape of `input`; bool, any integer or floating dtype. Or
            only the positives of (rows, labels) logits, as `SparseLabels` or a torch.sparse_csr or
            sparse_coo tensor: no dense target is made.
        weight: multiplies each element's loss; broadcasts to `input`.
        pos_weight: multiplies the positive term; a number >= 0, or a tensor that broadcasts to
            `input`: (labels,) for one weight a label. Default: 1.
        reduction: "none", "mean", "sum", "batchmean" (sum over all but the first dimension, mean
            over it), or a callable that is given the unreduced loss. Default: "mean".
        label_smoothing: e in [0, 1). Default: 0.
        ignore_index: targets equal to it add nothing to the loss, the gradient or the count behind
            "mean"; ``float("nan")`` ignores NaN. Default: None.
        inplace_backward: backward writes the gradient over `input`, which then needs no memory of
            its own. Using the logits in autograd afterwards raises. Without effect where hooks see
            what is saved (as in a checkpoint), under torch.func, torch.compile, and on DTensors.
            Default: False.

    Returns:
        "none": of the shape and dtype of `input`. Otherwise 0-d, float64 for float64 logits and
        float32 for all others.

    Raises:
        TypeError: an argument or a dtype of the wrong type.
        ValueError: a wrong shape or value, or tensors on different devices.
        RuntimeError: under ``backend("fused")``, where no kernel serves the input.

    Note:
        The same input gives the same bits on every run and with any number of threads. Beyond its
        inputs a training step needs the memory of one gradient. Gradients with respect to
        `target`, `weight` and `pos_weight` are right, by the slower reference.

    Example:
        >>> import torch
        >>> from weighted_bce import weighted_bce_with_logits
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> labels = torch.tensor([[True, False, False], [False, False, True]])
        >>> loss = weighted_bce_with_logits(logits, labels, pos_weight=7.0)
        >>> print(f"{loss.item():.4f}")
        2.0794
    """
    overridable = input, target, weight, pos_weight
    if has_torch_function_variadic(*overridable):
        return handle_torch_function(
            weighted_bce_with_logits,
            overridable,
            *overridable,
            reduction,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            inplace_backward=inplace_backward,
        )
    return _loss(
        input,
        target,
        _BCE,
        weight,
        pos_weight,
        reduction,
        label_smoothing,
        ignore_index,
        inplace_backward,
    )


def multilabel_loss_with_logits(
    input: Tensor,
    target: Target,
    loss: Loss,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    r"""A weighted loss of logits and many labels a sample, of a chosen kind, in one pass.

    With :math:`y' = y (1 - e) + e / 2`, label smoothing e, weight w, positive weight p and the
    terms P and N of the loss:

    .. math::
        w [ p y' P(x) + (1 - y') N(x) ]

    Args:
        input: logits of any shape; float16, bfloat16, float32 or float64.
        target: labels in [0, 1], dense or sparse, as for `weighted_bce_with_logits`, like all that
            is not described here.
        loss: one of those in weighted_bce.losses, such as `Focal(gamma=2.0)`.
        weight: multiplies each element's loss; broadcasts to `input`.
        pos_weight: multiplies the positive term; a number >= 0, or a tensor that broadcasts to
            `input`. Default: 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable. Default: "mean".
        label_smoothing: e in [0, 1). Default: 0.
        ignore_index: targets equal to it do not count. Default: None.
        inplace_backward: backward writes the gradient over `input`. Default: False.

    Returns:
        "none": of the shape and dtype of `input`. Otherwise 0-d, float64 for float64 logits and
        float32 for all others.

    Raises:
        TypeError: an argument or a dtype of the wrong type, an unknown loss among them.
        ValueError: a wrong shape or value, or tensors on different devices.
        RuntimeError: under ``backend("fused")``, where no kernel serves the input.

    Note:
        What `weighted_bce_with_logits` promises holds for every loss.

    Example:
        >>> import torch
        >>> from weighted_bce import Focal, multilabel_loss_with_logits
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> labels = torch.tensor([[True, False, False], [False, False, True]])
        >>> loss = multilabel_loss_with_logits(logits, labels, Focal(gamma=2.0), pos_weight=7.0)
        >>> print(f"{loss.item():.4f}")
        0.5199
    """
    overridable = input, target, weight, pos_weight
    if has_torch_function_variadic(*overridable):
        return handle_torch_function(
            multilabel_loss_with_logits,
            overridable,
            input,
            target,
            loss,
            weight,
            pos_weight,
            reduction,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            inplace_backward=inplace_backward,
        )
    check_loss(loss)
    return _loss(
        input,
        target,
        loss,
        weight,
        pos_weight,
        reduction,
        label_smoothing,
        ignore_index,
        inplace_backward,
    )


def _loss(
    input: Tensor,
    target: Target,
    loss: Loss,
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    reduction: Reduction,
    label_smoothing: float,
    ignore_index: float | None,
    inplace_backward: bool,
) -> Tensor:
    reduction_code = MEAN if reduction == "mean" else checked_reduction(reduction)
    options = checked_options(
        input, target, weight, pos_weight, label_smoothing, ignore_index, reduction_code, loss
    )
    try:
        result = _dispatch.loss(input, options, inplace_backward)
    except RuntimeError:
        # The kernels check each index of sparse labels, but do not name the wrong one.
        try:
            check_csr_indices(input.shape, options)
        except ValueError as wrong_index:
            raise wrong_index from None
        raise
    return result if isinstance(reduction, str) else reduction(result)


def weighted_bce(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
) -> Tensor:
    """Binary cross-entropy of probabilities in which the positives weigh more.

    Equivalent to ``F.binary_cross_entropy(input, target)`` for `pos_weight` 1: logarithms are
    limited to -100, and their derivatives to 1e12, as there. Prefer `weighted_bce_with_logits`,
    which is more accurate and runs fused; this one is made of torch operations on every device.

    Args:
        input: probabilities in [0, 1], of any shape; float16, bfloat16, float32 or float64.
        target: as for `weighted_bce_with_logits`, like all that follow.
        weight: multiplies each element's loss; broadcasts to `input`.
        pos_weight: multiplies the positive term; a number >= 0 or a tensor that broadcasts.
        reduction: "none", "mean", "sum", "batchmean" or a callable.
        label_smoothing: in [0, 1).
        ignore_index: targets equal to it do not count.

    Returns:
        As `weighted_bce_with_logits`.

    Raises:
        TypeError: an argument or a dtype of the wrong type.
        ValueError: a wrong shape or value; on the CPU also probabilities outside [0, 1].

    Example:
        >>> import torch
        >>> from weighted_bce import weighted_bce
        >>> print(f"{weighted_bce(torch.tensor([0.5]), torch.tensor([1]), pos_weight=3.0):.4f}")
        2.0794
    """
    reduction_code = checked_reduction(reduction)
    options = checked_options(
        input, target, weight, pos_weight, label_smoothing, ignore_index, reduction_code, _BCE
    )
    import_rules_for_dtensors()
    check_csr_indices(input.shape, options)
    loss = _probabilities.loss(input, options)
    return loss if isinstance(reduction, str) else reduction(loss)
