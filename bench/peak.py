"""Peak memory of a step on the CPU, each in a fresh process, in which the system itself counts.

The high-water mark of the resident set is reset just before a step, and what it rises above the
resident set of that moment is what the step needs beyond its inputs, whoever allocates it; the
gradient is part of it. Steps at full size come first, so that code, threads, pools and compiled
kernels are already in memory, and everything these leave is returned to the system: blocks of
64 KiB or more are mapped and unmapped one by one in that process, and ours gives back what it
keeps.
"""

import os
from functools import cache, partial
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

import torch

from tools.measuring import rise_of_peak
from weighted_bce import empty_cache

from .contenders import work
from .losses import BY_KEY
from .names import STEP
from .samples import Peak, make
from .settings import Setting

WARM_UPS = 2
MOST_SECONDS = 600.0


def peak(key: str, setting: Setting) -> Peak | None:
    """How far a step raises the resident set of a fresh process; None where that is not known."""
    ours, childs = get_context("forkserver").Pipe(duplex=False)
    process = _context().Process(target=_measure, args=(childs, key, setting), daemon=True)
    process.start()
    childs.close()
    try:
        found: Peak | None = ours.recv() if ours.poll(MOST_SECONDS) else None
    except EOFError:  # it failed
        found = None
    process.kill()
    process.join()
    return found


@cache
def _context() -> ForkServerContext:
    """Processes come from one that has torch in memory, but has not run it yet."""
    context, name = get_context("forkserver"), "MALLOC_MMAP_THRESHOLD_"
    context.set_forkserver_preload([__name__])
    before = os.environ.get(name)
    os.environ[name] = "65536"
    forkserver.ensure_running()
    if before is None:
        del os.environ[name]
    else:
        os.environ[name] = before
    return context


def _measure(connection: Connection, key: str, setting: Setting) -> None:
    torch.set_num_threads(setting.threads)
    run = work(STEP, BY_KEY[key], setting, "cpu")
    sample = make(setting)
    for _ in range(WARM_UPS):
        run(sample)
        sample = make(setting)  # some contender may have overwritten the logits
    empty_cache()
    rise = rise_of_peak(partial(run, sample))
    connection.send(Peak(rise, sample.gradients_bytes))
