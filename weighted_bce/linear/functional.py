"""The loss of a linear layer as functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .._checks import Target, checked_named_reduction, checked_options
from .._dispatch import is_observed
from .._numbers import checked_count
from .._types import ReductionName
from ..losses import BCE, Loss, check_loss
from . import _dispatch, _rows
from ._checks import check_layer
from ._chunks import ChunkOptions, Layer
from ._not_compiled import not_compiled
from ._stepped import Step, bound
from ._unchunked import is_autocast_enabled, is_small, loss_of_all_logits

_BCE = BCE()


def linear_weighted_bce_with_logits(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    chunk_labels: int | None = None,
    fused_step: Step | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Computes a linear layer's weighted BCE without holding all logits.

    It is equivalent to::

        logits = F.linear(input, linear_weight, linear_bias)
        weighted_bce_with_logits(logits, target, weight, pos_weight, reduction,
                                 label_smoothing=label_smoothing, ignore_index=ignore_index)

    With reduction "none" the losses of each row are then summed over its labels.

    The labels are processed in chunks. For each chunk, the pass computes its logits, their loss,
    the gradient of the logits, and from it the chunk's part of the layer's gradients. So the memory
    needed beyond inputs and gradients is that of one chunk, or on the CPU that of one chunk for
    each thread, at most 16 MiB in float32.

    Args:
        input: the features, shape (..., features), of which each position is a row, usually (rows,
            features); float16, bfloat16, float32 or float64.
        linear_weight: shape (labels, features), same dtype as `input`. Under autocast, half
            precision and float32 may be mixed.
        target: the labels, with values in [0, 1]. A dense target has shape (..., labels) and is
            bool or of any integer or floating dtype. A sparse one, which is `SparseLabels`,
            torch.sparse_csr or torch.sparse_coo, has one row for each row of `input`, in order.
        linear_bias: shape (labels,), same dtype as `linear_weight`. Default: None.
        weight: multiplies each element's loss; a tensor that broadcasts to (..., labels).
            Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to (..., labels), such as one of shape (labels,) with a weight for each label.
            Default: None, which means 1.
        reduction: "none" (one loss for each row), "mean" (the sum divided by rows * labels), "sum"
            or "batchmean" (the sum divided by the size of the first dimension). Default: "mean".
            With millions of labels, the gradients of "mean" are as small as Adam's default `eps`,
            and Adam's steps become too small. Use "batchmean" there.
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it add nothing to the loss and to the gradients,
            and "mean" does not count them. ``float("nan")`` ignores NaN targets. Default: None.
        chunk_labels: the number of labels in a chunk; on the CPU the most that a chunk has. By
            default it is chosen: on the CPU so that the logits of a chunk stay in the cache of the
            thread that computes them, and on CUDA so that they take 32 MiB, or an eighth of the
            free memory if that is less.
        fused_step: `FusedSGD` or `FusedAdam`, with `linear_weight` and `linear_bias` among its
            parameters. The backward pass then leaves a deferred gradient in ``linear_weight.grad``,
            and the optimizer's ``step()`` computes it in chunks, so that the whole gradient of the
            weight never exists. Or a function of your own: the backward pass calls it for each
            chunk as ``fused_step(labels, weight_grad, bias_grad)``, in place of adding to
            ``.grad``. ``labels`` is a slice with the rows of `linear_weight` that the gradients
            belong to. A gradient that is not needed is None. The tensors are valid during the call
            only, and the function may change these rows of the weight and the bias. If
            torch.distributed runs several processes, a function needs the attribute ``group``,
            which is like the argument of `FusedSGD`. Default: None.
        normalizer: what the sum of the losses is divided by, in place of rows * labels; a finite
            number >= 0 or a 0-d tensor, as for `weighted_bce_with_logits`. Default: None.

    Returns:
        The loss; float64 for float64 input and float32 for all others. It is 0-d, or with reduction
        "none" of shape (...), that of `input` without features.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape or value, or is on another device.
            Also if `fused_step` is an optimizer of other tensors than the layer's, or does not say
            whether to average over processes.
        NotImplementedError: if `fused_step` is used with a DTensor `input` whose rows are split.
        RuntimeError: if no kernel serves the input under ``backend("fused")``. In a backward pass,
            if `fused_step` has not taken a step since the last one; see `FusedSGD`.

    Note:
        Matrix products are torch's, in the dtype of `input` or of autocast. Half-precision products
        are summed in float32 and stay float32 until the loss is computed. On the CPU this takes
        float32 copies of the input and of each chunk, so autocast changes nothing there.

        If gradients are needed, the forward pass computes them for the grad_output that came the
        last time for this weight and this line of your code, at first 1. If backward brings another
        one, or runs again on a kept graph, they are computed again. If that happens often, as with
        a learned scale, the forward pass computes only the loss, until the last grad_output would
        have been right several times. On CUDA, backward waits for the forward pass to compare the
        two; without gradients from the forward pass, it does so once in seven passes.

        A weight has the gradients of one forward pass at a time: until backward has used them,
        other forward passes with the weight compute only the loss. So losses that are summed before
        backward need the memory of one gradient. If backward of a later loss comes first, the next
        forward pass drops them and computes new ones, so losses that are kept without backward do
        not matter. No result depends on any of this.

        Under torch.compile, in a checkpoint, while a CUDA graph is captured and for
        ``reduction="none"``, the forward pass computes only the loss, and backward computes the
        logits again. With `fused_step`, the forward pass computes the gradients of the input and
        the bias, and the logits are computed again for the gradient of the weight. A `fused_step`
        breaks the graph of torch.compile.

        On the CPU, the gradient of the weight reuses the memory of an earlier one; see
        `empty_cache`. Each thread computes one chunk after another, and threads wait for one
        another only at the end of the pass. Where torch's products are MKL's, the bits do not
        depend on the number of threads.

        All logits are computed at once if they and their gradient take at most 4 MiB, and the
        weight as well, in float32 or float64 without autocast, `chunk_labels` and `fused_step`. The
        bits may then depend on the number of threads.

        All logits are also held under torch.func, for second derivatives, and for gradients with
        respect to `target`, `weight` and `pos_weight`. A `weight` or `pos_weight` is copied to the
        shape of all logits only if it differs between labels and between some rows, but not between
        all: one of shape (batch, 1, labels), for an input of shape (batch, length, features).

        A DTensor `linear_weight` must be replicated or have its labels split (``Shard(0)``).
        `input` must then be replicated or have its rows split (``Shard(0)``), though not along the
        same dimension of the mesh. Each process computes its own part, and the loss is summed over
        all processes. The first dimension of an input with more than two is split evenly.

    Example:
        >>> import torch
        >>> from weighted_bce import SparseLabels, linear_weighted_bce_with_logits
        >>> hidden, classifier = torch.zeros(2, 8), torch.zeros(1000, 8)
        >>> target = SparseLabels.from_lists([[3, 17], [999]])
        >>> print(f"{linear_weighted_bce_with_logits(hidden, classifier, target):.4f}")
        0.6931
    """
    return _overridable_loss(
        linear_weighted_bce_with_logits,
        (input, linear_weight, target),
        _BCE,
        linear_bias=linear_bias,
        weight=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        chunk_labels=chunk_labels,
        fused_step=fused_step,
        normalizer=normalizer,
    )


