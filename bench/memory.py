"""What fits in the memory of a device, known before it is tried."""

from .accuracy import MOST, chunk_of
from .contenders import Contender, group
from .device import Device
from .losses import BY_KEY
from .names import OURS, STEP
from .samples import Samples
from .settings import Setting

# The share of free memory that the largest size may need: making samples takes more for a moment,
# and allocators round.
SHARE = 0.9


def needed_bytes(contender: Contender, setting: Setting, device: Device) -> int:
    """A step and its comparison with float64 need so much at their peak."""
    return contender.memory + check_bytes(setting, device)


def check_bytes(setting: Setting, device: Device) -> int:
    """The comparison holds three gradients in float64 and the intermediate results of a chunk."""
    chunk = chunk_of(device.name)
    return 24 * min(setting.elements, MOST) + 96 * min(setting.elements, chunk)


def with_most_rows(setting: Setting, device: Device) -> Setting:
    """The setting gets as many rows, a power of two, as ours has memory for."""
    free = SHARE * (device.free_bytes() or 0)

    def fits(rows: int) -> bool:
        samples = Samples(setting._replace(rows=rows), device)
        *_, ours = group(STEP, [BY_KEY[OURS]], samples).contenders
        return needed_bytes(ours, samples.setting, device) <= free

    rows = 1
    while fits(2 * rows):
        rows *= 2
    return setting._replace(rows=rows)
