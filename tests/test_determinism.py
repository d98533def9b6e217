"""The same input gives the same bits, whatever the threads and however often; every SIMD level is
right."""

import os
import subprocess
import sys
import tempfile

import pytest
import torch
from torch import Tensor

from weighted_bce._extension import extension

from .truth import INPUT_DTYPES, Case, compute_dtype, labels, logits, ulps_off

LEVELS = dict(extension.simd_levels()) if extension is not None else {}


def outcome(case: Case) -> tuple[Tensor, Tensor]:
    x = case.input.clone().requires_grad_()
    loss = case(x)
    loss.backward(torch.ones_like(loss))
    assert x.grad is not None
    return loss.detach(), x.grad


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_any_number_of_threads_gives_the_same_bits(device: str, dtype: torch.dtype) -> None:
    x, y = logits(37, 20011, dtype=dtype, device=device), labels(37, 20011, device=device)
    marked = torch.where(torch.rand(37, 20011, device=device) < 0.1, -1, y.long())
    w = torch.rand(20011, device=device)
    for case in (
        Case(x, y),
        Case(x, y, w, 7.0, "sum"),
        Case(x, y.float(), None, w, "none", 0.1),
        Case(x.t(), y.t(), None, 7.0),
        Case(x[:, ::2], y[:, ::2], None, 7.0),
        Case(x, marked, None, 7.0, ignore_index=-1),
    ):
        torch.set_num_threads(1)
        first = outcome(case)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for _ in range(3):
                for one, other in zip(first, outcome(case), strict=True):
                    assert torch.equal(one, other), (threads, case.reduction)
            with torch.no_grad():
                assert torch.equal(case(), first[0]), threads


def test_rows_give_the_same_bits_wherever_they_lie(kernel_device: str) -> None:
    """Whole vectors, tails, other offsets: an element's loss and gradient depend on it alone."""
    for dtype in INPUT_DTYPES:
        x, y = logits(1000, dtype=dtype, device=kernel_device), labels(1000, device=kernel_device)
        whole = outcome(Case(x, y, None, 7.0, "none"))
        for start, stop in ((0, 1), (1, 18), (3, 300), (500, 1000), (999, 1000)):
            part = outcome(Case(x[start:stop], y[start:stop], None, 7.0, "none"))
            for one, other in zip(whole, part, strict=True):
                assert torch.equal(one[start:stop], other), (dtype, start)


def test_gradient_alone_has_the_bits_of_one_pass(kernel_device: str) -> None:
    """So that a wrong guess of the upstream gradient cannot be told from a right one."""
    for dtype in INPUT_DTYPES:
        x, y = logits(70001, dtype=dtype, device=kernel_device), labels(70001, device=kernel_device)
        for target in (y, y.float(), y.long(), torch.zeros_like(y), ~y):
            args = Case(x, target, None, 7.3).op_args("mean")
            for scale in (1.0, 3.7, 65536.0):
                upstream = torch.tensor(scale, dtype=compute_dtype(dtype), device=kernel_device)
                loss, grad, _ = torch.ops.weighted_bce.loss_and_grad(x, *args, upstream)
                assert torch.equal(grad, torch.ops.weighted_bce.grad(upstream, x, *args))
                assert torch.equal(loss, torch.ops.weighted_bce.loss(x, *args))


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


CHECK_OF_A_LEVEL = """
import math, sys, torch
sys.path.insert(0, {root!r})
from tests.truth import *
from weighted_bce._extension import extension
assert extension.simd_level() == {level!r}, extension.simd_level()
from tests import test_accuracy, test_edges, test_formula
torch.manual_seed(0)
for case in sample_inputs("cpu"):
    check(case, "fused")
for dtype in INPUT_DTYPES:
    test_formula.test_every_target_dtype_and_reduction("cpu", dtype)
for n in (1, 3, 4, 5, 17, 127, 128, 129, 257, 513, 32769, 70001):
    for dtype in INPUT_DTYPES:
        x = logits(n, dtype=dtype)
        for y in (labels(n), labels(n, dtype=torch.float32), labels(n, dtype=torch.int64)):
            for reduction in ("none", "mean"):
                check(Case(x, y, None, 7.0, reduction), "fused")
                check(Case(x, y.to(x.dtype), x.abs() / 8, x.abs() / 8, reduction, 0.1, 0), "fused")
for dtype in (torch.float16, torch.bfloat16):
    test_accuracy.test_every_half_is_rounded_once("cpu", dtype, "fused")
test_accuracy.test_gradient_within_4_ulp("cpu", torch.float32, None, torch.bool)
test_accuracy.test_scaled_gradient_within_4_ulp("cpu", 65536.0)
test_accuracy.test_tails_mirror("cpu", "fused")
test_accuracy.test_mean_of_ten_million_logits_within_1_ulp("cpu", "bool", 7.0)
for value in (math.inf, -math.inf, math.nan):
    test_edges.test_one_special_logit_among_many("cpu", 100, value)
test_edges.test_infinite_logits("cpu", torch.float32)
test_edges.test_ignored_elements_may_hold_anything("cpu", torch.float32, math.nan)
print("right")
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_simd_level_is_right(level: str, request: pytest.FixtureRequest) -> None:
    if not LEVELS.get(level):
        pytest.skip(f"{level} is not compiled in, or not for this processor: {LEVELS}")
    code = CHECK_OF_A_LEVEL.format(root=str(request.config.rootpath), level=level)
    # One thread: other tests run beside this one.
    ran = run_python(code, WEIGHTED_BCE_SIMD=level, OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "right"


def test_levels_agree_closely(request: pytest.FixtureRequest) -> None:
    """In float64 each is its own truth, so they are held against each other."""
    code = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.truth import *
torch.manual_seed(1)
x = logits(100003, dtype=torch.float64).requires_grad_()
loss = Case(x, labels(100003), None, 7.0)(x)
loss.backward()
torch.save((loss.detach(), x.grad), {path!r})
"""
    results = []
    for level in (name for name, supported in LEVELS.items() if supported):
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            ran = run_python(
                code.format(root=str(request.config.rootpath), path=file.name),
                WEIGHTED_BCE_SIMD=level,
            )
            assert ran.returncode == 0, ran.stderr
            results.append(torch.load(file.name))
    for loss, grad in results[1:]:
        assert ulps_off(loss, results[0][0]) <= 4
        assert ulps_off(grad, results[0][1]) <= 8


def test_unknown_level_is_a_clear_error() -> None:
    if not LEVELS:
        pytest.skip("no extension")
    code = (
        "import torch, weighted_bce as b; b.weighted_bce_with_logits(torch.ones(3), torch.ones(3))"
    )
    ran = run_python(code, WEIGHTED_BCE_SIMD="avx1024")
    assert ran.returncode == 1
    assert "WEIGHTED_BCE_SIMD must be one of baseline" in ran.stderr
    assert "avx1024" in ran.stderr
    assert run_python(code, WEIGHTED_BCE_SIMD="").returncode == 0
