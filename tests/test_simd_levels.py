"""The kernels of every SIMD level give the right loss and gradient, and agree closely."""

import re
from collections.abc import Callable, Iterator
from math import inf as INF
from math import nan as NAN
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import backend
from weighted_bce._extension import extension

from . import test_accuracy, test_edges, test_formula
from .comparison import outcome
from .scripts import run_python
from .tolerances import ulps_off
from .truth import INPUT_DTYPES, Case, labels, logits

LEVELS = dict(extension.simd_levels()) if extension is not None else {}
pytestmark = pytest.mark.skipif(extension is None, reason="no extension")


@pytest.fixture(autouse=True)
def _by_the_kernels() -> Iterator[None]:
    """The level afterwards is that of before."""
    assert extension is not None
    before = extension.simd_level()
    with backend("fused"):
        yield
    extension.set_simd_level(before)


HALVES = (torch.float16, torch.bfloat16)
# Tests of the kernels that every instruction set must pass, and what they take.
TESTS: list[tuple[Callable[..., None], list[Any]]] = [
    (test_formula.test_samples, ["fused"]),
    *((test_formula.test_every_target_dtype_and_reduction, ["fused", t]) for t in INPUT_DTYPES),
    *((test_formula.test_every_size, ["fused", n]) for n in (1, 3, 9, 17, 65, 385, 769, 32769)),
    *((test_accuracy.test_every_half_is_rounded_once, [t, "fused"]) for t in HALVES),
    (test_accuracy.test_gradient_within_4_ulp, [torch.float32, None, torch.bool]),
    (test_accuracy.test_scaled_gradient_within_4_ulp, [65536.0]),
    (test_accuracy.test_tails_mirror, ["fused"]),
    *((test_edges.test_one_special_logit_among_many, ["fused", 100, v]) for v in (INF, -INF, NAN)),
    (test_edges.test_infinite_logits, ["fused", torch.float32]),
    (test_edges.test_ignored_elements_may_hold_anything, ["fused", torch.float32, NAN]),
]


@pytest.mark.parametrize(("test", "arguments"), TESTS, ids=[test.__name__ for test, _ in TESTS])
def test_every_isa(level: str, test: Callable[..., None], arguments: list[Any]) -> None:
    test("cpu", *arguments)


@pytest.mark.exhaustive
def test_mean_of_ten_million_logits(level: str) -> None:
    test_accuracy.test_mean_of_ten_million_logits_within_1_ulp("cpu", "bool", 7.0)


def test_levels_agree_closely() -> None:
    """Each is its own truth in float64, so they are held against each other."""
    assert extension is not None
    x, y = logits(100003, dtype=torch.float64), labels(100003)
    results: list[tuple[Tensor, Tensor]] = []
    for name in (name for name, supported in LEVELS.items() if supported):
        extension.set_simd_level(name)
        results.append(outcome(Case(x, y, None, 7.0), x))
    for loss, grad in results[1:]:
        assert ulps_off(loss, results[0][0]) <= 4
        assert ulps_off(grad, results[0][1]) <= 8


def test_wrong_names_change_nothing() -> None:
    assert extension is not None
    before = extension.simd_level()
    with pytest.raises(RuntimeError, match=r"level must be one of baseline.*, got avx1024"):
        extension.set_simd_level("avx1024")
    for name, supported in LEVELS.items():
        if not supported:
            with pytest.raises(RuntimeError, match=f"this processor does not run {name}"):
                extension.set_simd_level(name)
    assert extension.simd_level() == before


WITH_A_WRONG_NAME = """
import os, torch
from weighted_bce import weighted_bce_with_logits
from weighted_bce._extension import extension
for _ in range(2):
    try:
        weighted_bce_with_logits(torch.ones(3), torch.ones(3))
    except RuntimeError as error:
        print(error)
os.environ["WEIGHTED_BCE_SIMD"] = ""
print(extension.simd_level())
"""


def test_the_variable_names_the_level() -> None:
    """A wrong name is an error of each call, and no name leaves the choice to the processor."""
    code = "import weighted_bce; print(weighted_bce._extension.extension.simd_level())"
    assert run_python(code, WEIGHTED_BCE_SIMD="baseline")[0] == "baseline\n"
    best = [name for name, supported in LEVELS.items() if supported][-1]
    printed, _ = run_python(WITH_A_WRONG_NAME, WEIGHTED_BCE_SIMD="avx1024")
    error = "WEIGHTED_BCE_SIMD must be one of baseline.*avx1024.*\n"
    assert re.fullmatch(f"({error}){{2}}{best}\n", printed)
