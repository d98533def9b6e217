"""What is asked of torch.cuda, by a mock of it; and a run on a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, device
from bench.device import Cuda
from tools.gpu.device import is_lost

from .bench_cases import KEYS


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Stands for torch.cuda, and records what is asked of it."""
    cuda = MagicMock()
    cuda.Event.side_effect = [cuda.start, cuda.end]
    cuda.start.elapsed_time.return_value = 1500.0
    cuda.memory_allocated.return_value, cuda.memory_reserved.return_value = 100, 103
    cuda.max_memory_allocated.return_value, cuda.mem_get_info.return_value = 150, (7, 9)
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda


def calls(cuda: MagicMock, work: Callable[[], object]) -> list[str]:
    """The names of what is called in the work."""
    cuda.reset_mock()
    work()
    return [name for name, *_ in cuda.mock_calls]


def test_events_time_the_work(cuda: MagicMock) -> None:
    gpu = Cuda()
    in_order = ["start.record", "work", "end.record", "end.synchronize", "start.elapsed_time"]
    assert calls(cuda, lambda: gpu.seconds(cuda.work)) == in_order
    assert gpu.seconds(cuda.work) == 1.5


def test_the_allocator_counts_memory(cuda: MagicMock) -> None:
    gpu = Cuda()
    before = ["synchronize", "reset_peak_memory_stats", "memory_allocated"]
    after = ["work", "synchronize", "max_memory_allocated"]
    assert calls(cuda, lambda: gpu.rise_of_peak(cuda.work)) == before + after
    assert gpu.rise_of_peak(cuda.work) == 50
    assert calls(cuda, gpu.free_bytes)[0] == "empty_cache"
    assert gpu.free_bytes() == 7 + 3


def test_a_lost_gpu_cannot_synchronize(cuda: MagicMock) -> None:
    assert not is_lost()
    cuda.synchronize.side_effect = RuntimeError("an illegal memory access")
    assert is_lost()


def test_work_is_captured_warm_and_on_a_stream_of_its_own(cuda: MagicMock) -> None:
    gpu = Cuda()
    made = ["CUDAGraph", "Stream", "current_stream", "Stream().wait_stream", "stream"]
    captured = ["prepare", "graph", "graph().__enter__", "work", "graph().__exit__"]
    assert calls(cuda, lambda: gpu.graph(cuda.prepare, cuda.work)()) == [
        *("prepare", *made, "stream().__enter__"),
        *(["prepare", "work"] * device.WARM_UPS),
        *(*captured, "stream().__exit__"),
        *("current_stream", "current_stream().wait_stream", "CUDAGraph().replay"),
    ]


def test_kernels_are_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "why_no_kernels", lambda name: f"none is built for {name.upper()}")
    assert __main__.main(["--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "none is built for CUDA" in printed.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    kinds = ("--shapes", "2^14", "--dtypes", "float32,bfloat16,float16", "--rounds", "2")
    against = ("--against", ",".join([*KEYS[2:], "scatter", "dense"]))
    given = ("--device", "cuda", *kinds, *against, "--targets", "bool,sparse")
    assert __main__.main([*given, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"GPU", "driver", "CUDA", "CUDA kernels"} <= set(results["facts"])
    assert {row["graphs"] for row in results["rows"]} == {True, False}
    for row in results["rows"]:
        assert row["failed"] is None, row
        assert row["seconds"] > 0
