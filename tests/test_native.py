"""The C++ of the kernels and of the gradient memory, on its own under the compiler's sanitizers.
The CUDA kernels run on the host, with a fiber for each thread.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CPU = ROOT / "csrc" / "cpu"
NATIVE = Path(__file__).parent / "native"
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", "-Wall", "-Wno-psabi"),
    "-Wno-unknown-pragmas",  # of nvcc
    # As in setup.py: what they permit is permitted here.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
MEMORY = "address,undefined"
THREADS = "thread"


def compiled(
    sanitizers: str | None, sources: list[Path], at: Path, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX", "c++").split()
    sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    include = f"-I{ROOT / 'csrc'}"  # behind those of `flags`
    command = [*compiler, *FLAGS, *sanitize, *flags, include, *map(str, sources), "-o", str(at)]
    return subprocess.run(command, capture_output=True, text=True)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Leaks are looked for by ptrace, which containers often forbid.
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [program, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")


def skip_without_compiler() -> None:
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        pytest.skip("no C++ compiler")


def skip_without(sanitizers: str, folder: Path) -> None:
    """Skips where not even an empty program can be compiled and run with the sanitizers."""
    skip_without_compiler()
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}\n", encoding="utf-8")
    result = compiled(sanitizers, [source], program)
    if result.returncode == 0:
        result = run(program)
    if result.returncode != 0:
        pytest.skip(f"no -fsanitize={sanitizers} here: {result.stderr.strip()[:200]}")


def check(sanitizers: str, sources: list[Path], folder: Path, flags: tuple[str, ...] = ()) -> str:
    """Compiles and runs; returns what the program printed."""
    skip_without(sanitizers, folder)
    program = folder / "program"
    build = compiled(sanitizers, sources, program, flags)
    assert build.returncode == 0, build.stderr[:8000]
    result = run(program)
    assert result.returncode == 0, (result.stdout + result.stderr)[:8000]
    return result.stdout


def test_kernels_touch_their_elements_only_and_are_right(tmp_path: Path) -> None:
    sources = [NATIVE / "kernels.cpp", CPU / "levels.cpp", *sorted(CPU.glob("level_*.cpp"))]
    said = check(MEMORY, sources, tmp_path)
    assert "baseline: passed" in said


@pytest.mark.parametrize("logits", ["cuda::Half", "cuda::BFloat16", "float", "double"])
def test_cuda_kernels_touch_their_elements_only_and_are_right(logits: str, tmp_path: Path) -> None:
    # Without optimisation: it would take longer than it saves.
    flags = ("-O0", f"-DNATIVE_LOGITS={logits}")
    check(MEMORY, [NATIVE / "cuda_kernels.cpp"], tmp_path, flags)


def test_cuda_arithmetic_keeps_its_error_bounds(tmp_path: Path) -> None:
    check(MEMORY, [NATIVE / "cuda_scalars.cpp"], tmp_path)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS])
def test_gradient_memory_is_held_by_one_at_a_time(sanitizers: str, tmp_path: Path) -> None:
    check(sanitizers, [NATIVE / "memory.cpp", CPU / "memory.cpp"], tmp_path)
