"""How far each contender is from float64. What is farther than by rounding is not timed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .contenders import Contender, loss_scale
from .samples import Sample
from .settings import Setting

CHUNK = 2**16  # elements that are computed at once: in the cache
FLOAT_EPS = torch.finfo(torch.float32).eps
MOST = 2**24  # elements of the gradient that are compared, the first ones


class Truth(NamedTuple):
    """The mean loss of all elements, and the gradient of the first ones, float64."""

    loss: float
    gradient: Tensor


class Errors(NamedTuple):
    """Relative: of the loss, and the largest one of an element of the gradient."""

    loss: float
    gradient: float | None


class Disagreement(Exception):
    """A contender does not compute what it should."""


class Overflow(Exception):
    """A contender has infinity or NaN where float16 could hold the result."""


def truth(sample: Sample, pos_weight: float, positives: bool) -> Truth:
    """By the formula for targets of 0 and 1 and finite logits, in float64."""
    x, y = sample.values.flatten(), sample.ready.flatten()
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    slopes, known = [], 0
    for logits, targets in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        # A positive is a negative of the other sign.
        sign = 1 - 2 * targets.double() * positives
        weight = torch.ones_like(sign).masked_fill(sign < 0, pos_weight)
        wrong = sign * logits.double()
        total -= weight @ logsigmoid(-wrong)
        if known < MOST:
            slopes.append(sign * weight * wrong.sigmoid() / len(x))
            known += len(logits)
    return Truth(float(total) / len(x), torch.cat(slopes))


def errors(contender: Contender, known: Truth, setting: Setting) -> Errors:
    """Those of one call; raises Disagreement where they are larger than roundings make them, and
    Overflow."""
    assert contender.loss is not None
    sample = contender.before()
    result = contender.step(sample)
    assert result is not None
    loss, grad = float(result.double()), sample.logits.grad
    sample.logits.grad = None
    if setting.dtype == "float16" and not (
        math.isfinite(loss) and (grad is None or bool(grad.isfinite().all()))
    ):
        raise Overflow("it overflows float16")
    off_loss = abs(loss - known.loss) / (known.loss or 1)
    of_dtype = torch.finfo(getattr(torch, setting.dtype))
    # The result is rounded to the dtype. Sums, of half precision in float32, are made one by one,
    # in some lanes: their roundings add up at random.
    sums = max(1.0, math.sqrt(setting.elements) / 16) * min(of_dtype.eps, FLOAT_EPS)
    if not off_loss <= 4 * (of_dtype.eps + sums):
        raise Disagreement(f"the loss is {loss:.8g}, off by {off_loss:.2g} of {known.loss:.8g}")
    if grad is None:
        return Errors(off_loss, None)
    # Few roundings in the logits' dtype. The gradient of a positive, which is negative, is to
    # others a difference of numbers up to pos_weight.
    scale = loss_scale(contender.loss, setting)
    weight = max(1.0, setting.pos_weight) / setting.elements
    worst, excess = torch.zeros(2, dtype=torch.float64, device=grad.device)
    pairs = zip(grad.flatten()[:MOST].split(CHUNK), known.gradient.split(CHUNK), strict=True)
    for got, wanted in pairs:
        off, size = (got.double() / scale).sub_(wanted).abs_(), wanted.abs()
        allowed = (wanted < 0) * weight + size + of_dtype.smallest_normal / scale
        nonzero = size.clamp_min(of_dtype.smallest_normal / scale)
        worst = worst.maximum((off / nonzero).max().nan_to_num(math.inf, math.inf))
        excess = excess.maximum((off / allowed).max().nan_to_num(math.inf, math.inf))
    if not excess <= 4 * of_dtype.eps:
        raise Disagreement(
            f"the gradient is off by up to {float(excess):.2g} times what it should be"
        )
    return Errors(off_loss, float(worst))
