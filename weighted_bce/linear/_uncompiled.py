"""Runs a function that torch.compile must not look into.

_not_compiled.py imports this module while something is compiled: torch.compiler.disable imports the
compiler, which takes a second.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


@partial(torch.compiler.disable, reason="fused_step is not compiled")
def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
