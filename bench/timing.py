"""Baselines that take turns: all are compared with float64 first, then timed in rounds."""

import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TypeVar

import torch

from tools.gpu.device import is_lost

from .accuracy import Disagreement, Truth, errors, truth
from .device import Cuda, out_of_memory, reason
from .names import COPY, OURS, PRODUCTS, STEP
from .peak import peak
from .runner import Runner

FEWEST_ROUNDS = 5
# Elements of logits whose peak is measured on the CPU: fewer say nothing, more take long.
PEAKS = range(2**20, 2**27)
T = TypeVar("T")


def measure(runners: Sequence[Runner], rounds: int, seconds: float = math.inf) -> None:
    """Fills the rows, in rounds in which all take turns: noise of the machine meets all.

    Args:
        runners: baselines on the same samples, all as CUDA graphs or none.
        rounds: how many at most.
        seconds: after which they end, where there are some.
    """
    check(runners)
    _time(runners, rounds, seconds)
    for runner in runners:
        if runner.row.failed is None and not runner.row.graphs:  # these allocate when captured
            _add_peak(runner)
    timed = {runner.key: runner for runner in runners if runner.row.failed is None}
    for runner in timed.values():
        _add_times(runner, timed)


def check(runners: Sequence[Runner]) -> None:
    """Tells in each row what does not fit, raises or is wrong; or the errors.

    What is known not to fit is not tried.
    """
    samples = runners[0].samples
    free = samples.free_bytes

    @cache
    def known(pos_weight: float, positives: bool) -> Truth:
        return truth(samples.take(), samples.setting, pos_weight, positives)

    for runner in runners:
        row, needed = runner.row, runner.memory
        row.fits = needed <= free
        if not row.fits:
            needs = f"it needs some {needed / 2**30:.1f} GiB"
            row.failed = f"{needs}, {free / 2**30:.1f} GiB are free"
        elif runner.baseline.is_loss:
            found = _attempt(runner, partial(errors, runner, known))
            if found is not None:
                row.loss_error, row.gradient_error = found


def _attempt(runner: Runner, work: Callable[[], T]) -> T | None:
    """What the work returns; or None, and the row tells why it failed.

    An allocation also fails on a device where nothing works any more.
    """
    row = runner.row
    try:
        return work()
    except Exception as error:
        row.failed = reason(error)
        row.disagrees = isinstance(error, Disagreement)
        row.fits = not (out_of_memory(error) and not is_lost())
        if row.key == OURS and row.fits:
            traceback.print_exc()
    runner.samples.device.release()  # after the error is gone, which holds what it interrupted
    return None


def _time(runners: Sequence[Runner], rounds: int, seconds: float) -> None:
    """Adds the seconds of a step in each round."""
    end = time.perf_counter() + seconds
    gc.collect()
    for number in range(1 + rounds):
        if number > FEWEST_ROUNDS and time.perf_counter() > end:
            break
        for runner in runners:
            if runner.row.failed is None:
                spent = _attempt(runner, partial(_timed, runner))
                if spent is not None and number > 0:  # the first round warms up
                    runner.row.rounds.append(spent)


def _timed(runner: Runner) -> float:
    sample = runner.prepare()
    return runner.samples.device.seconds(partial(runner.run, sample)) / runner.steps


def _add_peak(runner: Runner) -> None:
    """On the CPU steps are measured, in other processes; on a GPU all that was timed."""
    row, setting = runner.row, runner.row.setting
    is_measured = setting.features or setting.elements in PEAKS
    found = None
    if runner.samples.device.is_gpu:
        found = _attempt(runner, partial(_peak_on_gpu, runner))
        if not row.fits:  # memory may have become too fragmented
            row.failed, row.fits = None, True
    elif row.pass_ == STEP and runner.baseline.is_loss and is_measured:
        found = peak(runner.key, setting)
    if found is None:
        return
    row.peak_bytes, gradients = found
    if setting.features:
        row.beyond_bytes = max(0, row.peak_bytes - gradients)
    else:
        row.peak_gradients = row.peak_bytes / setting.gradient_bytes


def _peak_on_gpu(runner: Runner) -> tuple[int, int]:
    device, sample = runner.samples.device, runner.prepare()
    assert isinstance(device, Cuda)
    return device.rise_of_peak(partial(runner.run, sample)), sample.gradients_bytes


def _add_times(runner: Runner, timed: dict[str, Runner]) -> None:
    row, moved = runner.row, runner.moved_bytes
    row.p20, row.seconds, row.p80 = quantiles(row.rounds)
    row.times_copy, row.times_products, row.times_ours = (
        median_ratio(row.rounds, timed[key].row.rounds) if key in timed else None
        for key in (COPY, PRODUCTS, OURS)
    )
    if moved:
        row.gigabytes_per_second = moved / row.seconds / 1e9
    if row.times_copy is not None:
        row.share_of_copy = moved / timed[COPY].moved_bytes / row.times_copy


def quantiles(times: Sequence[float]) -> list[float]:
    """The 20th percentile, the median and the 80th percentile."""
    wanted = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return torch.tensor(times, dtype=torch.float64).quantile(wanted).tolist()


def median_ratio(times: Sequence[float], to: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, to, strict=True))
