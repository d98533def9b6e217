"""Contenders that take turns: all are compared with float64 first, then timed in rounds."""

import gc
import os
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import psutil

from .accuracy import Disagreement, Errors, Truth, errors, truth
from .contenders import Contender, Group
from .device import Device, out_of_memory, reason
from .memory import needed_bytes
from .names import COPY, OURS, PRODUCTS
from .samples import Peak, Samples
from .settings import Setting

FEWEST_ROUNDS = 5


class Result(NamedTuple):
    """One contender of a group. The ratios are medians of the ratios in each round."""

    contender: str
    seconds: float | None = None  # of a step: the median
    p20: float | None = None
    p80: float | None = None
    times_copy: float | None = None
    times_ours: float | None = None
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None  # of its bandwidth
    peak_bytes: int | None = None  # beyond the inputs
    peak_gradients: float | None = None
    loss_error: float | None = None  # relative, against float64
    gradient_error: float | None = None
    times_products: float | None = None  # of a linear layer, instead of times_copy
    beyond_bytes: int | None = None  # of a linear layer, beyond the inputs and their gradients
    failed: str | None = None  # why there are no times
    disagrees: bool = False
    fits: bool = True  # in the device's memory
    rounds: Sequence[float] = ()  # seconds

    def with_peak(self, peak: Peak | None, setting: Setting) -> "Result":
        if peak is None:
            return self
        if setting.features:
            beyond = max(0, peak.bytes - peak.gradients)
            return self._replace(peak_bytes=peak.bytes, beyond_bytes=beyond)
        gradients = peak.bytes / setting.gradient_bytes
        return self._replace(peak_bytes=peak.bytes, peak_gradients=gradients)


class Measured(NamedTuple):
    """A result for each contender, and what share of the CPU other programs took meanwhile."""

    results: list[Result]
    taken: float


class Limits(NamedTuple):
    """Rounds end when there are as many, or some and the time is over."""

    rounds: int
    seconds: float = 1e9


