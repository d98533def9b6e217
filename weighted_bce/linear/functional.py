"""The loss of a linear layer as functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .._checks import Target, check_layer, checked_options, checked_reduction_to_scalar
from .._numbers import check_count
from ..losses import BCE, Loss, check_loss
from . import _dispatch
from ._chunks import ChunkOptions, Layer
from ._passes import Step
from ._unchunked import autocast_available

_BCE = BCE()


def linear_weighted_bce_with_logits(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    chunk_labels: int | None = None,
    fused_step: Step | None = None,
) -> Tensor:
    r"""The weighted loss of a linear layer's logits, which are never held all at once.

    Equivalent to::

        logits = F.linear(input, linear_weight, linear_bias)
        weighted_bce_with_logits(logits, target, weight, pos_weight, reduction,
                                 label_smoothing=label_smoothing)

    but a chunk of labels goes through all of it before the next one begins: its logits, their loss,
    and from its gradient the products of the backward pass. Beyond its inputs and their gradients
    it needs the memory of one chunk.

    Args:
        input: (rows, features); float16, bfloat16, float32 or float64.
        linear_weight: (labels, features), of the dtype of `input`. Under autocast half precision
            and float32 may be mixed.
        target: labels in [0, 1] of shape (rows, labels), bool, any integer or floating dtype; or
            only the positives, as `SparseLabels` or a torch.sparse_csr or sparse_coo tensor.
        linear_bias: (labels,), of the dtype of `linear_weight`. Default: None.
        weight: multiplies each element's loss; broadcasts to (rows, labels).
        pos_weight: multiplies the positive term; a number >= 0, or a tensor that broadcasts to
            (rows, labels): (labels,) for one weight a label. Default: 1.
        reduction: "mean" (over rows * labels), "sum" or "batchmean" (the sum over rows).
            Default: "mean". With millions of labels the gradients of a mean are as small as the
            eps of Adam; those of "batchmean" are not.
        label_smoothing: in [0, 1). Default: 0.
        chunk_labels: how many labels a chunk has. Default: on the CPU so many that a chunk's logits
            stay in a cache, on CUDA so many that they take 32 MiB, or an eighth of the free memory
            where that is less.
        fused_step: a callable that is given each chunk's gradients as soon as backward has made
            them, instead of ``.grad``: ``fused_step(labels, weight_grad, bias_grad)``, with
            ``labels`` the slice of rows of `linear_weight` that they belong to and ``bias_grad``
            None without a bias that requires a gradient. The tensors are valid during the call. It
            may change those rows: the whole gradient of the weight is never held. `FusedSGD` and
            `FusedAdam` are two. Called only where `linear_weight` requires a gradient. Nothing is
            averaged over processes: for classifiers that one process has, or a part of each.

    Returns:
        0-d; float64 for float64 input and float32 for all others.

    Raises:
        TypeError: an argument or a dtype of the wrong type.
        ValueError: a wrong shape or value, or tensors on different devices.
        NotImplementedError: `fused_step` under torch.func, with ``create_graph=True``, or with an
            `input` whose rows are sharded. Where torch.compile meets it, the graph breaks.
        RuntimeError: under ``backend("fused")``, where no kernel serves the input.

    Note:
        Products are torch's, in the dtype of `input` or of autocast. Those of half precision are
        summed, and kept until after the loss, in float32. On the CPU they take float32 copies of
        each chunk, so autocast changes nothing there.

        Where a gradient is needed the forward pass makes it, for the grad_output that came
        the last time, 1 at first. Where backward brings another, and in a graph that is kept, it is
        made once more; on CUDA backward waits for the forward pass in order to compare the two.
        Under torch.compile, in a checkpoint, while a CUDA graph is recorded and with `fused_step`
        the forward pass makes the loss alone, and backward the logits again.

        On the CPU the gradient of the weight takes memory that an earlier one has left, see
        `empty_cache`; and each chunk's threads wait for one another, so where other programs keep
        the processor's cores busy, fewer threads or larger chunks are faster.

        All logits are held where torch.func is at work, and for second derivatives and gradients
        with respect to `target`, `weight` and `pos_weight`.

        A DTensor `linear_weight` has its labels sharded (``Shard(0)``), `input` is replicated or
        has its rows sharded: each process computes its own part, and the loss is summed over all.

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
        chunk_labels=chunk_labels,
        fused_step=fused_step,
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
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    chunk_labels: int | None = None,
    fused_step: Step | None = None,
) -> Tensor:
    """A weighted loss, of a chosen kind, of a linear layer's logits, which are never held at once.

    Equivalent to::

        logits = F.linear(input, linear_weight, linear_bias)
        multilabel_loss_with_logits(logits, target, loss, weight, pos_weight, reduction,
                                    label_smoothing=label_smoothing)

    Args:
        input: (rows, features); float16, bfloat16, float32 or float64.
        linear_weight: (labels, features), of the dtype of `input`, but for autocast.
        target: (rows, labels), dense or sparse, as for `linear_weighted_bce_with_logits`, like all
            that is not described here.
        loss: one of those in weighted_bce.losses, such as `Focal(gamma=2.0)`.
        linear_bias: (labels,), of the dtype of `linear_weight`. Default: None.
        weight: multiplies each element's loss; broadcasts to (rows, labels).
        pos_weight: multiplies the positive term; a number >= 0, or a tensor that broadcasts to
            (rows, labels). Default: 1.
        reduction: "mean", "sum" or "batchmean". Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        chunk_labels: how many labels a chunk has. Default: chosen.
        fused_step: a callable that is given each chunk's gradients in backward.

    Returns:
        0-d; float64 for float64 input and float32 for all others.

    Raises:
        TypeError: an argument or a dtype of the wrong type, an unknown loss among them.
        ValueError: a wrong shape or value, or tensors on different devices.
        NotImplementedError, RuntimeError: as `linear_weighted_bce_with_logits`.

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
        chunk_labels=chunk_labels,
        fused_step=fused_step,
    )


def _overridable_loss(
    function: Callable[..., Tensor], arguments: tuple[Any, ...], loss: Loss, **options: Any
) -> Tensor:
    """Returns the loss, or what a subclass of Tensor makes of a call of `function`."""
    input, linear_weight, target, *_ = arguments
    factors = options["linear_bias"], options["weight"], options["pos_weight"]
    tensors = input, linear_weight, target, *factors
    if has_torch_function_variadic(*tensors):
        result: Tensor = handle_torch_function(function, tensors, *arguments, **options)
        return result
    check_loss(loss)
    return _loss(input, linear_weight, target, loss, **options)


def _loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    loss: Loss,
    *,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    pos_weight: float | Tensor | None,
    reduction: str,
    label_smoothing: float,
    chunk_labels: int | None,
    fused_step: Step | None,
) -> Tensor:
    chunk_options = chunk_options_of(input, chunk_labels)
    check_layer(input, linear_weight, linear_bias, chunk_options.product_dtype is not None)
    layer = Layer(input, linear_weight, linear_bias)
    options = checked_options(
        layer.logits_like(),
        target,
        weight,
        pos_weight,
        label_smoothing,
        None,  # ignore_index
        checked_reduction_to_scalar(reduction),
        loss,
        logits_name="input and linear_weight",
    )
    if not (fused_step is None or callable(fused_step)):
        raise TypeError(f"fused_step must be callable, got {type(fused_step).__name__}")
    return _dispatch.loss(layer, options, chunk_options, fused_step)


def chunk_options_of(input: Tensor, chunk_labels: int | None) -> ChunkOptions:
    if chunk_labels is not None:
        check_count("chunk_labels", chunk_labels)
    return ChunkOptions(_autocast_dtype(input), chunk_labels)


def _autocast_dtype(input: Tensor) -> torch.dtype | None:
    """Returns the dtype in which autocast would multiply; None where it is not at work."""
    if not isinstance(input, Tensor) or input.dtype == torch.float64:
        return None
    device = input.device.type
    enabled = autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else None
