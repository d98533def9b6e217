"""Contenders that take turns: all agree first, then each is timed once in every round."""

import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import psutil

from .agreement import check, failure
from .contenders import COPY, Contender
from .device import CPU, Device
from .group import Group, Result
from .losses import OURS


class Measured(NamedTuple):
    """A result for each contender, and what share of the CPU other programs took meanwhile."""

    results: list[Result]
    taken: float


def measure(group: Group, rounds: int, device: Device = CPU) -> Measured:
    """Medians over `rounds`, in which machine noise meets all alike."""
    device.release()
    failures = check(group, device)
    start, before = time.perf_counter(), _seconds_of_others()
    spent = _spent(group, rounds, device, failures)
    available = max(1.0, time.perf_counter() - start) * (psutil.cpu_count() or 1)
    taken = max(0.0, _seconds_of_others() - before) / available
    peaks = _peaks(group, device, failures) if device.is_gpu else {}
    results = [
        failures[c.name] if c.name in failures else _result(c, spent, group, peaks.get(c.name))
        for c in group.contenders
    ]
    return Measured(results, taken)


def _spent(
    group: Group, rounds: int, device: Device, failures: dict[str, Result]
) -> dict[str, list[float]]:
    """Seconds of a step in each round. Adds to the failures what fails only now."""
    spent: dict[str, list[float]] = {c.name: [] for c in group.contenders}
    for number in range(1 + rounds):
        for contender in group.contenders:
            if contender.name in failures:
                continue
            try:
                seconds = _timed(contender, device)
            except Exception as error:
                failures[contender.name] = failure(contender, error)
            if contender.name in failures:
                device.release()
            elif number > 0:  # the first round warms up
                spent[contender.name].append(seconds)
    return {name: times for name, times in spent.items() if name not in failures}


def _seconds_of_others() -> float:
    """CPU time of all programs but this one."""
    everyone, ours = psutil.cpu_times(), os.times()
    return everyone.user + everyone.nice + everyone.system - ours.user - ours.system


def _timed(contender: Contender, device: Device) -> float:
    sample = contender.before()
    return device.seconds(partial(contender.step, sample)) / contender.steps


def _peaks(group: Group, device: Device, failures: dict[str, Result]) -> dict[str, int | None]:
    peaks: dict[str, int | None] = {}
    if group.graphs or not group.kind:  # a graph allocates when it is captured
        return peaks
    for contender in group.contenders:
        if contender.name not in failures:
            work = partial(contender.step, contender.before())
            peaks[contender.name] = device.rise_of_peak(work)
    return peaks


def _result(
    contender: Contender, spent: dict[str, list[float]], group: Group, peak: int | None
) -> Result:
    mine = spent[contender.name]
    seconds = statistics.median(mine)
    p20, p80 = percentiles(mine)
    times_copy = median_ratio(mine, spent.get(COPY))
    copied = next((c.needed_bytes for c in group.contenders if c.name == COPY), 0)
    share = None
    if times_copy is not None and copied:
        share = contender.needed_bytes / copied / times_copy
    return Result(
        contender.name,
        seconds,
        times_copy,
        median_ratio(mine, spent.get(OURS)),
        contender.needed_bytes / seconds / 1e9 if contender.needed_bytes else None,
        mine,
        p20=p20,
        p80=p80,
        share_of_copy=share,
        peak_bytes=peak,
        peak_gradients=None if peak is None else peak / group.setting.gradient_bytes,
    )


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """The 20th and the 80th."""
    if len(times) < 2:
        return times[0], times[0]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def median_ratio(times: Sequence[float], to: Sequence[float] | None) -> float | None:
    return None if to is None else statistics.median(a / b for a, b in zip(times, to, strict=True))
