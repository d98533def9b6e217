"""The loss of probabilities, in plain torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._checks import Target, check_csr_indices, checked_options, checked_reduction
from ._dtensor_import import import_rules_for_dtensors
from ._options import NONE, Options
from ._reference import coefficients, divided, each_element, without_ignored
from ._types import Reduction
from .losses import BCE

_BCE = BCE()


def weighted_bce(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Computes the binary cross-entropy of probabilities, with more weight on positives.

    With a `pos_weight` of 1 it is equivalent to ``F.binary_cross_entropy(input, target)``. As
    there, logarithms are at least -100 and their derivatives at most 1e12. Prefer
    `weighted_bce_with_logits`, which is more accurate and runs fused kernels; this function runs
    PyTorch operations on every device.

    Args:
        input: the probabilities, in [0, 1] and of any shape; float16, bfloat16, float32 or float64.
        target: the labels, with values in [0, 1]; dense or sparse, as for
            `weighted_bce_with_logits`.
        weight: multiplies each element's loss; a tensor that broadcasts to `input`. Default: None,
            which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor that broadcasts
            to `input`. Default: None, which means 1.
        reduction: "none", "mean", "sum", "batchmean" or a callable, as for
            `weighted_bce_with_logits`. Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        ignore_index: elements whose target equals it do not count. Default: None.
        normalizer: what the sum of the losses is divided by, in place of the number of elements,
            as for `weighted_bce_with_logits`. Default: None.

    Returns:
        The loss. With reduction "none" it has the shape and dtype of `input`. Otherwise it is 0-d,
        float64 for float64 probabilities and float32 for all others. A callable's result is
        returned as it is.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape or value, or is on another device. Whether
            probabilities are in [0, 1] is checked on the CPU only.

    Example:
        >>> import torch
        >>> from weighted_bce import weighted_bce
        >>> print(f"{weighted_bce(torch.tensor([0.5]), torch.tensor([1]), pos_weight=3.0):.4f}")
        2.0794
    """
    reduction_code = checked_reduction(reduction)
    options = checked_options(
        input,
        target,
        weight,
        pos_weight,
        label_smoothing,
        ignore_index,
        reduction_code,
        _BCE,
        normalizer,
    )
    import_rules_for_dtensors()
    check_csr_indices(input.shape, options)
    loss = _loss(input, options)
    return loss if isinstance(reduction, str) else reduction(loss)


def _loss(input: Tensor, options: Options) -> Tensor:
    """Returns the loss after the reduction; that of each element in the dtype of `input`.

    Raises:
        ValueError: if an element that counts is outside [0, 1]; on the CPU only.
    """
    (losses,) = each_element(_unreduced, input, options)
    if options.reduction == NONE:
        return losses.to(input.dtype)
    return divided(losses.sum(), input, options)


def _unreduced(input: Tensor, options: Options) -> tuple[Tensor]:
    x, options, skip = without_ignored(input, options)
    _check_range(x)
    positive, negative = coefficients(options, x.dtype)
    of_positive, of_negative = _terms(x)
    loss = of_positive * positive + of_negative * negative
    return (loss if skip is None else loss.masked_fill(skip, 0),)


def _check_range(x: Tensor) -> None:
    """Reads the values only if that needs no synchronization and nothing traces."""
    if (
        x.device.type != "cpu"
        or x.numel() == 0
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or type(x.detach()) is not Tensor
    ):
        return
    low, high = (bound.item() for bound in torch.aminmax(x.detach()))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"input must be in [0, 1], got values from {low} to {high}")


class _LimitedLog(Function):
    """log(x) or log(1 - x), at least -100, with a derivative of at most 1e12, as in nn.BCELoss."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, complement: bool) -> Tensor:
        return (torch.log1p(-x) if complement else torch.log(x)).clamp(min=-100)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.complement = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return _LimitedLog.jvp(ctx, grad_output, None), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        x: Tensor
        (x,) = ctx.saved_tensors
        slope = -1 / (1 - x).clamp(min=1e-12) if ctx.complement else 1 / x.clamp(min=1e-12)
        return tangent * slope


def _terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns -log(x) and -log(1 - x), the values of the two terms."""
    log: Callable[[Tensor, bool], Tensor] = _LimitedLog.apply
    return -log(x, False), -log(x, True)
