"""What fits in the memory of a device, known before it is tried."""

from .accuracy import MOST, chunk_of
from .baselines import BY_KEY
from .device import Device
from .names import OURS, STEP
from .runner import Runner
from .samples import Samples
from .settings import Setting

# The share of free memory that the largest size may need: making samples takes more for a moment,
# and allocators round.
SHARE = 0.9


def needed_bytes(runner: Runner) -> int:
    """The peak of a step and of its comparison with float64.

    The comparison holds three gradients in float64 and the intermediate results of a chunk.
    """
    elements, chunk = runner.samples.setting.elements, chunk_of(runner.samples.device.name)
    return runner.memory + 24 * min(elements, MOST) + 96 * min(elements, chunk)


def with_most_rows(setting: Setting, device: Device) -> Setting:
    """The setting gets as many rows, a power of two, as ours has memory for."""
    free, rows = SHARE * device.free_bytes(), 1

    def fits(rows: int) -> bool:
        samples = Samples(setting._replace(rows=rows), device)
        return needed_bytes(Runner(BY_KEY[OURS], STEP, samples)) <= free

    while fits(2 * rows):
        rows *= 2
    return setting._replace(rows=rows)
