"""Runs Python code in a process of its own."""

import os
import subprocess
import sys


def run_python(code: str, *arguments: str, status: int = 0, **variables: str) -> tuple[str, str]:
    """Returns what the code prints and its errors; the variables are those of its environment."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == status, ran.stderr
    return ran.stdout, ran.stderr
