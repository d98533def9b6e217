"""What fits in the memory of a GPU, what fails there, and what is asked of torch.cuda."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

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
