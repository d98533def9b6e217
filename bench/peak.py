"""Peak memory of a step: python -m bench.peak CONTENDER SETTING, the setting as JSON.

Each contender has a fresh process, in which the kernel itself counts: the high-water mark of the
resident set is reset just before a step, and what it rises above the resident set of that moment
is what the step needs beyond its inputs, whoever allocates it; the gradient is part of it. Steps
at full size come first, so that code, threads, pools and compiled kernels are already in memory,
and everything these leave is returned to the system: blocks of 64 KiB or more are mapped and
unmapped one by one in that process, and ours gives back what it keeps.
"""

import json
import sys
from functools import partial

from examples.losses import number_from_child, rise_of_peak
from weighted_bce import empty_cache

from .losses import Setting, losses, step

WARM_UPS = 2


def peak_bytes(name: str, setting: Setting) -> int | None:
    """How far a step raises the resident set of a fresh process; None where that is not known."""
    return number_from_child(f"{__package__}.peak", name, json.dumps(setting))


def _measure(name: str, setting: Setting) -> int:
    function = losses(setting)[name]
    logits, target = setting.sample()
    for _ in range(WARM_UPS):
        step(function, target, setting.scale, logits)
        logits, target = setting.sample()  # some contender may have overwritten the logits
    empty_cache()
    return rise_of_peak(partial(step, function, target, setting.scale, logits))


if __name__ == "__main__":
    _name, _setting = sys.argv[1:]
    print(_measure(_name, Setting(*json.loads(_setting))))
