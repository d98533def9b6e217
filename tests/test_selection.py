"""Which tests run without --all, and which of them run in one worker of xdist."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from . import selection
from .grids import one_at_a_time


def test_the_base_case_and_what_differs_in_one_argument_always_run() -> None:
    cases = one_at_a_time(a=[1, 2, 3], b=["x", "y"]).mark.args[1]
    assert [case.values for case in cases if not case.marks] == [
        (1, "x"),
        (1, "y"),
        (2, "x"),
        (3, "x"),
    ]
    exhaustive = [case.values for case in cases if pytest.mark.exhaustive in case.marks]
    assert exhaustive == [(2, "y"), (3, "y")]


def chosen_of(seed: int, names: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr(selection, "seed", lambda: seed)
    return {name for name in names if selection.is_chosen(name)}


def test_every_exhaustive_test_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"tests/test_{i}.py::test[{i}]" for i in range(1000)]
    shares = [chosen_of(seed * 99991, names, monkeypatch) for seed in range(300)]
    assert all(20 < len(share) < 90 for share in shares)
    assert shares[0] != shares[1]
    assert set().union(*shares) == set(names)


def item(name: str, exhaustive: bool) -> Any:
    marks = {"exhaustive"} if exhaustive else set()
    return SimpleNamespace(
        name=name,
        nodeid=f"tests/test_a.py::{name}",
        get_closest_marker=lambda mark: mark if mark in marks else None,
    )


class Config:
    """Stands for the configuration of pytest, as far as it is asked for."""

    def __init__(self, everything: bool, *args: str) -> None:
        self.args, self.left_out, self.hook = args, [], self
        self.getoption = {"--all": everything}.get

    def pytest_deselected(self, items: list[Any]) -> None:
        self.left_out = items


@pytest.mark.parametrize(
    ("config", "number"), [((True,), 101), ((False, "tests/test_a.py::test_1"), 101), ((False,), 2)]
)
def test_what_is_left_out(
    config: tuple[Any, ...], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "is_chosen", lambda name: name == "tests/test_a.py::test_7")
    items = [item(f"test_{i}", True) for i in range(100)] + [item("always", False)]
    given = Config(*config)
    selection.select(given, items)  # type: ignore[arg-type]
    assert len(items) == number
    assert len(given.left_out) == 101 - number


def test_what_is_started_once_is_used_by_one_worker(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("xdist")
    from .scheduling import GROUPS, group_of

    for test in request.session.items:
        if "processes" in getattr(test, "fixturenames", ()):
            assert group_of(test.nodeid) == GROUPS["shard"], test.nodeid
    assert group_of("tests/test_compile.py::test[inductor]") == GROUPS["inductor"]
    assert group_of("tests/test_ops.py::test_opcheck") == "tests/test_ops.py::test_opcheck"


CRASHES = """
import os
import pytest
@pytest.mark.parametrize("number", range(12))
def test_some(number):
    if number == 3:
        os._exit(1)
"""
SCHEDULER = """
from tests.scheduling import Scheduling
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)
"""


def test_a_worker_that_dies_takes_one_test_with_it(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "conftest.py").write_text(SCHEDULER)
    (tmp_path / "test_crash.py").write_text(CRASHES)
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", str(tmp_path)]
    ran = subprocess.run(
        command, cwd=selection.ROOT, env=outside, capture_output=True, text=True, timeout=120
    )
    assert "1 failed, 11 passed" in ran.stdout, ran.stdout
