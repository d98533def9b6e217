"""The kernels of every SIMD level give the right loss and gradient, and agree closely."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from weighted_bce import backend
from weighted_bce._extension import extension

from . import test_accuracy, test_edges, test_formula
from .tolerances import ulps_off
from .truth import INPUT_DTYPES, Case, check, labels, logits, outcome, sample_inputs

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


def test_samples(level: str) -> None:
    for case in sample_inputs("cpu"):
        check(case)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_every_target_dtype_and_reduction(level: str, dtype: torch.dtype) -> None:
    test_formula.test_every_target_dtype_and_reduction("cpu", "fused", dtype)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_every_size(level: str, dtype: torch.dtype) -> None:
    """Sizes around the vectors, blocks and chunks of all levels."""
    for n in (1, 3, 4, 5, 17, 127, 128, 129, 257, 513, 32769, 70001):
        x = logits(n, dtype=dtype)
        for y in (labels(n), labels(n, dtype=torch.float32), labels(n, dtype=torch.int64)):
            for reduction in ("none", "mean"):
                check(Case(x, y, None, 7.0, reduction))
                check(Case(x, y.to(x.dtype), x.abs() / 8, x.abs() / 8, reduction, 0.1, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half(level: str, dtype: torch.dtype) -> None:
    test_accuracy.test_every_half_is_rounded_once("cpu", dtype, "fused")


def test_accuracy_of_float32(level: str) -> None:
    test_accuracy.test_gradient_within_4_ulp("cpu", torch.float32, None, torch.bool)
    test_accuracy.test_scaled_gradient_within_4_ulp("cpu", 65536.0)


@pytest.mark.exhaustive
def test_mean_of_ten_million_logits(level: str) -> None:
    test_accuracy.test_mean_of_ten_million_logits_within_1_ulp("cpu", "bool", 7.0)


def test_tails_mirror(level: str) -> None:
    test_accuracy.test_tails_mirror("cpu", "fused")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_special_logits(level: str, value: float) -> None:
    test_edges.test_one_special_logit_among_many("cpu", "fused", 100, value)
    test_edges.test_infinite_logits("cpu", "fused", torch.float32)
    test_edges.test_ignored_elements_may_hold_anything("cpu", "fused", torch.float32, math.nan)


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


def run_python(code: str, level: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "WEIGHTED_BCE_SIMD": level},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_variable_names_the_level() -> None:
    """A wrong name is an error of each call, and no name leaves the choice to the processor."""
    code = "import weighted_bce; print(weighted_bce._extension.extension.simd_level())"
    assert run_python(code, "baseline") == ["baseline"]
    best = [name for name, supported in LEVELS.items() if supported][-1]
    *errors, level = run_python(WITH_A_WRONG_NAME, "avx1024")
    assert level == best
    assert len(errors) == 2
    for error in errors:
        assert error.startswith("WEIGHTED_BCE_SIMD must be one of baseline")
        assert "avx1024" in error
