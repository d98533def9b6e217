"""Finds torch's counters of FLOPs among the active modes."""

import sys
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def flop_counters() -> list[Any]:
    """Returns the instances of FlopCounterMode that see the next op.

    Like torch's own formulas for elementwise operations, they count 0 for the kernels of a loss.
    """
    # Importing the module would import triton, or warn that there is none.
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return []
    each = (getattr(mode, "counter", None) for mode in _get_current_dispatch_mode_stack())
    return [counter for counter in each if isinstance(counter, module.FlopCounterMode)]
