"""Contenders that take turns: all agree first, then each is timed once in every round."""

import math
import os
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from .contenders import COPY, Contender
from .losses import OURS, Setting


class Disagreement(Exception):
    """Two contenders do not compute the same."""


class Group(NamedTuple):
    """Contenders that are compared with one another."""

    title: str
    setting: Setting
    contenders: list[Contender]


class Result(NamedTuple):
    """One contender of a group. The ratios are medians of the ratios in each round."""

    contender: str
    seconds: float | None = None
    times_copy: float | None = None
    times_ours: float | None = None
    gigabytes_per_second: float | None = None
    rounds: list[float] | None = None  # seconds
    failed: str | None = None  # why there are no times
    disagrees: bool = False


class Measured(NamedTuple):
    """A result for each contender, and what share of the CPU other programs took meanwhile."""

    results: list[Result]
    taken: float


def measure(group: Group, rounds: int) -> Measured:
    """Medians over `rounds`, in which machine noise meets all alike."""
    failures = check(group)
    start, before = time.perf_counter(), _seconds_of_others()
    running = [c for c in group.contenders if c.name not in failures]
    spent: dict[str, list[float]] = {c.name: [] for c in running}
    for number in range(1 + rounds):
        for contender in running:
            seconds = _timed(contender)
            if number > 0:  # the first round warms up
                spent[contender.name].append(seconds)
    available = max(1.0, time.perf_counter() - start) * (psutil.cpu_count() or 1)
    taken = max(0.0, _seconds_of_others() - before) / available
    results = [
        failures[c.name] if c.name in failures else _result(c, spent[c.name], spent)
        for c in group.contenders
    ]
    return Measured(results, taken)


def _seconds_of_others() -> float:
    """CPU time of all programs but this one."""
    everyone, ours = psutil.cpu_times(), os.times()
    return everyone.user + everyone.nice + everyone.system - ours.user - ours.system


def _timed(contender: Contender) -> float:
    logits = contender.before()
    start = time.perf_counter()
    contender.step(logits)
    seconds = time.perf_counter() - start
    logits.grad = None
    return seconds / contender.steps


def _result(contender: Contender, mine: list[float], spent: dict[str, list[float]]) -> Result:
    seconds = statistics.median(mine)
    return Result(
        contender.name,
        seconds,
        median_ratio(mine, spent.get(COPY)),
        median_ratio(mine, spent.get(OURS)),
        contender.needed_bytes / seconds / 1e9 if contender.needed_bytes else None,
        mine,
    )


def median_ratio(times: Sequence[float], to: Sequence[float] | None) -> float | None:
    return None if to is None else statistics.median(a / b for a, b in zip(times, to, strict=True))


def check(group: Group) -> dict[str, Result]:
    """Contenders that raise or disagree with ours, by name: there is nothing to time."""
    failures = {}
    expected = _outcome(next(c for c in group.contenders if c.name == OURS))
    for contender in group.contenders:
        if contender.name in (COPY, OURS):
            continue
        try:
            _compare(_outcome(contender), expected, group.setting)
        except Exception as error:
            wrong = isinstance(error, Disagreement)
            failures[contender.name] = Result(contender.name, failed=reason(error), disagrees=wrong)
    return failures


def reason(error: Exception) -> str:
    """The line that says it, of a message that can be very long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.endswith(":")), type(error).__name__)
    return text if len(text) <= 150 else text[:147] + "..."


def _outcome(contender: Contender) -> tuple[Tensor, Tensor | None]:
    logits = contender.before()
    loss = contender.step(logits)
    assert loss is not None
    grad, logits.grad = logits.grad, None
    return loss.double(), grad


def _compare(
    actual: tuple[Tensor, Tensor | None],
    expected: tuple[Tensor, Tensor | None],
    setting: Setting,
) -> None:
    """Equal but for the few roundings in the logits' dtype that others make and ours does not."""
    known = torch.finfo(getattr(torch, setting.dtype))
    for what, got, wanted in zip(("loss", "gradient"), actual, expected, strict=True):
        if got is None or wanted is None:
            continue
        # The gradient of a positive is negative. It is a difference of numbers up to pos_weight.
        weight = max(1.0, setting.pos_weight) * setting.scale / setting.elements
        size = wanted.abs() + (wanted < 0) * weight
        allowed = 4 * known.eps * (size + known.smallest_normal)
        excess = (got - wanted).abs() - allowed
        if not bool((excess <= 0).all()):
            worst = float(excess.double().nan_to_num(nan=math.inf, posinf=math.inf).max())
            raise Disagreement(f"the {what} differs from ours, {worst:.3g} more than by rounding")
