"""What fits in the memory of a GPU, what fails there, and what is asked of torch.cuda."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, device, report, run, runner, timing
from bench.baselines import BY_KEY
from bench.device import Cuda
from bench.names import OURS
from bench.settings import Setting
from tools.gpu.device import is_lost

from .bench_cases import LAYER, SETTING, Pretended, group, measured, rows, with_make
from .test_bench_cuda import main


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MOST_STEPS", 1)


def test_what_does_not_fit_is_not_tried() -> None:
    one = group(device=Pretended())
    needed = {r.key: r.memory for r in one}
    check = 120 * SETTING.elements
    inputs = 5 * 13 * 512 + check  # samples of logits, room and two targets
    assert needed["copy"] == inputs
    assert needed[OURS] == inputs + 2 * 4 * 512  # with the gradient of the sample before
    assert needed["bce"] == inputs + 5 * 4 * 512
    found = measured(group(device=Pretended(needed["masked"] - 1)))
    left_out = ["masked", "bce", "bce-float"]
    assert [key for key, row in found.items() if not row.fits] == left_out
    assert "GiB are free" in str(found["bce"].failed)
    assert all(row.seconds is not None for row in found.values() if row.fits)


def test_what_layers_need() -> None:
    """Ours and the fused step hold no logits, others up to five times as much as these."""
    keys = [OURS, "fused-step", "products", "unfused", "masked", "bce", "scatter"]
    one = group(LAYER, keys, device=Pretended())
    inputs = one[0].samples.bytes + LAYER.gradient_bytes + 120 * LAYER.elements
    assert [(r.memory - inputs) / LAYER.logits_bytes for r in one] == [0, 0, 1, 2, 5, 5, 5]


def test_samples_of_the_pass_before_count_once() -> None:
    """They are in memory, and so no longer in what is free."""
    gpu = Pretended()
    one = group(device=gpu)
    measured(one)
    gpu.free = 0
    timing.check(one)
    assert all(row.fits for row in rows(one).values())


@pytest.mark.parametrize(
    ("setting", "element"),
    [
        (Setting(0, 2**14), 21),  # logits, room, gradients of two steps; the target twice
        (Setting(0, 2**14, "float16"), 11),
        (Setting(0, 2**14, "bfloat16", "sparse"), 9),
    ],
)
def test_the_largest_size(setting: Setting, element: int) -> None:
    """Ours has memory for that power of two, and has none for the next one."""
    gpu = Pretended(2**36)
    found = run.with_most_rows(setting, gpu)
    assert found == setting._replace(rows=found.rows)
    assert found.rows.bit_count() == 1
    assert 0.3 * gpu.free < found.elements * element < 0.9 * gpu.free
    assert 2 * found.elements * element > 0.89 * gpu.free
    assert group(found, [OURS], device=gpu)[0].memory < gpu.free


def test_shapes_of_the_largest_size() -> None:
    """Each dtype has its own, and no size is measured twice."""
    given = ["--shapes", "2^20,largest", "--dtypes", "float32,bfloat16", "--passes", "step"]
    options = __main__.parser().parse_args(["--device", "cuda", *given])
    sizes = [(s.dtype, s.elements) for s in run.tasks_of(options, Pretended(2**36))]
    assert sizes == [
        *(("float32", 2**20), ("bfloat16", 2**20)),
        *(("float32", 2**31), ("bfloat16", 2**32)),
    ]
    once = run.tasks_of(options, Pretended(75 * 2**20))
    assert [setting.elements for setting in once] == [2**20, 2**20]


def test_nothing_is_made_where_the_inputs_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.samples.make", lambda *_: pytest.fail("made"))
    setting = Setting(2**40, 2**20, "bfloat16", density=0.1)
    known = measured(group(setting, device=Pretended()))
    assert not any(row.fits or row.disagrees for row in known.values())


@pytest.mark.parametrize("calls", [1, 4])
def test_out_of_memory_is_no_error(calls: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory is short in the check, or only in a later round."""
    left = [None] * (calls - 1)

    def hungry(*setting: Any) -> Callable[[Tensor, Tensor], Tensor]:
        right = BY_KEY["masked"].make(*setting)

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            if not left:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
            left.pop()
            return right(logits, target)

        return loss

    one = group(keys=[OURS, with_make("masked", hungry), "bce"], device=Pretended())
    for key, row in measured(one, 3).items():
        assert row.fits == (key != "masked")
        assert (row.seconds is None) == (key == "masked")
    report.show_group(report.Console(width=132), [*rows(one).values()])
    assert "masked multiply does not fit: CUDA out of memory" in capsys.readouterr().out


def test_a_gpu_that_has_failed_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An allocation that fails there does not show that memory is short; results are kept."""

    def broken(*_: Any) -> Callable[..., Tensor]:
        def loss(*_: Any) -> Tensor:
            raise RuntimeError("torch failed to allocate a tensor")

        return loss

    monkeypatch.setattr(run, "find", lambda _: Pretended())
    for module in (run, timing):
        monkeypatch.setattr(module, "is_lost", lambda: True)
    own = with_make(OURS, broken)
    monkeypatch.setattr("bench.baselines.BASELINES", (BY_KEY["copy"], own, BY_KEY["bce"]))
    given = ("--shapes", "8x64,9x64", "--passes", "step", "--against", "bce")
    assert main("--rounds", "1", *given, "--out", str(tmp_path)) == 1
    printed = capsys.readouterr()
    assert "nothing more is measured" in printed.err
    assert "ours failed: torch failed to allocate a tensor" in printed.out
    found = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["rows"], row["fits"]) for row in found} == {(8, True)}


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

    def synchronize() -> None:
        log.append("synchronize")
        if "lost" in log:
            raise RuntimeError("an illegal memory access")

    pretended = SimpleNamespace(
        Event=lambda enable_timing: Recorded(log, next(names)),
        CUDAGraph=lambda: Recorded(log, "graph"),
        Stream=lambda: Recorded(log, "side"),
        current_stream=lambda: Recorded(log, "current"),
        stream=lambda _: Recorded(log, "on_side"),
        graph=lambda graph, stream: Recorded(log, "capture"),
        is_initialized=lambda: True,
        synchronize=synchronize,
        reset_peak_memory_stats=lambda: log.append("reset"),
        memory_allocated=lambda: 100,
        memory_reserved=lambda: 103,
        max_memory_allocated=lambda: 150,
        empty_cache=lambda: log.append("empty"),
        mem_get_info=lambda: (7, 9),
    )
    monkeypatch.setattr(torch, "cuda", pretended)
    return log


def test_time_and_memory(log: list[str]) -> None:
    """Events time the work, the allocator counts what it needs."""
    gpu = Cuda()
    assert gpu.seconds(lambda: log.append("work")) == 1.5
    assert log == ["start.record", "work", "end.record", "end.synchronize", "start.elapsed_time"]
    log.clear()
    assert gpu.rise_of_peak(lambda: log.append("work")) == 50
    assert log == ["synchronize", "reset", "work", "synchronize"]
    assert gpu.free_bytes() == 7 + 3
    assert log[-1] == "empty"


def test_a_lost_gpu_cannot_synchronize(log: list[str]) -> None:
    assert not is_lost()
    log.append("lost")
    assert is_lost()


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
