"""The compiled CUDA kernels are what they should be, for each GPU of the build: no spills, loads
long before their use, few instructions."""

import os
from pathlib import Path

import pytest

from bench import inspect_cuda
from bench.cuda_code import Code, Facts, Kernel, Unreadable, tools
from weighted_bce._extension import extension

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "cuda_code.md"
AGAIN = "python -m bench.inspect_cuda --out bench/results/cuda_code.md"
DEFAULT = ("sm_80", "sm_90", "sm_100", "sm_120", "compute_120")  # of tools/cuda_build.py
THREADS = 256
REGISTERS = 65536  # of a multiprocessor
# KiB of a multiprocessor that its blocks may have in all. That of sm_120, 100, is not enough for as
# many blocks as the registers are.
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
RESERVED = 1024  # bytes of shared memory that each block has besides
# Instructions per element of the hot path, by the bytes of a logit and the mode: a little more than
# nvcc 13.0 needs on any architecture. Targets of 1 byte, or sparse labels.
MOST = {
    (2, "loss and gradient"): 32,
    (4, "loss and gradient"): 38,
    (2, "loss"): 26,
    (4, "loss"): 31,
    (2, "gradient"): 25,
    (4, "gradient"): 30,
}
MOST_SPARSE = {
    (2, "loss and gradient"): 28,
    (4, "loss and gradient"): 34,
    (2, "loss"): 22,
    (4, "loss"): 28,
    (2, "gradient"): 22,
    (4, "gradient"): 28,
}
MORE_FOR_LARGER_TARGETS = 9
MORE_BY_LABEL = 3.5  # where each label has its own pos_weight
MOST_BRANCHES = 8  # all alike for the threads of a warp: none may depend on an element
AHEAD = 3  # iterations between the start of a copy and the wait for it: kAhead of cuda/stream.h


@pytest.fixture(scope="module")
def code() -> Code:
    if extension is None:
        pytest.skip("no extension")
    if not extension.cuda_archs:
        pytest.skip("the extension was built without CUDA")
    try:
        tools()
    except Unreadable as error:
        pytest.skip(str(error))
    return inspect_cuda.built()


def all_of(code: Code) -> list[tuple[str, Kernel, Facts]]:
    return [(a, k, facts) for a, kernels in code.kernels.items() for k, facts in kernels.items()]


def vectors_of(code: Code) -> list[tuple[str, Kernel, Facts]]:
    return [row for row in all_of(code) if row[1].is_vectors]


def test_has_code_for_each_gpu(code: Code) -> None:
    assert extension is not None
    assert set(code.architectures) == set(extension.cuda_archs.split(", "))
    machine = {name for name in code.architectures if name.startswith("sm_")}
    assert set(code.kernels) == machine
    every = {kernel for _, kernel, _ in all_of(code)}
    assert all(set(kernels) == every for kernels in code.kernels.values())


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
    wrong = [
        f"{architecture}, {kernel}: stack {facts.stack}, local {facts.local}, {facts.spills} spills"
        for architecture, kernel, facts in all_of(code)
        if facts.stack or facts.local or facts.spills
    ]
    assert not wrong, "\n".join(wrong)


def blocks_at_once(kernel: Kernel) -> int:
    """How many blocks the launch bounds of the kernels promise for a multiprocessor."""
    if kernel.name in ("finish", "remember_grad_output"):
        return 1
    halves = kernel.dtype in ("float16", "bfloat16")
    sparse_loss = kernel.target == "sparse labels" and kernel.mode == "loss"
    fewer = int((kernel.slopes or sparse_loss) and halves) + int(kernel.loss != "")
    return 4 - (fewer if kernel.is_vectors else 0)


def test_registers_suffice_for_the_blocks_of_the_launch_bounds(code: Code) -> None:
    wrong = []
    for architecture, kernel, facts in all_of(code):
        most = REGISTERS // (THREADS * blocks_at_once(kernel)) // 8 * 8  # given out in eights
        if facts.registers > min(most, 255):
            wrong.append(f"{architecture}, {kernel}: {facts.registers} of {most}")
    assert not wrong, "\n".join(wrong)


def test_shared_memory_suffices_for_the_blocks_of_the_launch_bounds(code: Code) -> None:
    wrong = [
        f"{architecture}, {kernel}: {facts.shared}"
        for architecture, kernel, facts in all_of(code)
        if (facts.shared + RESERVED) * blocks_at_once(kernel) > SHARED.get(architecture, 1e9) * 1024
    ]
    assert not wrong, "\n".join(wrong)


def test_vectors_are_of_16_bytes(code: Code) -> None:
    for architecture, kernel, facts in vectors_of(code):
        assert facts.wide_loads > 0, f"{architecture}, {kernel}"
        assert (facts.wide_stores > 0) == (kernel.mode != "loss"), f"{architecture}, {kernel}"


def test_hot_path_is_found(code: Code) -> None:
    """Two special functions an element, or one for the loss alone, and 16 bytes an access."""
    unclear = [
        f"{a}, {kernel}: {facts.unclear}" for a, kernel, facts in all_of(code) if facts.unclear
    ]
    assert not unclear, "\n".join(unclear)
    for architecture, kernel, facts in vectors_of(code):
        where = f"{architecture}, {kernel}"
        assert set(facts.hot) == (set(kernel.targets) if kernel.is_hot else set()), where
        for paths in facts.hot.values():
            assert paths.by_label is not None, where
            assert paths.uniform.count("MUFU") == kernel.lanes * (1 + kernel.slopes), where
            assert paths.uniform.branches <= MOST_BRANCHES, where


def test_loads_are_ahead(code: Code) -> None:
    """A group's logits, and targets of 1 byte, arrive while those before it are computed."""
    late = [
        f"{architecture}, {kernel}, {target}: {path.ahead} groups"
        for architecture, kernel, facts in vectors_of(code)
        for target, paths in facts.hot.items()
        for path in (paths.uniform, paths.by_label)
        if path and path.ahead != AHEAD
    ]
    assert not late, "\n".join(late)


def test_hot_path_has_few_instructions(code: Code) -> None:
    wrong = []
    for architecture, kernel, facts in vectors_of(code):
        for target, paths in facts.hot.items():
            most = (MOST if target else MOST_SPARSE)[16 // kernel.lanes, kernel.mode]
            most += MORE_FOR_LARGER_TARGETS if target > 1 else 0
            for path, limit in ((paths.uniform, most), (paths.by_label, most + MORE_BY_LABEL)):
                found = path.instructions / kernel.lanes if path else 0
                if found > limit:
                    wrong.append(f"{architecture}, {kernel}, {target}: {found} of {limit}")
    assert not wrong, "\n".join(wrong)


def test_hot_path_has_no_double_precision(code: Code) -> None:
    """Some GPUs compute it at a 64th of the speed."""
    hot = [
        f"{architecture}, {kernel}, {target}: {paths.uniform.doubles}"
        for architecture, kernel, facts in vectors_of(code)
        for target, paths in facts.hot.items()
        if paths.uniform.doubles
    ]
    assert not hot, "\n".join(hot)


def test_report_is_up_to_date(code: Code) -> None:
    found = inspect_cuda.differences(code, RESULTS.read_text(encoding="utf-8"))
    if found is None:
        pytest.skip(f"{RESULTS.name} is not of {inspect_cuda.header(code)}")
    assert not found, f"run: {AGAIN}\n{found}"
