"""The compiled CUDA kernels are what they should be, for each GPU of the build: no spills, loads
long before their use, few instructions."""

import math
import os
from collections.abc import Iterator

import pytest

from bench import inspect_cuda
from bench.cuda_code import MODES, TARGETS, Code, Kernel, Unreadable
from bench.hot_path import HotPath
from weighted_bce._extension import extension

AGAIN = "python -m bench.inspect_cuda"
DEFAULT = ("sm_80", "sm_90", "sm_100", "sm_120", "compute_120")  # of tools/cuda_build.py
THREADS = 256
REGISTERS = 65536  # of a multiprocessor
# KiB of a multiprocessor that its blocks may have in all. That of sm_120, 100, is not enough for as
# many blocks as the registers are.
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
RESERVED = 1024  # bytes of shared memory that each block has besides
# Instructions per element of the hot path, by the bytes of a logit and the mode: a little more than
# nvcc 13.0 needs on any architecture. First with targets of 1 byte, then with sparse labels.
MOST = {
    (2, "loss and gradient"): (32, 28),
    (4, "loss and gradient"): (38, 34),
    (2, "loss"): (26, 22),
    (4, "loss"): (31, 28),
    (2, "gradient"): (25, 22),
    (4, "gradient"): (30, 28),
}
MORE_FOR_LARGER_TARGETS = 9
MORE_BY_LABEL = 3.5  # where each label has its own pos_weight
MOST_BRANCHES = 8  # all alike for the threads of a warp: none may depend on an element
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


def hot_of(code: Code) -> Iterator[tuple[str, Kernel, int, HotPath]]:
    for name, kernel in all_of(code):
        for target, path in kernel.hot.items():
            yield f"{name}, {target}", kernel, target, path


def test_has_code_for_each_gpu(code: Code) -> None:
    assert extension is not None
    assert set(code.architectures) == set(extension.cuda_archs.split(", "))
    machine = {name for name in code.architectures if name.startswith("sm_")}
    assert set(code.kernels) == machine
    every = {str(kernel) for _, kernel in all_of(code)}
    assert all({*map(str, kernels)} == every for kernels in code.kernels.values())


@pytest.mark.exhaustive
def test_has_code_for_each_default_gpu(code: Code, runs_everything: bool) -> None:
    missing = sorted(set(DEFAULT) - set(code.architectures))
    if missing and (os.environ.get("TORCH_CUDA_ARCH_LIST") or not runs_everything):
        pytest.skip(f"the extension was built without {', '.join(missing)}")
    assert not missing


def test_has_each_kernel(code: Code) -> None:
    for kernels in code.kernels.values():
        names = [kernel.name for kernel in kernels]
        found = {name: names.count(name) for name in sorted(set(names))}
        once_per_dtype = {"count_targets": 2, "count_sparse_targets": 2, "remember_grad_output": 2}
        # 2 losses, 4 modes, 2 kinds of targets; 3 in vectors, which float64 does not have
        each_mode = {"on_elements": 64, "on_vectors": 72}
        assert found == {**once_per_dtype, "finish": 3, **each_mode}


def test_no_kernel_keeps_variables_in_memory(code: Code) -> None:
    used = {
        name: counts
        for name, kernel in all_of(code)
        if any(counts := [kernel.facts[key] for key in ("stack", "local", "spills")])
    }
    assert not used


def blocks_at_once(kernel: Kernel) -> int:
    """How many blocks the launch bounds of the kernels promise for a multiprocessor."""
    if kernel.name in ("finish", "remember_grad_output"):
        return 1
    if kernel.name != "on_vectors":
        return 4
    _, slopes = MODES[kernel.mode]
    halves = kernel.dtype in ("float16", "bfloat16")
    sparse_loss = kernel.target == "sparse labels" and kernel.mode == "loss"
    fewer = int((slopes or sparse_loss) and halves) + int(kernel.loss != "")
    return 4 - fewer


def test_blocks_of_the_launch_bounds_have_registers_and_shared_memory(code: Code) -> None:
    wrong = []
    for name, kernel in all_of(code):
        blocks, facts = blocks_at_once(kernel), kernel.facts
        most = REGISTERS // (THREADS * blocks) // 8 * 8  # given out in eights
        if facts["registers"] > min(most, 255):
            wrong.append(f"{name}: {facts['registers']} registers of {most}")
        shared = (facts["shared bytes"] + RESERVED) * blocks
        if shared > 1024 * SHARED.get(name.partition(",")[0], math.inf):
            wrong.append(f"{name}: {shared} bytes of shared memory")
    assert not wrong, "\n".join(wrong)


def test_vectors_are_of_16_bytes(code: Code) -> None:
    for name, kernel in all_of(code):
        if kernel.name == "on_vectors":
            assert kernel.facts["16-byte loads"] > 0, name
            assert (kernel.facts["16-byte stores"] > 0) == (kernel.mode != "loss"), name


def test_hot_path_is_found(code: Code) -> None:
    """Two special functions an element, or one for the loss alone, and 16 bytes an access."""
    for name, kernel in all_of(code):
        assert not kernel.unclear, f"{name}: {kernel.unclear}"
        assert [*kernel.hot] == [*TARGETS[kernel.target]] if kernel.is_hot else not kernel.hot, name


def test_hot_path_has_few_instructions(code: Code) -> None:
    """None of double precision, which some GPUs compute at a 64th of the speed."""
    wrong = []
    for name, kernel, target, path in hot_of(code):
        most = MOST[16 // kernel.lanes, kernel.mode][target == 0]
        most += MORE_FOR_LARGER_TARGETS if target > 1 else 0
        assert path.by_label is not None, name
        found = (path.instructions / kernel.lanes, path.by_label / kernel.lanes)
        if found[0] > most or found[1] > most + MORE_BY_LABEL:
            wrong.append(f"{name}: {found} of {most}")
        if path.branches > MOST_BRANCHES or path.doubles:
            wrong.append(f"{name}: {path.branches} branches, {path.doubles} in double precision")
    assert not wrong, "\n".join(wrong)


def test_loads_are_ahead(code: Code) -> None:
    """A group's logits, and targets of 1 byte, arrive while those before it are computed."""
    late = {name: path.ahead for name, _, _, path in hot_of(code) if path.ahead != (AHEAD, AHEAD)}
    assert not late


def test_report_is_up_to_date(code: Code) -> None:
    """The report may be of more architectures than the code."""
    text = inspect_cuda.REPORT.read_text(encoding="utf-8")
    build = inspect_cuda.BUILD.search(text)
    assert build is not None
    if build[1] != code.nvcc or not {*code.kernels}.issubset(build[2].split(", ")):
        pytest.skip(f"the report is of {build[0]}")
    differing = differences(code, text)
    assert not differing, "\n".join([f"run: {AGAIN}", *differing])


def differences(code: Code, text: str) -> list[str]:
    """Cells that a report has otherwise than the code."""
    written = {}
    for title, *lines in map(str.splitlines, text.split("\n## ")):
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
        for name, *row in rows[2:]:
            for column, cell in zip(rows[0][1:], row, strict=True):
                written[title, name, column] = cell
    return [
        f"{', '.join(cell)}: {written.get(cell, 'none')}, now {now}"
        for cell, now in inspect_cuda.cells_of(code).items()
        if written.get(cell) != now
    ]
