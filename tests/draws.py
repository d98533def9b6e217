"""How many examples hypothesis draws, and which."""

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck

from . import selection

UNUSUAL = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.function_scoped_fixture,  # the device is the same for all examples
]


def drawn(few: int, many: int) -> Callable[[Any], Any]:
    """Draws few examples, which change with the commit, or with --all many of them."""
    number = many if selection.everything else few
    settings = hypothesis.settings(
        max_examples=number, deadline=None, database=None, suppress_health_check=UNUSUAL
    )
    return lambda test: hypothesis.seed(selection.seed())(settings(test))
