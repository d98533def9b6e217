"""How far each baseline is from float64. What is farther than by rounding is not timed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .losses import LOSSES
from .runner import Disagreement, Runner
from .samples import CHUNK, MOST_CHECKED, Sample
from .settings import Setting

Truth = tuple[float, tuple[Tensor, ...]]
FLOAT_EPS = torch.finfo(torch.float32).eps


def truth(sample: Sample, setting: Setting, pos_weight: float) -> Truth:
    """The formula for targets of 0 and 1 and finite logits, in float64, a chunk at a time.

    A chunk is of logits, or of the labels of a linear layer.

    Returns:
        The mean loss, and the gradients of the leaves; of the last leaf only the first elements.
    """
    positive, negative = LOSSES[setting.loss].terms
    *inputs, last = sample.values
    inputs = [value.double().requires_grad_() for value in inputs]
    if inputs:
        targets, size = sample.ready.t(), max(1, CHUNK // setting.rows)
    else:
        last, targets, size = last.flatten(), sample.ready.flatten(), CHUNK
    total, known = torch.zeros((), dtype=torch.float64, device=last.device), []
    for part, target in zip(last.split(size), targets.split(size), strict=True):
        part = part.double().requires_grad_()
        logits = part @ inputs[0].t() if inputs else part
        of_positives, of_negatives = pos_weight * positive.value(logits), negative.value(logits)
        loss = torch.where(target > 0, of_positives, of_negatives).sum() / setting.elements
        loss.backward()
        total += loss.detach()
        if sum(map(torch.numel, known)) < MOST_CHECKED:
            known.append(part.grad)
    return float(total), (*(value.grad for value in inputs), torch.cat(known))


def errors(runner: Runner, known: Callable[[float], Truth]) -> tuple[float, float | None]:
    """The relative errors of one call: of the loss, and the largest of the gradient's elements.

    `known` is asked for the truth, by pos_weight. Raises OverflowError for float16, Disagreement
    where errors are larger than roundings make them.
    """
    baseline, setting = runner.baseline, runner.samples.setting
    right_loss, right_gradients = known(setting.pos_weight if baseline.weighted else 1.0)
    sample = runner.prepare()
    result, grads = runner.run(sample), [leaf.grad for leaf in sample.leaves]
    sample.drop_gradients()
    if setting.dtype == "float16" and not all(map(_is_finite, (result, *grads))):
        raise OverflowError("it overflows float16")
    loss = float(result.double())
    off_loss = abs(loss - right_loss) / (right_loss or 1)
    eps = torch.finfo(setting.torch_dtype).eps
    # The result is rounded to the dtype. Sums, of half precision in float32, are made one by one,
    # in some lanes: their roundings add up at random.
    sums = max(1.0, math.sqrt(setting.elements) / 16) * min(eps, FLOAT_EPS)
    if not off_loss <= 4 * (eps + sums):
        raise Disagreement(f"the loss is {loss:.8g}, off by {off_loss:.2g} of {right_loss:.8g}")
    off_gradient, scale = None, baseline.scale(setting)
    for grad, wanted in zip(grads, right_gradients, strict=True):
        if grad is not None:
            off, excess = _off(grad, wanted, scale, setting)
            if not excess <= 4 * (eps + sums * (setting.features > 0)):
                raise Disagreement(f"the gradient is off by {excess:.2g} times what it should be")
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
    got_parts = grad.flatten()[: len(known)].split(CHUNK)
    for got, wanted in zip(got_parts, known.split(CHUNK), strict=True):
        off = (got.double() / scale).sub_(wanted).abs_()
        value = largest if setting.features else wanted.abs()
        is_difference = (wanted < 0) | LOSSES[setting.loss].cancels
        allowed = value if setting.features else is_difference * weight + value + smallest
        worst = worst.maximum((off / value.clamp_min(smallest)).max())
        excess = excess.maximum((off / allowed).max())  # NaN stays NaN
    return float(worst), float(excess)
