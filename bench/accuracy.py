"""How far each baseline is from float64. What is farther than by rounding is not timed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .runner import Runner
from .samples import Sample
from .settings import Setting

# Elements that are computed at once: in the cache of a CPU; enough to keep a GPU busy.
CHUNK, GPU_CHUNK = 2**16, 2**22
FLOAT_EPS = torch.finfo(torch.float32).eps
MOST = 2**24  # elements of the gradient that are compared, the first ones


class Truth(NamedTuple):
    """The mean loss of all elements, and the gradients of the leaves' first ones, float64."""

    loss: float
    gradients: tuple[Tensor, ...]


class Errors(NamedTuple):
    """Relative errors: that of the loss, and the largest one of an element of the gradient.

    Those of a linear layer's gradients, which are sums, are relative to the largest element.
    """

    loss: float
    gradient: float | None


class Disagreement(Exception):
    """A baseline does not compute what it should."""


class Overflow(Exception):
    """A baseline has infinity or NaN where float16 could hold the result."""


def chunk_of(device: str) -> int:
    return CHUNK if device == "cpu" else GPU_CHUNK


def truth(sample: Sample, setting: Setting, pos_weight: float, positives: bool) -> Truth:
    """The formula for targets of 0 and 1 and finite logits, in float64, a chunk at a time.

    A chunk is of logits, or of the labels of a linear layer.
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
        loss, slopes = _of_logits(logits, target.double() * positives, pos_weight)
        total += loss
        slopes /= setting.elements
        if setting.features:
            of_input += slopes @ part
        if known < MOST:
            others.append(slopes.t() @ x if setting.features else slopes)
            known += part.numel()
    gradients = (of_input, torch.cat(others)) if setting.features else (torch.cat(others),)
    return Truth(float(total) / setting.elements, gradients)


def _of_logits(logits: Tensor, targets: Tensor, pos_weight: float) -> tuple[Tensor, Tensor]:
    """The sum of the loss, and its gradient. A positive is a negative of the other sign."""
    sign = 1 - 2 * targets
    weight = torch.ones_like(sign).masked_fill(sign < 0, pos_weight)
    wrong = sign * logits
    loss = -(weight * logsigmoid(-wrong)).sum()
    return loss, sign * weight * wrong.sigmoid()


def errors(runner: Runner, known: Truth) -> Errors:
    """The errors of one call; raises Overflow, and Disagreement where they are larger than
    roundings make them."""
    sample, setting = runner.prepare(), runner.samples.setting
    result = runner.run(sample)
    assert result is not None
    loss, grads = float(result.double()), [leaf.grad for leaf in sample.leaves]
    sample.drop_gradients()
    if setting.dtype == "float16" and not (math.isfinite(loss) and all(map(_is_finite, grads))):
        raise Overflow("it overflows float16")
    off_loss = abs(loss - known.loss) / (known.loss or 1)
    of_dtype = torch.finfo(getattr(torch, setting.dtype))
    # The result is rounded to the dtype. Sums, of half precision in float32, are made one by one,
    # in some lanes: their roundings add up at random.
    sums = max(1.0, math.sqrt(setting.elements) / 16) * min(of_dtype.eps, FLOAT_EPS)
    if not off_loss <= 4 * (of_dtype.eps + sums):
        raise Disagreement(f"the loss is {loss:.8g}, off by {off_loss:.2g} of {known.loss:.8g}")
    scale = runner.baseline.scale(setting)
    pairs = zip(grads, known.gradients, strict=True)
    made = [(grad, wanted) for grad, wanted in pairs if grad is not None]
    if not made:
        return Errors(off_loss, None)
    if setting.features:
        worst = max(_off_largest(grad, wanted, scale) for grad, wanted in made)
        excess, allowed = worst, of_dtype.eps + sums
    else:
        worst, excess = _off_elements(*made[0], scale, setting)
        allowed = of_dtype.eps
    if not excess <= 4 * allowed:
        raise Disagreement(f"the gradient is off by up to {excess:.2g} times what it should be")
    return Errors(off_loss, worst)


def _is_finite(grad: Tensor | None) -> bool:
    """One part is looked at after the other: torch makes several tensors to see it."""
    parts = () if grad is None else grad.flatten().split(MOST)
    return all(bool(part.isfinite().all()) for part in parts)


def _off_elements(
    grad: Tensor, known: Tensor, scale: float, setting: Setting
) -> tuple[float, float]:
    """The worst element's error: relative to its value, and to what its roundings are relative to.

    These are few, in the logits' dtype. The gradient of a positive, which is negative, is to
    others a difference of numbers up to pos_weight.
    """
    smallest = torch.finfo(getattr(torch, setting.dtype)).smallest_normal / scale
    weight = max(1.0, setting.pos_weight) / setting.elements
    worst, excess = torch.zeros(2, dtype=torch.float64, device=grad.device)
    size = chunk_of(grad.device.type)
    pairs = zip(grad.flatten()[: len(known)].split(size), known.split(size), strict=True)
    for got, wanted in pairs:
        off, value = (got.double() / scale).sub_(wanted).abs_(), wanted.abs()
        allowed = (wanted < 0) * weight + value + smallest
        worst = worst.maximum(_largest(off / value.clamp_min(smallest)))
        excess = excess.maximum(_largest(off / allowed))
    return float(worst), float(excess)


def _off_largest(grad: Tensor, known: Tensor, scale: float) -> float:
    """The worst element, relative to the largest one; of the elements that are known."""
    got, wanted = grad.flatten()[: known.numel()], known.flatten()
    off = (got.double() / scale).sub_(wanted).abs_()
    return float(_largest(off) / wanted.abs().max())


def _largest(values: Tensor) -> Tensor:
    return values.max().nan_to_num(math.inf, math.inf)
