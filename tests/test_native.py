"""The C++ of the kernels and of the gradient memory, on its own under the compiler's sanitizers."""

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
    # As in setup.py: what they permit is permitted here.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    f"-I{ROOT / 'csrc'}",
)
MEMORY = "address,undefined"
THREADS = "thread"


def compiled(sanitizers: str, sources: list[Path], at: Path) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX", "c++").split()
    sanitize = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    command = [*compiler, *FLAGS, *sanitize, *map(str, sources), "-o", str(at)]
    return subprocess.run(command, capture_output=True, text=True)


def run(program: Path) -> subprocess.CompletedProcess[str]:
    # Leaks are looked for by ptrace, which containers often forbid.
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([program], env=env, capture_output=True, text=True, errors="replace")


def skip_without(sanitizers: str, folder: Path) -> None:
    """Skips where not even an empty program can be compiled and run with the sanitizers."""
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        pytest.skip("no C++ compiler")
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}\n", encoding="utf-8")
    result = compiled(sanitizers, [source], program)
    if result.returncode == 0:
        result = run(program)
    if result.returncode != 0:
        pytest.skip(f"no -fsanitize={sanitizers} here: {result.stderr.strip()[:200]}")


def check(sanitizers: str, sources: list[Path], folder: Path) -> str:
    """Compiles and runs; returns what the program printed."""
    skip_without(sanitizers, folder)
    program = folder / "program"
    build = compiled(sanitizers, sources, program)
    assert build.returncode == 0, build.stderr[:8000]
    result = run(program)
    assert result.returncode == 0, (result.stdout + result.stderr)[:8000]
    return result.stdout


def test_kernels_touch_their_elements_only_and_are_right(tmp_path: Path) -> None:
    sources = [NATIVE / "kernels.cpp", CPU / "levels.cpp", *sorted(CPU.glob("level_*.cpp"))]
    said = check(MEMORY, sources, tmp_path)
    assert "baseline: passed" in said


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS])
def test_gradient_memory_is_held_by_one_at_a_time(sanitizers: str, tmp_path: Path) -> None:
    check(sanitizers, [NATIVE / "memory.cpp", CPU / "memory.cpp"], tmp_path)
