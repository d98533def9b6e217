"""The C++ of the kernels and of the gradient memory, on its own under the compiler's sanitizers.
The CUDA kernels run on the host, with a fiber for each thread.
"""

from pathlib import Path

import pytest

from . import selection
from .programs import CSRC, MEMORY, NATIVE, THREADS, compiled, run, skip_without

CPU = CSRC / "cpu"


def check(
    sanitizers: str,
    sources: list[Path],
    folder: Path,
    arguments: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
) -> str:
    """Compiles and runs a program; returns what it printed."""
    skip_without(sanitizers)
    program = folder / "program"
    build = compiled(sanitizers, sources, program, flags)
    assert build.returncode == 0, build.stderr[:8000]
    result = run(program, *arguments)
    assert result.returncode == 0, (result.stdout + result.stderr)[:8000]
    return result.stdout


@pytest.fixture
def draws(runs_everything: bool) -> tuple[str, ...]:
    """The arguments of a program that draws its cases: a seed, and whether it makes them all."""
    return (str(selection.seed()), *(["all"] if runs_everything else []))


def test_kernels_touch_their_elements_only_and_are_right(
    tmp_path: Path, draws: tuple[str, ...]
) -> None:
    sources = [NATIVE / "kernels.cpp", *sorted(CPU.glob("isa*.cpp"))]
    assert "baseline: passed" in check(MEMORY, sources, tmp_path, draws)


@pytest.mark.parametrize("logits", ["Half", "BFloat16", "float", "double"])
def test_cuda_kernels_touch_their_elements_only_and_are_right(
    logits: str, tmp_path: Path, draws: tuple[str, ...]
) -> None:
    flags = (f"-DNATIVE_LOGITS={logits}",)
    assert "passed" in check(MEMORY, [NATIVE / "cuda_kernels.cpp"], tmp_path, draws, flags)


def test_cuda_arithmetic_keeps_its_error_bounds(tmp_path: Path, draws: tuple[str, ...]) -> None:
    check(MEMORY, [NATIVE / "cuda_scalars.cpp"], tmp_path, draws)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS])
def test_gradient_memory_is_held_by_one_at_a_time(sanitizers: str, tmp_path: Path) -> None:
    check(sanitizers, [NATIVE / "memory.cpp", CPU / "memory.cpp"], tmp_path)
