"""Compares all baselines with float64, then times them in rounds in which they take turns."""

import gc
import math
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from functools import cache, partial
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from operator import truediv

import torch

from tools.measuring import deaf_to_interrupts, rise_of_peak
from weighted_bce import empty_cache

from .accuracy import Truth, errors, truth
from .baselines import BY_KEY
from .busy import keep_busy
from .names import COPY, OURS, PRODUCTS, STEP
from .runner import Runner
from .samples import make
from .settings import Setting

FEWEST_ROUNDS = 5
FEWEST_OF_P95 = 20  # rounds; of fewer, the 95th percentile would be about the worst
WARM_UPS = 2
# Elements of logits whose peak is measured on the CPU: fewer say nothing, more take long.
PEAKS = range(2**20, 2**27)
SHOWN = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)  # quantiles of the rounds


def measure(runners: Sequence[Runner], rounds: int, seconds: float = math.inf) -> None:
    """Fills the rows, in rounds in which all take turns, so that noise affects all equally.

    The baselines work on the same samples, and either all or none are CUDA graphs. Rounds end after
    `rounds` of them, or after `seconds`, though not before a few are done. Other processes keep
    cores busy only during these rounds, if the setting has any.
    """
    check(runners)
    end = time.perf_counter() + seconds
    gc.collect()
    for runner in _working(runners):  # an untimed round warms up
        runner.attempt(runner.seconds)
    with keep_busy(runners[0].row.setting.busy):
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.perf_counter() > end:
                break
            for runner in _working(runners):
                spent = runner.attempt(runner.seconds)
                if spent is not None:
                    runner.row.rounds.append(spent)
    for runner in _working(runners):
        if not runner.row.graphs:  # these allocate when they are captured
            _add_peak(runner)
    timed = {runner.key: runner for runner in _working(runners)}
    for runner in timed.values():
        _add_times(runner, timed)


def _working(runners: Sequence[Runner]) -> list[Runner]:
    """Returns the runners that have not failed."""
    return [runner for runner in runners if runner.row.failed is None]


def check(runners: Sequence[Runner]) -> None:
    """Compares each baseline with float64, and writes the errors or the failure into its row.

    Baselines that do not fit in memory are not tried.
    """
    samples = runners[0].samples
    free = samples.free_bytes

    @cache
    def known(pos_weight: float) -> Truth:
        return truth(samples.take(), samples.setting, pos_weight)

    for runner in runners:
        row, needed = runner.row, runner.memory
        row.fits = needed <= free
        if not row.fits:
            needs = f"it needs about {needed / 2**30:.1f} GiB"
            row.failed = f"{needs}, and {free / 2**30:.1f} GiB are free"
        elif runner.baseline.is_loss:
            off = runner.attempt(errors, runner, known)
            row.loss_error, row.gradient_error = off or (None, None)


def _add_peak(runner: Runner) -> None:
    """Measures peak memory: of steps in other processes on the CPU, of every row on a GPU."""
    row, setting, measured = runner.row, runner.row.setting, None
    is_measured = setting.features or setting.elements in PEAKS
    if runner.samples.device.is_gpu:
        measured = runner.attempt(runner.peak)
        if not row.fits:  # memory may have become too fragmented
            row.failed, row.fits = None, True
    elif row.pass_ == STEP and runner.baseline.is_loss and is_measured:
        measured = runner.attempt(peak, runner.key, setting)
    if measured is None:
        return
    row.peak_bytes, gradients = measured
    if setting.features:
        row.beyond_bytes = max(0, row.peak_bytes - gradients)
    else:
        row.peak_gradients = row.peak_bytes / setting.gradient_bytes


def _add_times(runner: Runner, timed: dict[str, Runner]) -> None:
    row, moved = runner.row, runner.moved_bytes
    rounds = torch.tensor(row.rounds, dtype=torch.float64)
    row.p20, row.seconds, row.p80 = rounds.quantile(SHOWN).tolist()
    if row.setting.busy:
        row.mean, row.worst = float(rounds.mean()), float(rounds.max())
        row.p95 = float(rounds.quantile(0.95)) if len(rounds) >= FEWEST_OF_P95 else None
    row.times_copy, row.times_products, row.times_ours = (
        statistics.median(map(truediv, row.rounds, timed[key].row.rounds)) if key in timed else None
        for key in (COPY, PRODUCTS, OURS)
    )
    if moved:
        row.gigabytes_per_second = moved / row.seconds / 1e9
    if row.times_copy is not None:
        row.share_of_copy = moved / timed[COPY].moved_bytes / row.times_copy


def peak(key: str, setting: Setting) -> tuple[int, int] | None:
    """Measures by how much a step on the CPU raises the resident set of a fresh process.

    The high-water mark of the resident set is reset just before a step, and what it rises above the
    resident set of that moment is what the step needs beyond its inputs, whoever allocates it; the
    gradient is part of it. Steps at full size come first, so that code, threads, pools and compiled
    kernels are already in memory, and everything these leave is returned to the system: blocks of
    64 KiB or more are mapped and unmapped one by one in that process, and weighted_bce gives back
    what it keeps.

    Returns:
        Bytes beyond the sample, and how many of them are gradients; None where they are not known.
    """
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        with deaf_to_interrupts():
            measured = pool.submit(_peak_here, key, setting)
        return None if measured.exception() else measured.result()


@cache
def _context() -> ForkServerContext:
    """Returns a context whose processes have torch in memory, but have not run it yet."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read when a process starts
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with deaf_to_interrupts():
        forkserver.ensure_running()
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return context


def _peak_here(key: str, setting: Setting) -> tuple[int, int]:
    torch.set_num_threads(setting.threads)
    run, sample = BY_KEY[key].work(STEP, setting, "cpu"), make(setting)
    for _ in range(WARM_UPS):
        run(deepcopy(sample))  # a step may overwrite the logits
    empty_cache()
    return rise_of_peak(partial(run, sample)), sample.gradients_bytes
