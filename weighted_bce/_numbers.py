"""Checks arguments that are numbers or bools."""

import math
from numbers import Integral, Real
from operator import index
from typing import cast

import torch


def checked_number(name: str, value: object, otherwise: str = "") -> float:
    """Returns the number as a float.

    Args:
        name: the name of the argument in messages.
        value: its value.
        otherwise: other types that the caller accepts, as they appear in the message.

    Raises:
        TypeError: if the value is not a number, or is a bool.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number{otherwise}, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def checked_finite(name: str, value: object) -> float:
    """Returns the number as a float; raises ValueError unless it is finite."""
    number = checked_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return number


def checked_at_least_0(name: str, value: object) -> float:
    """Returns the number as a float; raises ValueError unless it is finite and at least 0."""
    number = checked_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return number


def check_bool(name: str, value: object) -> None:
    """Raises TypeError unless the value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def checked_count(name: str, value: object, least: int = 1) -> int:
    """Returns the integer, which may be of NumPy, as an int. A torch.SymInt stays one.

    Raises:
        TypeError, ValueError: unless the value is an integer of at least `least`. A bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, Integral)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    # The compiler does not trace index() of an integer that it takes for a variable.
    return cast(int, value) if isinstance(value, (int, torch.SymInt)) else index(value)
