"""setup.py where nothing can be compiled."""

import subprocess
import sys
from pathlib import Path

import pytest

from weighted_bce._extension import HOW_TO_BUILD

ROOT = Path(__file__).parent.parent


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
    assert HOW_TO_BUILD.split("then run ")[1] in ran.stderr
    assert not list(tmp_path.rglob("*.so"))
    required = build(WEIGHTED_BCE_REQUIRE_EXT="1")
    assert required.returncode == 1
    assert required.stderr.rstrip().splitlines()[-1].startswith(f"weighted_bce: {words}")
