"""A plugin of pytest: only the tests of one device, and what became of each, at once on disk."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .device import is_lost, synchronize

LONGEST = 1000  # characters that are kept of a failure: those at its end


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("outcomes")
    group.addoption("--only-device", metavar="NAME", help="run only what needs this device")
    group.addoption("--outcomes", metavar="FILE", help="gets a line of JSON for each test")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(EndOfWorker(), "end-of-worker")
    elif path:
        config.pluginmanager.register(Outcomes(Path(path)), "outcomes")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """A kernel that fails is blamed on the test that launched it, and not on a later one."""
    yield
    synchronize()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that compile come last: each of them takes long."""
    device = config.getoption("--only-device")
    if not device:
        return
    kept = [item for item in items if needs(item, device)]
    config.hook.pytest_deselected(items=list({*items} - {*kept}))
    items[:] = sorted(kept, key=lambda item: bool(re.search("compile|export", item.nodeid)))


def needs(item: pytest.Item, device: str) -> bool:
    """Tells whether a test is for this device, by its parameters, its name or its skip mark."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any(isinstance(value, str) and value == device for value in parameters):
        return True
    name = item.name.partition("[")[0]  # such as test_what_on_cuda; test_cuda_... is for the host
    if re.search(rf"_(on|for|the)_{device}(_|$)", name):
        return True
    reasons = (mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif"))
    return any(f"no {device.upper()} device" in reason for reason in reasons)


class EndOfWorker:
    """Ends a worker of xdist whose GPU is lost: another one takes the tests that are left."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and is_lost():
            os._exit(1)


class Outcomes:
    """Writes down each test as it begins and as it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        path.write_text("")

    def _write(self, test: str, outcome: str, **more: Any) -> None:
        with self.path.open("a") as file:
            row = {"test": test, "outcome": outcome, "time": round(time.time(), 2), **more}
            print(json.dumps(row), file=file)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, "began")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = self.seconds.get(report.nodeid, 0.0) + report.duration
        self.seconds[report.nodeid] = seconds
        if report.when == "call" or report.outcome != "passed":
            text = report.longreprtext[-LONGEST:]
            if report.skipped and isinstance(report.longrepr, tuple):
                text = str(report.longrepr[2])  # the reason alone
            self._write(report.nodeid, report.outcome, seconds=round(seconds, 2), text=text)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid, "error", text=report.longreprtext[-LONGEST:])
