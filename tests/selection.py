"""Which tests run: with --all every one, otherwise a share of the exhaustive ones.

The share changes with the commit, so that in the course of time each of them runs. Where there is
no git it is always the same.
"""

import subprocess
import zlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARE = 0.05

everything = False  # conftest.py sets it before it collects the tests


@cache
def seed() -> int:
    """A number that is the same throughout a commit, and another one for the next."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return 0
    return int(result.stdout[:8], 16) if result.returncode == 0 else 0


def runs_everything(config: pytest.Config) -> bool:
    """Whether --all was given, or a test was asked for by its own name."""
    return bool(config.getoption("--all")) or any("::" in argument for argument in config.args)


def is_chosen(name: str) -> bool:
    """Whether an exhaustive test of this name is in the share of this commit."""
    return zlib.crc32(f"{seed()} {name}".encode()) < SHARE * 2**32


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes the exhaustive tests that are not in the share out of the items."""
    if runs_everything(config):
        return
    kept, left_out = [], []
    for item in items:
        exhaustive = item.get_closest_marker("exhaustive") is not None
        (left_out if exhaustive and not is_chosen(item.nodeid) else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
