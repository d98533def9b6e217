"""The losses as functions: checks of the arguments, then the choice of an implementation."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _config, _sharding, reference, transforms
from ._checks import check_reduction, checked_options
from ._extension import HOW_TO_BUILD, extension
from ._ops import (
    MOST_DIMENSIONS,
    TARGET_DTYPES,
    Kernels,
    on_cpu,
    on_cuda,
    ops,
    why_not_on_cuda,
)
from .autograd import apply_fused
from .probabilities import unreduced_from_probabilities
from .reference import MEAN, NONE, REDUCTIONS, SUM, Options

Reduction = str | Callable[[Tensor], Tensor]

_PLAIN = (Tensor, torch.nn.Parameter)
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_tracing_state: Callable[[], object] = torch._C._get_tracing_state
_saved_tensors_hooks: Callable[[bool], object] = torch._C._autograd._top_saved_tensors_default_hooks


def weighted_bce_with_logits(
    input: Tensor,
    target: Tensor,
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
        target: labels in [0, 1], of the shape of `input`; bool, any integer or floating dtype.
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
            what is saved (as in a checkpoint), under torch.func and torch.compile. Default: False.

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
    options = checked_options(input, target, weight, pos_weight, label_smoothing, ignore_index)
    if reduction == "mean":
        return _reduced(input, options, MEAN, inplace_backward)
    check_reduction(reduction, input)
    if isinstance(reduction, str) and reduction != "none":
        return _reduced(input, options, REDUCTIONS[reduction], inplace_backward)
    loss = _unreduced(input, options, inplace_backward)
    return loss if isinstance(reduction, str) else reduction(loss)


def weighted_bce(
    input: Tensor,
    target: Tensor,
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
    options = checked_options(input, target, weight, pos_weight, label_smoothing, ignore_index)
    check_reduction(reduction, input)
    loss = unreduced_from_probabilities(input, options)
    if not isinstance(reduction, str):
        return reduction(loss.to(input.dtype))
    if reduction == "none":
        return loss.to(input.dtype)
    return reference.divided(loss.sum(), REDUCTIONS[reduction], options)


def _kernels_for(input: Tensor) -> Kernels | None:
    """The kernels that take these logits, by their kind and by the chosen backend."""
    chosen = _config.current_backend
    if chosen == "reference":
        return None
    if input.layout is torch.strided and input.dim() <= MOST_DIMENSIONS:
        kernels = on_cpu if input.is_cpu else on_cuda(input)
        if kernels is not None:
            return kernels
    if chosen == "fused":
        raise RuntimeError(f"backend 'fused' has no kernel for this input: {_why_none(input)}")
    return None


def _why_none(input: Tensor) -> str:
    if extension is None:
        return f"none is built; {HOW_TO_BUILD}"
    reason = why_not_on_cuda(input.get_device()) if input.is_cuda else None
    return reason or f"got {input.layout} on {input.device.type} with {input.dim()} dimensions"


def _kernels_lack(options: Options) -> bool:
    """Whether a gradient is wanted that the kernels do not give."""
    if transforms.active():
        # The compiler traces transforms of plain torch only.
        return torch.compiler.is_compiling() or transforms.lack(options[:3])
    target, weight, pos_weight = options[:3]
    wanted = (
        target.requires_grad
        or (weight is not None and weight.requires_grad)
        or (pos_weight is not None and pos_weight.requires_grad)
    )
    return wanted and torch.is_grad_enabled()


def _for_kernels(input: Tensor, options: Options) -> Options:
    target = options.target
    if target.dtype not in TARGET_DTYPES:
        target = target.float()
    if not torch.compiler.is_compiling():
        if target.is_inference() and _records(input):
            target = target.clone()  # autograd saves no inference tensor
    elif _changes(options.pos_weight_value):
        # As an op's argument each value would be compiled anew, as a product it is an input.
        value = torch.ones((), dtype=torch.float64, device="cpu") * options.pos_weight_value
        options = options._replace(pos_weight=value, pos_weight_value=1.0)
    return options if target is options.target else options._replace(target=target)


def _changes(number: float) -> bool:
    """Whether the compiler has seen a number change, and keeps it as a symbol."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(number)


def _through_dispatcher(input: Tensor, options: Options) -> bool:
    """Whether tracing, a tensor subclass, a mode or a negated view needs the dispatcher.

    So do hooks of saved tensors, a checkpoint's among them: then the logits are saved, and not a
    gradient, which hooks may round and which a checkpoint would compute for nothing.
    """
    return (
        torch.compiler.is_compiling()
        or _dispatch_modes() > 0
        or _tracing_state() is not None
        or _saved_tensors_hooks(True) is not None
        or not _is_plain(input)
        or not _is_plain(options.target)
        or not (options.weight is None or _is_plain(options.weight))
        or not (options.pos_weight is None or _is_plain(options.pos_weight))
    )


def _records(input: Tensor) -> bool:
    return input.requires_grad and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN and not tensor.is_neg()


def _reduced(input: Tensor, options: Options, reduction: int, inplace: bool) -> Tensor:
    kernels = _kernels_for(input)
    if kernels is None or _kernels_lack(options):
        return reference.loss(input, options, reduction)
    options = _for_kernels(input, options)
    if transforms.active():
        return transforms.loss(input, *options, reduction)
    if _through_dispatcher(input, options):
        if _is_sharded(input, options):  # a shard does not know what counts in the others
            return reference.divided(ops.loss.default(input, *options, SUM), reduction, options)
        return cast(Tensor, ops.loss.default(input, *options, reduction))
    if _records(input):
        return apply_fused(input, kernels, options, reduction, inplace)
    return cast(Tensor, kernels.loss(input, *options, reduction))


def _unreduced(input: Tensor, options: Options, inplace: bool) -> Tensor:
    kernels = _kernels_for(input)
    if kernels is None or _kernels_lack(options):
        return reference.unreduced(input, options).to(input.dtype)
    options = _for_kernels(input, options)
    if transforms.active():
        return transforms.unreduced(input, *options)
    if _through_dispatcher(input, options):
        _is_sharded(input, options)
        return cast(Tensor, ops.unreduced.default(input, *options))
    if _records(input):
        return apply_fused(input, kernels, options, NONE, inplace)
    return cast(Tensor, kernels.unreduced(input, *options))


def _is_sharded(input: Tensor, options: Options) -> bool:
    return not torch.compiler.is_compiling() and _sharding.prepare(input, options)
