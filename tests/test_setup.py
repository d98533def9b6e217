"""setup.py where nothing can be compiled, and where it puts what was."""

import subprocess
import sys
from pathlib import Path

import pytest

from weighted_bce._extension import extension

from .newcomer import ROOT, Newcomer


@pytest.mark.skipif(
    not (ROOT / "weighted_bce").is_dir(), reason="these tests lie without the package's sources"
)
def test_without_a_compiler_there_is_a_warning_or_an_error(tmp_path: Path) -> None:
    def build(**variables: str) -> subprocess.CompletedProcess[str]:
        folders = [f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
        nothing = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "setup.py", "build_ext", *folders],
            cwd=ROOT,
            env={**nothing, **variables},
            capture_output=True,
            text=True,
        )

    words = "the extension was not built: "
    ran = build()
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(f"weighted_bce: WARNING: {words}") == 1
    command = f"WEIGHTED_BCE_REQUIRE_EXT=1 {sys.executable} -m pip install --no-build-isolation"
    assert f"{command} -e {ROOT}\n" in ran.stderr
    assert not list(tmp_path.rglob("*.so"))
    required = build(WEIGHTED_BCE_REQUIRE_EXT="1")
    assert required.returncode == 1
    assert required.stderr.rstrip().splitlines()[-1].startswith(f"weighted_bce: {words}")


@pytest.mark.skipif(extension is None, reason="there is no library to copy")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_what_is_built_for_elsewhere_is_in_the_clone_too(tmp_path: Path) -> None:
    """Pip builds so for a plain install; Python run in the clone takes the package from there."""
    newcomer = Newcomer(tmp_path)
    newcomer.with_ready_kernels()
    newcomer.succeed(f"python setup.py build_ext --build-lib={tmp_path / 'elsewhere'}")
    assert extension is not None
    assert extension.__file__ is not None
    name = f"weighted_bce/{Path(extension.__file__).name}"
    assert (newcomer.clone / name).is_file()
    assert (tmp_path / "elsewhere" / name).is_file()
