"""Baselines that take turns: all are compared with float64 first, then timed in rounds."""

import gc
import os
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple, TypeVar

import psutil

from tools.gpu.device import is_lost

from .accuracy import Disagreement, Errors, Truth, errors, truth
from .device import Cuda, Device, out_of_memory, reason
from .memory import needed_bytes
from .names import COPY, OURS, PRODUCTS, STEP
from .peak import Peak, peak
from .records import Row
from .runner import Group, Runner
from .samples import Samples

FEWEST_ROUNDS = 5
# Elements of logits whose peak is measured on the CPU: fewer say nothing, more take long.
PEAKS = range(2**20, 2**27)
T = TypeVar("T")
Tick = Callable[[str], object]


class Limits(NamedTuple):
    """Rounds end when there are as many, or some and the time is over."""

    rounds: int
    seconds: float = 1e9


def measure(
    group: Group, samples: Samples, limits: Limits, tick: Tick = lambda _: None
) -> tuple[list[Row], float]:
    """Rounds in which all take turns, so that noise of the machine meets all of them.

    Args:
        group: its baselines work on `samples`.
        samples: and their device.
        limits: how many rounds, and how long.
        tick: told the name of each baseline before it is first run, and "" after each round.

    Returns:
        A row for each baseline, and what share of the CPU other programs took meanwhile.
    """
    rows = check(group, samples, tick)
    start, before = time.perf_counter(), _seconds_of_others()
    _time(rows, limits, samples.device, tick)
    available = max(1.0, time.perf_counter() - start) * (psutil.cpu_count() or 1)
    taken = max(0.0, _seconds_of_others() - before) / available
    for runner, row in rows.items():
        if row.failed is None and not group.graphs:  # a graph allocates when it is captured
            _add_peak(runner, row, tick)
    times = {row.key: row.rounds for row in rows.values() if row.failed is None}
    moved = {runner.key: runner.moved_bytes for runner in rows}
    for row in rows.values():
        if row.failed is None:
            _add_times(row, times, moved)
    return list(rows.values()), taken


def check(group: Group, samples: Samples, tick: Tick = lambda _: None) -> dict[Runner, Row]:
    """A row for each, which tells what does not fit, raises or is wrong; and the errors of others.

    What is known not to fit is not tried. Another pass may have made the samples.
    """
    setting, device = group.setting, samples.device
    rows = {r: Row(setting, group.pass_, group.graphs, r.key) for r in group.runners}
    free = device.free_bytes() + samples.held_bytes
    for runner, row in rows.items():
        needed = needed_bytes(runner) / 2**30
        row.fits = needed * 2**30 <= free
        if not row.fits:
            row.failed = f"it needs some {needed:.1f} GiB, {free / 2**30:.1f} GiB are free"

    @cache
    def known(pos_weight: float, positives: bool) -> Truth:
        return truth(samples.take(), setting, pos_weight, positives)

    for runner, row in rows.items():
        if not runner.baseline.is_loss or row.failed is not None:
            continue
        tick(row.name)
        found = _attempt(row, device, partial(_errors, runner, known))
        if found is not None:
            row.loss_error, row.gradient_error = found
    return rows


def _errors(runner: Runner, known: Callable[[float, bool], Truth]) -> Errors:
    baseline = runner.baseline
    weight = runner.samples.setting.pos_weight if baseline.weighted else 1.0
    return errors(runner, known(weight, baseline.positives))


def _attempt(row: Row, device: Device, work: Callable[[], T]) -> T | None:
    """What the work returns; or None, and the row tells why it failed.

    An allocation also fails on a device where nothing works any more.
    """
    try:
        return work()
    except Exception as error:
        row.failed = reason(error)
        row.disagrees = isinstance(error, Disagreement)
        row.fits = not (out_of_memory(error) and not is_lost())
        if row.key == OURS and row.fits:
            traceback.print_exc()
    device.release()  # not before the error is gone, which holds what it interrupted
    return None


def _time(rows: dict[Runner, Row], limits: Limits, device: Device, tick: Tick) -> None:
    """Adds the seconds of a step in each round."""
    end = time.perf_counter() + limits.seconds
    times: dict[Runner, list[float]] = {runner: [] for runner in rows}
    gc.collect()
    for number in range(1 + limits.rounds):
        if number > FEWEST_ROUNDS and time.perf_counter() > end:
            break
        for runner, row in rows.items():
            if row.failed is None:
                seconds = _attempt(row, device, partial(_timed, runner, device))
                if seconds is not None and number > 0:  # the first round warms up
                    times[runner].append(seconds)
        tick("")
    for runner, row in rows.items():
        row.rounds = times[runner] if row.failed is None else ()


def _timed(runner: Runner, device: Device) -> float:
    sample = runner.prepare()
    return device.seconds(partial(runner.run, sample)) / runner.steps


def _seconds_of_others() -> float:
    """CPU time of all programs but this one."""
    everyone, ours = psutil.cpu_times(), os.times()
    return everyone.user + everyone.nice + everyone.system - ours.user - ours.system


def _add_peak(runner: Runner, row: Row, tick: Tick) -> None:
    """On the CPU steps are measured, in other processes; on a GPU all that was timed."""
    setting, device = row.setting, runner.samples.device
    found: Peak | None = None
    if isinstance(device, Cuda):
        found = _attempt(row, device, partial(_peak_on_gpu, runner, device))
        if not row.fits:  # memory may have become too fragmented
            row.failed, row.fits = None, True
    elif (
        row.pass_ == STEP
        and runner.baseline.is_loss
        and (setting.features or setting.elements in PEAKS)
    ):
        tick(f"memory of {row.name}")
        found = peak(runner.key, setting)
    if found is not None:
        row.peak_bytes = found.bytes
        if setting.features:
            row.beyond_bytes = max(0, found.bytes - found.gradients)
        else:
            row.peak_gradients = found.bytes / setting.gradient_bytes


def _peak_on_gpu(runner: Runner, device: Cuda) -> Peak:
    sample = runner.prepare()
    rise = device.rise_of_peak(partial(runner.run, sample))
    return Peak(rise, sample.gradients_bytes)


def _add_times(row: Row, times: dict[str, Sequence[float]], moved: dict[str, int]) -> None:
    row.seconds = statistics.median(row.rounds)
    row.p20, row.p80 = percentiles(row.rounds)
    row.times_copy = median_ratio(row.rounds, times.get(COPY))
    row.times_products = median_ratio(row.rounds, times.get(PRODUCTS))
    row.times_ours = median_ratio(row.rounds, times.get(OURS))
    if moved[row.key]:
        row.gigabytes_per_second = moved[row.key] / row.seconds / 1e9
    if row.times_copy is not None:
        row.share_of_copy = moved[row.key] / moved[COPY] / row.times_copy


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """The 20th and the 80th."""
    if len(times) < 2:
        return times[0], times[0]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def median_ratio(times: Sequence[float], to: Sequence[float] | None) -> float | None:
    return None if to is None else statistics.median(a / b for a, b in zip(times, to, strict=True))
