"""What the benchmark asks of torch.cuda, and in which order."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("psutil")

from bench import device
from bench.device import Cuda


class Recorded:
    """Stands for what torch.cuda makes; notes what is done with it."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __getattr__(self, action: str) -> Callable[..., float]:
        return lambda *_: self.log.append(f"{self.name}.{action}") or 1500.0

    def __enter__(self) -> None:
        self.log.append(f"{self.name}(")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"){self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []
    names = iter(["start", "end"])
    pretended = SimpleNamespace(
        Event=lambda enable_timing: Recorded(log, next(names)),
        CUDAGraph=lambda: Recorded(log, "graph"),
        Stream=lambda: Recorded(log, "side"),
        current_stream=lambda: Recorded(log, "current"),
        stream=lambda _: Recorded(log, "on_side"),
        graph=lambda graph, stream: Recorded(log, "capture"),
        synchronize=lambda: log.append("synchronize"),
        reset_peak_memory_stats=lambda: log.append("reset"),
        memory_allocated=lambda: 100,
        memory_reserved=lambda: 103,
        max_memory_allocated=lambda: 150,
        empty_cache=lambda: log.append("empty"),
        mem_get_info=lambda: (7, 9),
    )
    monkeypatch.setattr(torch, "cuda", pretended)
    return log


def test_events_time_the_work(log: list[str]) -> None:
    assert Cuda().seconds(lambda: log.append("work")) == 1.5
    assert log == ["start.record", "work", "end.record", "end.synchronize", "start.elapsed_time"]


def test_the_allocator_counts_memory(log: list[str]) -> None:
    gpu = Cuda()
    assert gpu.rise_of_peak(lambda: log.append("work")) == 50
    assert log == ["synchronize", "reset", "work", "synchronize"]
    assert gpu.free_bytes() == 7 + 3
    assert log[-1] == "empty"


def test_work_is_captured_warm_and_on_a_stream_of_its_own(log: list[str]) -> None:
    replay = Cuda().graph(lambda: log.append("prepare"), lambda _: log.append("work"))
    replay()
    warm_up = ["prepare", "work"]
    assert log == [
        *("prepare", "side.wait_stream", "on_side("),
        *(warm_up * device.WARM_UPS),
        *("prepare", "capture(", "work", ")capture", ")on_side"),
        *("current.wait_stream", "graph.replay"),
    ]
