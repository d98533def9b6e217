"""What the benchmark and the examples measure with: labels that are made up, and peak memory."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from weighted_bce import SparseLabels

PROC = Path("/proc/self")


def made_up_labels(rows: int, labels: int, each: int, generator: torch.Generator) -> SparseLabels:
    """Each row has as many positives, one in each of so many equal parts of the labels."""
    part, device = labels // max(each, 1), generator.device
    chosen = torch.randint(part, (rows, each), generator=generator, device=device)
    return SparseLabels.from_padded(chosen + part * torch.arange(each, device=device))


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Lets processes that start in a `with` block ignore Ctrl-C, of which they would show traces.

    It is for their parent, which ends them.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def rise_of_peak(step: Callable[[], object]) -> int:
    """How many bytes a step adds, at its peak, to the resident set of this process.

    What the kernel counts sees every allocation, whoever made it; torch's profiler would miss
    those that do not come from torch's allocator.
    """
    (PROC / "clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    step()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {field} in {PROC / 'status'}")
