"""The processes of a test, as Accelerate and what is built on it know them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def known_to_accelerate(processes: int) -> Iterator[None]:
    """Tells Accelerate the rank of this process, and makes it forget it at the end."""
    from accelerate.state import AcceleratorState, GradientState

    rank = str(dist.get_rank())
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes)}
    os.environ.update(names)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        for name in names:
            del os.environ[name]
