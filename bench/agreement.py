"""Contenders are compared with ours before they are timed."""

import math
import traceback

import torch
from torch import Tensor

from .contenders import COPY, NO_POSITIVES, Contender
from .device import CPU, Device, out_of_memory, reason
from .group import Group, Result
from .losses import OURS, Setting

CHUNK = 2**26  # elements that are compared at once


class Disagreement(Exception):
    """Two contenders do not compute the same."""


def check(group: Group, device: Device = CPU) -> dict[str, Result]:
    """Those that do not fit, raise or disagree with ours, by name: there is nothing to time."""
    failures = _too_large(group, device.free_bytes())
    ours = next(c for c in group.contenders if c.name == OURS)
    expected = None
    if OURS not in failures:
        try:
            expected = _outcome(ours)
        except Exception as error:
            failures[OURS] = failure(ours, error)
            if failures[OURS].fits:
                traceback.print_exc()
        device.release()  # not before the error is gone, which holds what it interrupted
    for contender in group.contenders:
        if contender.name in (COPY, OURS, NO_POSITIVES) or contender.name in failures:
            continue
        if expected is None:
            failures[contender.name] = Result(
                contender.name, failed="no loss of ours to compare with"
            )
            continue
        try:
            _compare(_outcome(contender), expected, group.setting, contender.scale)
        except Exception as error:
            failures[contender.name] = failure(contender, error)
        device.release()
    return failures


def _too_large(group: Group, free: int | None) -> dict[str, Result]:
    """What is known not to fit before it is tried."""
    found = {}
    for name, needed in ((c.name, c.memory) for c in group.contenders):
        if free is not None and needed > free:
            text = f"it needs some {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            found[name] = Result(name, failed=text, fits=False)
    return found


def failure(contender: Contender, error: Exception) -> Result:
    return Result(
        contender.name,
        failed=reason(error),
        disagrees=isinstance(error, Disagreement),
        fits=not out_of_memory(error),
    )


def _outcome(contender: Contender) -> tuple[Tensor, Tensor | None]:
    sample = contender.before()
    loss = contender.step(sample)
    assert loss is not None
    grad, sample.logits.grad = sample.logits.grad, None
    return loss.double(), grad


def _compare(
    actual: tuple[Tensor, Tensor | None],
    expected: tuple[Tensor, Tensor | None],
    setting: Setting,
    scale: float,
) -> None:
    """Equal but for the few roundings in the logits' dtype that others make and ours does not."""
    smaller = (1.0, setting.scale / scale)
    for what, got, wanted, by in zip(("loss", "gradient"), actual, expected, smaller, strict=True):
        if got is None or wanted is None:
            continue
        pairs = zip(got.flatten().split(CHUNK), wanted.flatten().split(CHUNK), strict=True)
        worst = float(torch.stack([_excess(a, b, by, setting) for a, b in pairs]).max())
        if not worst <= 0:
            raise Disagreement(f"the {what} differs from ours, {worst:.3g} more than by rounding")


def _excess(got: Tensor, wanted: Tensor, by: float, setting: Setting) -> Tensor:
    """By how much got * by is farther from what was wanted than rounding takes it."""
    known = torch.finfo(getattr(torch, setting.dtype))
    got, wanted = (t if t.dtype == torch.float64 else t.float() for t in (got, wanted))
    # The gradient of a positive is negative. It is a difference of numbers up to pos_weight.
    weight = max(1.0, setting.pos_weight) * setting.scale / setting.elements
    allowed = 4 * known.eps * (wanted.abs() + (wanted < 0) * weight + known.smallest_normal)
    return ((got * by - wanted).abs() - allowed).max().double().nan_to_num(math.inf, math.inf)
