"""How far each baseline is from float64. What is farther than by rounding is not timed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .losses import LOSSES
from .runner import Runner
from .samples import MOST_CHECKED, Sample, chunk_of
from .settings import Setting

Truth = tuple[float, tuple[Tensor, ...]]
FLOAT_EPS = torch.finfo(torch.float32).eps


class Disagreement(Exception):
    """A baseline does not compute what it should."""


def truth(sample: Sample, setting: Setting, pos_weight: float, positives: bool) -> Truth:
    """The formula for targets of 0 and 1 and finite logits, in float64, a chunk at a time.

    A chunk is of logits, or of the labels of a linear layer.

    Returns:
        The mean loss of all elements, and the gradients of the leaves' first ones.
    """
    first, ready = sample.values[0], sample.ready
    size = chunk_of(first.device.type)
    if setting.features:
        x, weight = first.double(), sample.values[1]
        size = max(1, size // setting.rows)
        parts, targets = weight.split(size), ready.split(size, 1)
    else:
        parts, targets = first.flatten().split(size), ready.flatten().split(size)
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    of_input, others, known = torch.zeros_like(first, dtype=torch.float64), [], 0
    for part, target in zip(parts, targets, strict=True):
        part = part.double()
        logits = x @ part.t() if setting.features else part
        loss, slopes = _of_logits(logits, target * positives, pos_weight, setting.loss)
        total += loss
        slopes /= setting.elements
        if setting.features:
            of_input += slopes @ part
        if known < MOST_CHECKED:
            others.append(slopes.t() @ x if setting.features else slopes)
            known += part.numel()
    gradients = (of_input, torch.cat(others)) if setting.features else (torch.cat(others),)
    return float(total) / setting.elements, gradients


def _of_logits(
    logits: Tensor, targets: Tensor, pos_weight: float, loss: str
) -> tuple[Tensor, Tensor]:
    """The sum of the loss, and its gradient."""
    (positive, negative), is_positive = LOSSES[loss].terms, targets > 0
    value = torch.where(is_positive, pos_weight * positive.value(logits), negative.value(logits))
    slope = torch.where(is_positive, pos_weight * positive.slope(logits), negative.slope(logits))
    return value.sum(), slope


def errors(runner: Runner, known: Callable[[float, bool], Truth]) -> tuple[float, float | None]:
    """The relative errors of one call: of the loss, and the largest of the gradient's elements.

    `known` is asked for the truth, by pos_weight and whether positives count. Raises
    OverflowError for float16, Disagreement where errors are larger than roundings make them.
    """
    baseline, setting = runner.baseline, runner.samples.setting
    right_loss, right_gradients = known(
        setting.pos_weight if baseline.weighted else 1.0, baseline.positives
    )
    sample = runner.prepare()
    result = runner.run(sample)
    assert result is not None
    loss, grads = float(result.double()), [leaf.grad for leaf in sample.leaves]
    sample.drop_gradients()
    if setting.dtype == "float16" and not all(map(_is_finite, (result, *grads))):
        raise OverflowError("it overflows float16")
    off_loss = abs(loss - right_loss) / (right_loss or 1)
    eps = torch.finfo(setting.torch_dtype).eps
    # The result is rounded to the dtype. Sums, of half precision in float32, are made one by one,
    # in some lanes: their roundings add up at random.
    sums = max(1.0, math.sqrt(setting.elements) / 16) * min(eps, FLOAT_EPS)
    if not off_loss <= 4 * (eps + sums):
        raise Disagreement(f"the loss is {loss:.8g}, off by {off_loss:.2g} of {right_loss:.8g}")
    off_gradient, scale = None, baseline.scale(setting)
    for grad, wanted in zip(grads, right_gradients, strict=True):
        if grad is None:
            continue
        off, excess = _off(grad, wanted, scale, setting)
        if not excess <= 4 * (eps + sums * (setting.features > 0)):
            raise Disagreement(f"the gradient is off by up to {excess:.2g} times what it should be")
        off_gradient = max(off, off_gradient or 0.0)
    return off_loss, off_gradient


def _is_finite(values: Tensor | None) -> bool:
    """Whether none is infinite or NaN; the extremes tell, which take no memory to find."""
    return values is None or all(bool(v.isfinite()) for v in (values.amax(), values.amin()))


def _off(grad: Tensor, known: Tensor, scale: float, setting: Setting) -> tuple[float, float]:
    """The worst element's error: relative to its value, and to what its roundings are relative to.

    These are few, in the logits' dtype. The gradient of a positive, which is negative, is to
    others a difference of numbers up to pos_weight; that of any element where a loss cancels.
    Elements of a linear layer's gradients are sums: their errors are relative to the largest.
    """
    smallest = torch.finfo(setting.torch_dtype).smallest_normal / scale
    known = known.flatten()
    weight, largest = max(1.0, setting.pos_weight) / setting.elements, known.abs().max()
    worst, excess = torch.zeros(2, dtype=torch.float64, device=grad.device)
    size = chunk_of(grad.device.type)
    pairs = zip(grad.flatten()[: len(known)].split(size), known.split(size), strict=True)
    for got, wanted in pairs:
        off = (got.double() / scale).sub_(wanted).abs_()
        value = largest if setting.features else wanted.abs()
        is_difference = (wanted < 0) | LOSSES[setting.loss].cancels
        allowed = value if setting.features else is_difference * weight + value + smallest
        worst = worst.maximum((off / value.clamp_min(smallest)).max())
        excess = excess.maximum((off / allowed).max())  # NaN stays NaN
    return float(worst), float(excess)
