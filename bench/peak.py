"""Peak memory of a step on the CPU, each in a fresh process, in which the system itself counts.

The high-water mark of the resident set is reset just before a step, and what it rises above the
resident set of that moment is what the step needs beyond its inputs, whoever allocates it; the
gradient is part of it. Steps at full size come first, so that code, threads, pools and compiled
kernels are already in memory, and everything these leave is returned to the system: blocks of
64 KiB or more are mapped and unmapped one by one in that process, and ours gives back what it
keeps.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

import torch

from tools.measuring import rise_of_peak
from weighted_bce import empty_cache

from .baselines import BY_KEY
from .names import STEP
from .samples import make
from .settings import Setting

WARM_UPS = 2


def peak(key: str, setting: Setting) -> tuple[int, int] | None:
    """How far a step raises the resident set of a fresh process; None where that is not known.

    Returns:
        Bytes beyond the sample, and how many of them are gradients.
    """
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        measured = pool.submit(_measure, key, setting)
        return None if measured.exception() else measured.result()


@cache
def _context() -> ForkServerContext:
    """Processes come from one that has torch in memory, but has not run it yet."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read when a process starts
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    forkserver.ensure_running()
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return context


def _measure(key: str, setting: Setting) -> tuple[int, int]:
    torch.set_num_threads(setting.threads)
    run, sample = BY_KEY[key].work(STEP, setting, "cpu"), make(setting)
    for _ in range(WARM_UPS):
        run(sample)
        sample = make(setting)  # the logits may have been overwritten
    empty_cache()
    rise = rise_of_peak(partial(run, sample))
    return rise, sample.gradients_bytes