def measure(
    group: Group,
    samples: Samples,
    limits: Limits,
    tick: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Rounds in which all take turns, so that noise of the machine meets all alike.

    Args:
        group: its contenders work on `samples`.
        samples: and their device.
        limits: of the rounds.
        tick: told the name of each contender before it is first run, and "" after each round.
    """
    device = samples.device
    failures, found = _checked(group, samples, tick)
    start, before = time.perf_counter(), _seconds_of_others()
    spent = _spent(group, limits, device, failures, tick)
    available = max(1.0, time.perf_counter() - start) * (psutil.cpu_count() or 1)
    taken = max(0.0, _seconds_of_others() - before) / available
    peaks = _peaks(group, device, failures) if device.is_gpu else {}
    results = [
        failures[c.key]
        if c.key in failures
        else _result(c, spent, group, peaks.get(c.key), found.get(c.key))
        for c in group.contenders
    ]
    return Measured(results, taken)


def _checked(
    group: Group, samples: Samples, tick: Callable[[str], None]
) -> tuple[dict[str, Result], dict[str, Errors]]:
    """Those that do not fit, raise or are wrong, by key; and the errors of the others."""
    setting, device = group.setting, samples.device
    failures, found = _too_large(group, samples), {}

    @cache
    def known(pos_weight: float, positives: bool) -> Truth:
        return truth(samples.take(), pos_weight, positives)

    for contender in group.contenders:
        if contender.loss is None or contender.key in failures:
            continue
        tick(contender.name)
        weight = setting.pos_weight if contender.loss.weighted else 1.0
        try:
            right = known(weight, contender.loss.positives)
            found[contender.key] = errors(contender, right, setting)
        except Exception as error:
            failures[contender.key] = _failure(contender, error, device)
            if contender.key == OURS and failures[OURS].fits:
                traceback.print_exc()
        if contender.key in failures:
            device.release()  # not before the error is gone, which holds what it interrupted
    return failures, found


def _too_large(group: Group, samples: Samples) -> dict[str, Result]:
    """What is known not to fit before it is tried. Another pass may have made the samples."""
    found, left = {}, samples.device.free_bytes()
    free = None if left is None else left + samples.held_bytes
    for contender in group.contenders:
        needed = needed_bytes(contender, group.setting, samples.device)
        if free is not None and needed > free:
            text = f"it needs some {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            found[contender.key] = Result(contender.key, failed=text, fits=False)
    return found


def _failure(contender: Contender, error: Exception, device: Device) -> Result:
    """An allocation also fails on a device where nothing works any more."""
    return Result(
        contender.key,
        failed=reason(error),
        disagrees=isinstance(error, Disagreement),
        fits=not (out_of_memory(error) and device.works()),
    )


def _spent(
    group: Group,
    limits: Limits,
    device: Device,
    failures: dict[str, Result],
    tick: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of a step in each round. Adds to the failures what fails only now."""
    spent: dict[str, list[float]] = {c.key: [] for c in group.contenders}
    end = time.perf_counter() + limits.seconds
    gc.collect()
    for number in range(1 + limits.rounds):
        if number > FEWEST_ROUNDS and time.perf_counter() > end:
            break
        for contender in group.contenders:
            if contender.key in failures:
                continue
            try:
                seconds = _timed(contender, device)
            except Exception as error:
                failures[contender.key] = _failure(contender, error, device)
            if contender.key in failures:
                device.release()
            elif number > 0:  # the first round warms up
                spent[contender.key].append(seconds)
        tick("")
    return {key: times for key, times in spent.items() if key not in failures}


def _seconds_of_others() -> float:
    """CPU time of all programs but this one."""
    everyone, ours = psutil.cpu_times(), os.times()
    return everyone.user + everyone.nice + everyone.system - ours.user - ours.system


def _timed(contender: Contender, device: Device) -> float:
    sample = contender.before()
    return device.seconds(partial(contender.step, sample)) / contender.steps


def _peaks(group: Group, device: Device, failures: dict[str, Result]) -> dict[str, Peak]:
    peaks: dict[str, Peak] = {}
    if group.graphs:  # a graph allocates when it is captured
        return peaks
    for contender in group.contenders:
        if contender.key in failures:
            continue
        try:
            sample = contender.before()
            rise = device.rise_of_peak(partial(contender.step, sample))
        except Exception as error:
            if not out_of_memory(error):  # for which memory may have become too fragmented
                failures[contender.key] = _failure(contender, error, device)
            device.release()
            continue
        if rise is not None:
            peaks[contender.key] = Peak(rise, sample.gradients_bytes)
    return peaks


def _result(
    contender: Contender,
    spent: dict[str, list[float]],
    group: Group,
    peak: Peak | None,
    wrong: Errors | None,
) -> Result:
    mine = spent[contender.key]
    seconds = statistics.median(mine)
    p20, p80 = percentiles(mine)
    times_copy = median_ratio(mine, spent.get(COPY))
    copied = next((c.needed_bytes for c in group.contenders if c.key == COPY), 0)
    share = None
    if times_copy is not None and copied:
        share = contender.needed_bytes / copied / times_copy
    return Result(
        contender.key,
        seconds,
        p20,
        p80,
        times_copy,
        median_ratio(mine, spent.get(OURS)),
        contender.needed_bytes / seconds / 1e9 if contender.needed_bytes else None,
        share,
        loss_error=None if wrong is None else wrong.loss,
        gradient_error=None if wrong is None else wrong.gradient,
        times_products=median_ratio(mine, spent.get(PRODUCTS)),
        rounds=mine,
    ).with_peak(peak, group.setting)


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """The 20th and the 80th."""
    if len(times) < 2:
        return times[0], times[0]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def median_ratio(times: Sequence[float], to: Sequence[float] | None) -> float | None:
    return None if to is None else statistics.median(a / b for a, b in zip(times, to, strict=True))
