"""The losses as functions."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _dispatch
from ._checks import Target, checked_options, checked_reduction, raise_wrong_index
from ._numbers import check_bool
from ._options import MEAN
from ._probabilities import weighted_bce
from ._types import Reduction
from .losses import BCE, Loss, check_loss

# Pickles of version 0.6 find weighted_bce here.
__all__ = ["multilabel_loss_with_logits", "weighted_bce", "weighted_bce_with_logits"]

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
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Computes the binary cross-entropy of logits, with more weight on positives, in one pass.

    For a logit x, a target y, weight w, positive weight p and label smoothing :math:`\epsilon`, an
    element's loss is

    .. math::
        w [ p y' \log(1 + e^{-x}) + (1 - y') \log(1 + e^{x}) ], \quad
        y' = y (1 - \epsilon) + \epsilon / 2

    This is the formula of torch.nn.BCEWithLogitsLoss. For targets of 0 and 1, `pos_weight`
    multiplies the losses of the positives. The function is equivalent to::

        F.binary_cross_entropy_with_logits(
            input, target.to(input.dtype), weight, pos_weight=pos_weight, reduction=reduction)

    It also accepts targets of any real dtype, sparse labels and infinite logits. The gradient of a
    positive keeps its relative accuracy at large logits, where PyTorch's becomes 0.

    Args:
        input: the logits, of any shape; float16, bfloat16, float32 or float64. Half precision is
            computed and summed in float32.
        target: the labels, with values in [0, 1]. A dense target has the shape of `input` and is
            bool or of any integer or floating dtype. If `input` has shape (rows, labels), the
            target may also be sparse, as `SparseLabels`, torch.sparse_csr or torch.sparse_coo. It
            is not converted to a dense target.
        weight: multiplies each element's loss; a tensor that broadcasts to `input`. Default: None,
            which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to `input`, such as one of shape (labels,) with a weight for each label. Default: None,
            which means 1.
        reduction: "none", "mean", "sum", "batchmean" (the sum divided by the size of the first
            dimension), or a callable that receives the unreduced loss. Default: "mean".
        label_smoothing: :math:`\epsilon`, in [0, 1). Default: 0.
        ignore_index: elements whose target equals it add nothing to the loss and to the gradient,
            and "mean" does not count them. ``float("nan")`` ignores NaN targets. Default: None.
        inplace_backward: whether backward writes the gradient over `input`, which saves the memory
            of the gradient. If autograd needs the logits afterwards, it raises an error. The option
            has no effect under torch.compile and torch.func, on DTensors, and where hooks see saved
            tensors, as in a checkpoint. Default: False.
        normalizer: the number that the sum of the losses is divided by, in place of the number of
            elements that "mean" counts; a finite number >= 0 or a 0-d tensor, such as the number of
            items of all the micro-batches that one optimizer step accumulates. The reduction must
            be "mean" or "sum". With a normalizer of 0 the loss and its gradient are 0. Default:
            None.

    Returns:
        The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is 0-d,
        float64 for float64 logits and float32 for all others. A callable's result is returned as
        it is.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape or value, or is on another device.
        RuntimeError: if no kernel serves the input under ``backend("fused")``.

    Note:
        The same input gives the same bits on every run and with any number of threads. Beyond its
        inputs, a training step needs the memory of one gradient. Gradients with respect to a dense
        `target`, `weight` and `pos_weight` are available; plain PyTorch computes them, which is
        slower.

    Example:
        >>> import torch
        >>> from weighted_bce import weighted_bce_with_logits
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> labels = torch.tensor([[True, False, False], [False, False, True]])
        >>> loss = weighted_bce_with_logits(logits, labels, pos_weight=7.0)
        >>> print(f"{loss.item():.4f}")
        2.0794
    """
    overridable = input, target, weight, pos_weight, normalizer
    if has_torch_function_variadic(*overridable):
        return handle_torch_function(
            weighted_bce_with_logits,
            overridable,
            input,
            target,
            weight,
            pos_weight,
            reduction,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            inplace_backward=inplace_backward,
            normalizer=normalizer,
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
        normalizer,
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
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Computes a loss of your choice from logits with many labels per sample, in one pass.

    For a logit x, a target y, weight w, positive weight p, label smoothing :math:`\epsilon` and the
    terms P and N of the chosen loss, an element's loss is

    .. math::
        w [ p y' P(x) + (1 - y') N(x) ], \quad y' = y (1 - \epsilon) + \epsilon / 2

    Args:
        input: the logits, of any shape; float16, bfloat16, float32 or float64. Half precision is
            computed and summed in float32.
        target: the labels, with values in [0, 1]; dense or sparse, as for
            `weighted_bce_with_logits`.
        loss: `BCE()`, `Focal()`, `Asymmetric()`, `Hill()`, `Poly1()` or `SquaredHinge()`, with
            their parameters.
        weight: multiplies each element's loss; a tensor that broadcasts to `input`. Default: None,
            which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to `input`. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: :math:`\epsilon`, in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        inplace_backward: whether backward writes the gradient over `input`, as for
            `weighted_bce_with_logits`. Default: False.
        normalizer: what the sum of the losses is divided by, in place of the number of elements,
            as for `weighted_bce_with_logits`. Default: None.

    Returns:
        The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is 0-d,
        float64 for float64 logits and float32 for all others. A callable's result is returned as
        it is.

    Raises:
        TypeError: if an argument has the wrong type or dtype, or `loss` is not one of the losses
            above.
        ValueError: if an argument has the wrong shape or value, or is on another device.
        RuntimeError: if no kernel serves the input under ``backend("fused")``.

    Note:
        The notes on `weighted_bce_with_logits` apply to every loss.

    Example:
        >>> import torch
        >>> from weighted_bce import Focal, multilabel_loss_with_logits
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> labels = torch.tensor([[True, False, False], [False, False, True]])
        >>> loss = multilabel_loss_with_logits(logits, labels, Focal(gamma=2.0), pos_weight=7.0)
        >>> print(f"{loss.item():.4f}")
        0.5199
    """
    overridable = input, target, weight, pos_weight, normalizer
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
            normalizer=normalizer,
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
        normalizer,
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
    normalizer: float | Tensor | None,
) -> Tensor:
    reduction_code = MEAN if reduction == "mean" else checked_reduction(reduction)
    options = checked_options(
        input,
        target,
        weight,
        pos_weight,
        label_smoothing,
        ignore_index,
        reduction_code,
        loss,
        normalizer,
    )
    if inplace_backward is not False:
        check_bool("inplace_backward", inplace_backward)
    try:
        result = _dispatch.loss(input, options, inplace_backward)
    except RuntimeError:
        raise_wrong_index(input.shape, options)
        raise
    return result if isinstance(reduction, str) else reduction(result)
