"""Compares baselines with float64. One whose error is larger than rounding is not timed."""

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
    """Computes the loss and its gradients in float64, for targets of 0 and 1 and finite logits.

    It takes a chunk of the logits, or of the labels of a linear layer, at a time.

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
    """Returns the relative error of the loss of a call, and the largest one of its gradient.

    `known` returns the truth for a pos_weight. Raises OverflowError if float16 overflows, and
    Disagreement if an error is larger than rounding can make it.
    """
    baseline, setting = runner.baseline, runner.samples.setting
    right_loss, right_gradients = known(setting.pos_weight if baseline.weighted else 1.0)
    sample = runner.prepare()
    result, grads = runner.run(sample), [leaf.grad for leaf in sample.leaves]
    sample.drop_gradients()
    if setting.dtype == "float16" and not all(map(_is_finite, (result, *grads))):
        raise OverflowError("the loss or the gradient overflows float16")
    loss = float(result.double())
    off_loss = abs(loss - right_loss) / (right_loss or 1)
    eps = torch.finfo(setting.torch_dtype).eps
    # The result is rounded to the dtype. Sums, of half precision in float32, are made one by one,
    # in some lanes: their roundings add up at random.
    sums = max(1.0, math.sqrt(setting.elements) / 16) * min(eps, FLOAT_EPS)
    if not off_loss <= 4 * (eps + sums):
        raise Disagreement(f"the loss is {loss:.8g}, but it should be {right_loss:.8g}")
    off_gradient, scale = None, baseline.scale(setting)
    for grad, wanted in zip(grads, right_gradients, strict=True):
        if grad is not None:
            off, excess = _off(grad, wanted, scale, setting)
            if not excess <= 4 * (eps + sums * (setting.features > 0)):
                raise Disagreement(f"the gradient has a relative error of {excess:.2g}")
            off_gradient = max(off, off_gradient or 0.0)
    return off_loss, off_gradient


def _is_finite(values: Tensor | None) -> bool:
    """Tells whether no value is infinite or NaN, by the extremes, which take no memory to find."""
    return values is None or all(bool(v.isfinite()) for v in (values.amax(), values.amin()))


def _off(grad: Tensor, known: Tensor, scale: float, setting: Setting) -> tuple[float, float]:
    """Returns the largest error, relative to the value, and relative to what rounding allows.

    Some baselines compute the gradient of a positive, or of any element if parts of the loss
    cancel, as a difference of numbers up to pos_weight. Its rounding error is relative to these.
    Elements of a linear layer's gradients are sums, whose errors are relative to the largest.
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
