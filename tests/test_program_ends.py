"""Programs end with one sentence where something is wrong, and leave nothing half-written."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("psutil")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import torch

from examples import comparison, sparse_labels
from tools import files, program
from tools.program import Refusal

from . import svmlight

ROOT = Path(__file__).parents[1]
# What is imported to show the help of these is little: torch is not.
LIGHT = ("bench", "examples.sparse_labels", "examples.extreme_labels", "examples.study")
HEAVY = ("bench.documentation", "bench.inspect_cuda", "tools.gpu.smoke", "tools.gpu.launches")
FULL = Path("/dev/full")


def module_of(name: str) -> ModuleType:
    return import_module("bench.__main__" if name == "bench" else name)


def ends(work: Callable[[], int | None], capsys: Any) -> tuple[int, str, str]:
    code = program.run("it", work)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def fails_with(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        print("before")
        raise error

    return work


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
MEMORY = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory\nmore"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Refusal("--out[1] must be [x]"), 2, "--out[1] must be [x]"),
        (Refusal("two\nlines", 1), 1, "two lines"),
        (FileNotFoundError(2, "No such file", "a/b"), 1, "a/b: No such file"),
        (NO_SPACE, 1, "No space left on device"),
        (OSError("odd"), 1, "odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "memory ran out: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "memory ran out: CUDA out of memory."),
        (RuntimeError(MEMORY), 1, f"memory ran out: {MEMORY.splitlines()[0]}"),
        (ImportError("no symbol", name="scipy"), 1, "scipy cannot be imported: no symbol"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(fails_with(error), capsys) == (code, "before\n", f"it: {said}\n")


def test_who_closes_a_pipe_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(fails_with(BrokenPipeError(32, "Broken pipe")), capsys) == (1, "before\n", "")
    assert ends(lambda: None, capsys) == (0, "", "")
    assert ends(lambda: 3, capsys) == (3, "", "")


def test_faults_of_ours_are_not_hidden() -> None:
    with pytest.raises(ValueError, match="ours"):
        program.run("it", fails_with(ValueError("ours")))


@pytest.mark.parametrize("name", [*LIGHT, *HEAVY, "tools.gpu.__main__"])
def test_a_bad_argument_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        module_of(name).main(["--no[such]"])
    printed = capsys.readouterr()
    prog = f"python -m {name.removesuffix('.__main__')}"
    assert (printed.out, printed.err) == ("", f"{prog}: unrecognized arguments: --no[such]\n")


def started(
    name: str, *arguments: str, unbuffered: str = "", **options: Any
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", name, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    return subprocess.Popen(command, cwd=ROOT, stderr=-1, env=environment, **options)


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_is_closed_early(name: str, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = started(name, "--help", unbuffered=unbuffered, stdout=writing)
    os.close(writing)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", LIGHT)
def test_a_disk_that_is_full(name: str) -> None:
    with FULL.open("wb") as full:
        said = started(name, "--help", stdout=full).communicate(timeout=60)[1].decode()
    assert said == f"python -m {name}: No space left on device\n"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    missing = os.fsencode(tmp_path) + b"/\xff\n[cuda]"
    process = started("bench", "--check", os.fsdecode(missing), stdout=subprocess.PIPE)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said.count(b"\n")) == (2, b"", 1)
    assert b"[cuda]" in said


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """It is said before anything else is done, and what was made to find out is gone."""
    files.check_folder("--out", tmp_path / "a" / "b")
    file = tmp_path / "file"
    file.write_text("kept")
    for path in (file, file / "below", tmp_path / ("long" * 100)):
        with pytest.raises(Refusal, match="--out: cannot write to"):
            files.check_folder("--out", path)
    assert sorted(tmp_path.iterdir()) == [file]
    assert file.read_text() == "kept"


def test_files_are_written_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_whole(path, "one µ")
    files.write_whole(path, b"two")

    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise NO_SPACE

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, "three")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "two"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "rows.txt").write_text(svmlight.text())
    monkeypatch.setattr(comparison, "peak_bytes", lambda *_: None)  # saves a process
    data = ["--data", str(tmp_path / "rows.txt"), "--out", str(tmp_path / "out")]
    return [*data, "--losses", "plain", "--epochs", "2"]


def test_training_that_diverges(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sparse_labels.main([*given, "--learning-rate", "1e38"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("plain BCE diverged; a smaller --learning-rate may help\n")
    assert not (tmp_path / "out").exists()


def test_a_layer_that_does_not_fit(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("80 40 1000000000\n" + rows.read_text().partition("\n")[2])
    assert sparse_labels.main(given) == 2
    assert "1,000,000,000 labels need about 1907.3 GiB" in capsys.readouterr().err
