"""A decorator for functions that torch.compile must not look into."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def not_compiled(function: _Function) -> _Function:
    """Breaks the graph around a function, and leaves what it calls uncompiled.

    A compiled training step compiles all Python code that it runs, even within backward().
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            from . import _uncompiled

            return _uncompiled.run(function, *args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]