def linear_multilabel_loss_with_logits(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    loss: Loss,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    chunk_labels: int | None = None,
    fused_step: Step | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Computes a loss of your choice for a linear layer without holding all logits.

    It is equivalent to::

        logits = F.linear(input, linear_weight, linear_bias)
        multilabel_loss_with_logits(logits, target, loss, weight, pos_weight, reduction,
                                    label_smoothing=label_smoothing, ignore_index=ignore_index)

    Args:
        input: the features, shape (..., features); float16, bfloat16, float32 or float64.
        linear_weight: shape (labels, features), same dtype as `input`. Under autocast, half
            precision and float32 may be mixed.
        target: the labels, with values in [0, 1] and shape (..., labels); dense or sparse, as for
            `linear_weighted_bce_with_logits`.
        loss: `BCE()`, `Focal()`, `Asymmetric()`, `Hill()`, `Poly1()` or `SquaredHinge()`, with
            their parameters.
        linear_bias: shape (labels,), same dtype as `linear_weight`. Default: None.
        weight: multiplies each element's loss; a tensor that broadcasts to (..., labels).
            Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to (..., labels). Default: None, which means 1.
        reduction: "none", "mean", "sum" or "batchmean", as for `linear_weighted_bce_with_logits`.
            Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        chunk_labels: the number of labels in a chunk. By default it is chosen.
        fused_step: `FusedSGD`, `FusedAdam` or a function of your own, as for
            `linear_weighted_bce_with_logits`. Default: None.
        normalizer: what the sum of the losses is divided by, in place of rows * labels. Default:
            None.

    Returns:
        The loss, as `linear_weighted_bce_with_logits` does.

    Raises:
        TypeError: if an argument has the wrong type or dtype, or `loss` is not one of the losses
            above.
        ValueError: if an argument has the wrong shape or value, or is on another device.
        NotImplementedError, RuntimeError: as for `linear_weighted_bce_with_logits`.

    Note:
        The notes on `linear_weighted_bce_with_logits` apply to every loss.

    Example:
        >>> import torch
        >>> from weighted_bce import Focal, SparseLabels, linear_multilabel_loss_with_logits
        >>> hidden, classifier = torch.zeros(2, 8), torch.zeros(1000, 8)
        >>> target = SparseLabels.from_lists([[3, 17], [999]])
        >>> loss = linear_multilabel_loss_with_logits(hidden, classifier, target, Focal())
        >>> print(f"{loss:.4f}")
        0.1733
    """
    return _overridable_loss(
        linear_multilabel_loss_with_logits,
        (input, linear_weight, target, loss),
        loss,
        linear_bias=linear_bias,
        weight=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        chunk_labels=chunk_labels,
        fused_step=fused_step,
        normalizer=normalizer,
    )


def _overridable_loss(
    function: Callable[..., Tensor], arguments: tuple[Any, ...], loss: Loss, **options: Any
) -> Tensor:
    """Returns the loss, or the result of a subclass of Tensor that overrides `function`."""
    input, linear_weight, target, *_ = arguments
    others = (options[name] for name in ("linear_bias", "weight", "pos_weight", "normalizer"))
    tensors = input, linear_weight, target, *others
    if has_torch_function_variadic(*tensors):
        result: Tensor = handle_torch_function(function, tensors, *arguments, **options)
        return result
    check_loss(loss)
    compute = _loss if options["fused_step"] is None else _uncompiled_loss
    return compute(input, linear_weight, target, loss, **options)


def _loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    loss: Loss,
    *,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    reduction: ReductionName,
    label_smoothing: float,
    ignore_index: float | None,
    chunk_labels: int | None,
    fused_step: Step | None,
    normalizer: float | Tensor | None,
) -> Tensor:
    reduction_code = checked_named_reduction(reduction)
    chunk_options = chunk_options_of(input, chunk_labels)
    check_layer(input, linear_weight, linear_bias, chunk_options.product_dtype is not None)
    given = Layer(input, linear_weight, linear_bias)
    layer = _rows.of_layer(given)
    logits = None
    if fused_step is None and is_small(layer, chunk_options) and not is_observed():
        logits = linear(*layer)
    options = checked_options(
        given.logits_like() if logits is None or layer is not given else logits,
        target,
        weight,
        pos_weight,
        label_smoothing,
        ignore_index,
        reduction_code,
        loss,
        normalizer,
        logits_name="input and linear_weight",
        rows=None if layer is given else layer.logits_like(),
    )
    step = bound(fused_step, linear_weight, linear_bias)
    if layer is not given:
        options = _rows.of_options(options, input.shape[:-1])
    if logits is None:
        of_rows = _dispatch.loss(layer, options, chunk_options, step)
    else:
        of_rows = loss_of_all_logits(logits, options)
    return of_rows if layer is given else _rows.restored(of_rows, input, reduction_code)


_uncompiled_loss = not_compiled(_loss)


def chunk_options_of(input: Tensor, chunk_labels: int | None) -> ChunkOptions:
    if chunk_labels is not None:
        chunk_labels = checked_count("chunk_labels", chunk_labels)
    return ChunkOptions(_autocast_dtype(input), chunk_labels)


def _autocast_dtype(input: Tensor) -> torch.dtype | None:
    """Returns the dtype in which autocast would multiply, or None if it is not enabled."""
    if not isinstance(input, Tensor) or input.dtype == torch.float64:
        return None
    device = input.device.type
    return torch.get_autocast_dtype(device) if is_autocast_enabled(device) else None
