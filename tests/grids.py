"""Products of many values, of which few run without --all."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def one_at_a_time(**values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test with every combination of the values of some arguments.

    The first value of each argument makes up the base case. Without --all the base case runs, and
    each case that differs from it in one argument; the others are exhaustive. So a value that
    fails on its own is found at once, and a pair of values that fails together when its turn comes
    or with --all. Combinations of more arguments than a test can list are drawn at random in
    test_properties.py.
    """
    cases = []
    for indices in product(*(range(len(of_one)) for of_one in values.values())):
        case = [of_one[i] for of_one, i in zip(values.values(), indices, strict=True)]
        differences = sum(i > 0 for i in indices)
        cases.append(pytest.param(*case, marks=[pytest.mark.exhaustive] * (differences > 1)))
    return pytest.mark.parametrize(list(values), cases)
