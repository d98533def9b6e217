"""Fixtures that all tests share."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from weighted_bce import _config, _eager, backend, weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce.linear import _expectation

from . import selection
from .comparison import backends
from .processes import Processes

# The workers of xdist share the processors. Threads that wait for one another would take most of
# the time: even torch's logsigmoid of a few numbers starts all of them.
if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run every exhaustive test, not just the share of this commit, and all draws of each"
    parser.addoption("--all", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    selection.everything = selection.runs_everything(config)


def pytest_report_header(config: pytest.Config) -> str:
    share = "all" if selection.everything else f"{selection.SHARE:.0%}"
    return f"exhaustive tests: {share}, seed {selection.seed()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selection.select(config, items)


@pytest.hookimpl(optionalhook=True)  # of xdist, where it is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "load":
        return None
    from .scheduling import Scheduling

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def runs_everything() -> bool:
    """Whether a test makes all of its draws, or few of them."""
    return selection.everything


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(params=["fused", "reference"])
def chosen(device: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend during the test: the kernels where there are any, or plain torch."""
    with backend(backends(device)[request.param == "reference"]):
        yield str(request.param)


@pytest.fixture(params=[None, torch.int64], ids=["dense", "sparse"])
def sparse(request: pytest.FixtureRequest) -> Any:
    """How the target is given: dense, or by its positives with indices of this dtype."""
    return request.param


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The SIMD level that the kernels use during the test."""
    levels = dict(extension.simd_levels()) if extension is not None else {}
    if not levels.get(request.param):
        pytest.skip(f"{request.param} is not compiled in, or not for this processor: {levels}")
    assert extension is not None
    before = extension.simd_level()
    extension.set_simd_level(request.param)
    assert extension.simd_level() == request.param
    yield request.param
    extension.set_simd_level(before)


@pytest.fixture
def kernel_device(device: str) -> str:
    """A device that has kernels: for promises that the reference does not make."""
    nothing = torch.empty(0, device=device)
    try:
        with backend("fused"):
            weighted_bce_with_logits(nothing, nothing)
    except RuntimeError as error:
        if not str(error).startswith("backend 'fused' has no kernel"):
            raise  # a kernel that fails is no reason to skip
        pytest.skip(str(error))
    return device


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    seed = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed)
    # Pytest shows this when the test fails.
    print(f"torch.manual_seed({seed}); the seed of the commit is {selection.seed()}")


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """No test sees the backend, the expectations or the threads that another one left."""
    _eager._expected.clear()
    _expectation._of_kinds.clear()
    chosen, threads = _config.current_backend, torch.get_num_threads()
    yield
    _config.current_backend = chosen
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> None:
    """Many tiny calls are quickest so: threads would spend most of the time waiting."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=[2, pytest.param(4, marks=pytest.mark.exhaustive)])
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Two of them, and four in exhaustive tests.

    A test that takes them has "shard" in its name or that of its file: see scheduling.py.
    """
    started = Processes(request.param)
    yield started
    started.stop()
