"""The compiled CUDA kernels are what they should be, for each GPU of the build: no spills, loads
long before their use, few instructions."""

import math
import os
from collections.abc import Iterator

import pytest

from bench import inspect_cuda
from bench.inspect_cuda import LANES, MODES, TARGETS, Code, Kernel, Unreadable
from weighted_bce._extension import extension

DEFAULT = ("sm_80", "sm_90", "sm_100", "sm_120", "compute_120")  # of tools/cuda_build.py
THREADS = 256
REGISTERS = 65536  # of a multiprocessor
# KiB of a multiprocessor that its blocks may have in all. That of sm_120, 100, is not enough for as
# many blocks as the registers are.
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
RESERVED = 1024  # bytes of shared memory that each block has besides
# Instructions per element of the hot path, by the logits in 16 bytes and the mode: a little more
# than nvcc 13.0 needs on any architecture. First with targets of 1 byte, then with sparse labels.
MOST = {
    (8, "loss and gradient"): (32, 28),
    (4, "loss and gradient"): (38, 34),
    (8, "loss"): (26, 22),
    (4, "loss"): (31, 28),
    (8, "gradient"): (25, 22),
    (4, "gradient"): (30, 28),
}
MORE_FOR_LARGER_TARGETS = 9
MORE_BY_LABEL = 3.5  # where each label has its own pos_weight
MOST_BRANCHES = 8  # the same for all threads of a warp: none may depend on an element
AHEAD = 3  # iterations between the start of a copy and the wait for it: kAhead of cuda/prefetch.h


@pytest.fixture(scope="module")
def code() -> Code:
    try:
        return inspect_cuda.built()
    except Unreadable as error:
        pytest.skip(str(error))


def all_of(code: Code) -> Iterator[tuple[str, Kernel]]:
    """Yields each kernel, and what a message calls it."""
    for architecture, kernels in code.kernels.items():
        yield from ((f"{architecture}, {kernel}", kernel) for kernel in kernels)


def test_has_code_for_each_gpu(code: Code) -> None:
    assert extension is not None
    assert set(code.kernels) == set(extension.cuda_archs.split(", "))
    machine = [kernels for name, kernels in code.kernels.items() if name.startswith("sm_")]
    assert all([*map(str, kernels)] == [*map(str, machine[0])] for kernels in machine)


@pytest.mark.exhaustive
def test_has_code_for_each_default_gpu(code: Code, runs_everything: bool) -> None:
    missing = sorted(set(DEFAULT) - set(code.kernels))
    if missing and (os.environ.get("TORCH_CUDA_ARCH_LIST") or not runs_everything):
        pytest.skip(f"the extension was built without {', '.join(missing)}")
    assert not missing


def test_has_each_kernel(code: Code) -> None:
    for kernels in filter(None, code.kernels.values()):
        names = [kernel.name for kernel in kernels]
        found = {name: names.count(name) for name in sorted(set(names))}
        once_per_dtype = {"count_targets": 2, "count_sparse_targets": 2, "remember_grad_output": 2}
        # BCE and all others, 4 modes, 2 kinds of targets; 3 in vectors, which float64 does not have
        each_mode = {"on_elements": 64, "on_vectors": 72}
        assert found == {**once_per_dtype, "finish": 3, **each_mode}


def test_no_kernel_keeps_variables_in_memory(code: Code) -> None:
    for name, kernel in all_of(code):
        assert not any(kernel.facts[key] for key in ("stack", "local", "spills")), name


def blocks_at_once(kernel: Kernel) -> int:
    """How many blocks the launch bounds of the kernels promise for a multiprocessor."""
    if kernel.name in ("finish", "remember_grad_output"):
        return 1
    if kernel.name == "on_elements" and kernel.loss:
        return 2 if kernel.dtype == "float64" else 3
    if kernel.name != "on_vectors":
        return 4
    slopes = "gradient" in kernel.mode
    halves = kernel.dtype in ("float16", "bfloat16")
    sparse_loss = kernel.target == "sparse labels" and kernel.mode == "loss"
    return 3 if kernel.loss or (halves and (slopes or sparse_loss)) else 4


def test_blocks_of_the_launch_bounds_have_registers_and_shared_memory(code: Code) -> None:
    for name, kernel in all_of(code):
        blocks = blocks_at_once(kernel)
        most = REGISTERS // (THREADS * blocks) // 8 * 8  # given out in eights
        assert kernel.facts["registers"] <= min(most, 255), name
        shared = (kernel.facts["shared bytes"] + RESERVED) * blocks
        assert shared <= 1024 * SHARED.get(name.partition(",")[0], math.inf), name


def test_vectors_are_of_16_bytes(code: Code) -> None:
    for name, kernel in all_of(code):
        if kernel.name == "on_vectors":
            assert kernel.facts["16-byte loads"] > 0, name
            assert (kernel.facts["16-byte stores"] > 0) == (kernel.mode != "loss"), name


def test_hot_path_is_found(code: Code) -> None:
    """Two special functions an element, or one for the loss alone, and 16 bytes an access."""
    for name, kernel in all_of(code):
        is_hot = kernel.name == "on_vectors" and not kernel.loss and kernel.mode != MODES[-1]
        assert [*kernel.hot] == [*TARGETS[kernel.target]] if is_hot else not kernel.hot, name


def test_hot_path_has_few_instructions_and_loads_ahead(code: Code) -> None:
    """None is of double precision, which some GPUs compute at a 64th of the speed. A group's
    logits, and targets of 1 byte, arrive while those before it are computed."""
    hot = [(name, kernel, *one) for name, kernel in all_of(code) for one in kernel.hot.items()]
    for name, kernel, target, counts in hot:
        most = MOST[LANES[kernel.dtype], kernel.mode][target == 0]
        most += MORE_FOR_LARGER_TARGETS if target > 1 else 0
        assert counts["instructions"] <= most, (name, target)
        assert counts["p varies"] <= most + MORE_BY_LABEL, (name, target)
        assert counts["branches"] <= MOST_BRANCHES, (name, target)
        assert (counts["float64"], counts["ahead"]) == (0, AHEAD), (name, target)


def test_report_is_up_to_date(code: Code) -> None:
    """The report may be of more architectures than the code."""
    text = inspect_cuda.REPORT.read_text(encoding="utf-8")
    build = inspect_cuda.BUILD.search(text)
    assert build is not None
    machine = {name for name, kernels in code.kernels.items() if kernels}
    if build[1] != code.nvcc or not machine.issubset(build[2].split(", ")):
        pytest.skip(f"the report is of {build[0]}")
    written = {}
    for title, *lines in map(str.splitlines, text.split("\n## ")):
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
        for name, *row in rows[2:]:
            columns = zip(rows[0][1:], row, strict=True)
            written |= {(title, name, column): cell for column, cell in columns}
    stale = sorted(inspect_cuda.cells_of(code).items() - written.items())
    assert not stale, "run: python -m bench.inspect_cuda"
