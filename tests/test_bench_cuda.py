"""The benchmark on a GPU. Without one, a CPU that passes for it runs the same code."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, contenders, device, graphs, losses, report, run, summary
from bench.agreement import check
from bench.contenders import BOOL, COPY, NO_POSITIVES, SCALED, TORCH_READY
from bench.device import Cuda
from bench.group import Group, Result
from bench.losses import INPLACE, MASKED, OURS, SCATTER, TORCH, Setting
from bench.samples import Sample, Samples
from bench.timing import Measured, measure

SETTING = Setting(8, 64, "float32", "bool", 0.1, 7.0)
STEP = 5 * SETTING.elements  # bytes of the logits and the target
TRAINING = [COPY, OURS, SCALED, INPLACE, MASKED, TORCH, TORCH_READY]
GRAPHS = [COPY, OURS, SCALED, TORCH, TORCH_READY]


class Pretended(Cuda):
    """A GPU of 1 TiB that is the CPU. Its cache holds one step, its clock is the wall's."""

    name = "cpu"

    def __init__(self, free: int = 2**40) -> None:
        self.free = free
        self.clock = time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def cache_bytes(self) -> int:
        return STEP

    def free_bytes(self) -> int | None:
        return self.free

    def rise_of_peak(self, work: Callable[[], object]) -> int | None:
        work()
        return 3 * SETTING.gradient_bytes

    def release(self) -> None:
        pass

    def graph(self, prepare: Callable[[], Any], work: Callable[[Any], object]) -> Any:
        return lambda: work(prepare())

    def facts(self) -> dict[str, str]:
        return {"GPU": "a pretended one", "driver": "0.0"}


def group(gpu: Cuda, setting: Setting = SETTING, **others: Any) -> Group:
    functions = {**losses.losses(setting, compiled=False), **others}
    return Group("", setting, contenders.training(functions, Samples(setting, gpu)), "training")


def by_name(results: list[Result]) -> dict[str, Result]:
    return {result.contender: result for result in results}


def test_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "find", lambda _: Pretended())
    monkeypatch.setattr(contenders, "SMALL_STEPS", 1)
    monkeypatch.setattr(graphs, "MOST_ELEMENTS", 512)
    path = tmp_path / "found.json"
    sizes = ("--elements", "2^9,1000", "--labels", "64", "--rounds", "2", "--json", str(path))
    assert __main__.main(["--device", "cuda", "--quick", "--no-compile", *sizes]) == 0
    printed = capsys.readouterr().out
    assert "a pretended one" in printed
    found = json.loads(path.read_text())
    assert found["memory"] == []
    assert "Summary" in printed
    forward, small = [COPY, OURS, MASKED, TORCH], [OURS, TORCH]
    expected = {
        "Training step: 2^9 elements": TRAINING,
        "Training step, CUDA graphs: 2^9": GRAPHS,
        "Forward alone: 2^9": forward,
        "Forward alone, CUDA graphs: 2^9": [COPY, OURS, TORCH],
        "Training step: 960 elements": TRAINING,
        "Forward alone: 960": forward,
        "Training step: 7 x 513 float32 logits, sparse": [COPY, OURS, NO_POSITIVES, BOOL, SCATTER],
        "Small training step": small,
        "Small training step: 8 x 16 float32 logits, no": small,
    }
    for (title, names), timed in zip(expected.items(), found["groups"], strict=True):
        assert timed["title"].startswith(title)
        assert timed["title"] in printed.replace("\n", "")
        assert [row["contender"] for row in timed["results"]] == names
        for row in timed["results"]:
            assert row["failed"] is None
            assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
            assert (row["share_of_copy"] is not None) == (COPY in names)
            with_peak = COPY in names and "graphs" not in title
            assert (row["peak_gradients"] is not None) == with_peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_agree(dtype: str) -> None:
    """Also at another loss scale, and when replayed."""
    setting = Setting(16, 4096, dtype, "bool", 0.05, 7.0)
    gpu = Pretended()
    samples = Samples(setting, gpu)
    found = contenders.training(losses.losses(setting, compiled=False), samples)
    for some in (found, graphs.replayed(found, samples)):
        assert check(Group("", setting, some), gpu) == {}


def test_a_wrong_loss_scale_is_found() -> None:
    made = group(Pretended())
    wrong = [c._replace(scale=c.scale * (1.0 + 1e-5)) for c in made.contenders]
    assert check(made._replace(contenders=wrong), Pretended())[SCALED].disagrees


def test_percent_of_copy() -> None:
    """By the bytes that must move: a step of 2 s + t bytes for each 2 s of a copy."""
    gpu = Pretended()
    now = iter([0.0, 1.0] * 100)
    gpu.clock = lambda: next(now)  # whatever is timed takes a second
    found = by_name(measure(group(gpu), 3, gpu).results)
    assert found[COPY].share_of_copy == 1
    assert found[OURS].share_of_copy == 9 / 8
    assert found[TORCH_READY].share_of_copy == 12 / 8
    assert found[OURS].gigabytes_per_second == 9 * 512 / 1e9
    assert found[OURS].peak_gradients == 3


def test_what_does_not_fit_is_not_tried() -> None:
    made = group(Pretended())
    needed = {c.name: c.memory for c in made.contenders}
    inputs = 5 * 13 * 512  # samples of logits, room and two targets
    assert needed[COPY] == inputs
    assert needed[OURS] == inputs + 4 * 512
    assert needed[TORCH] == inputs + 5 * 4 * 512  # with the gradient it is compared with
    gpu = Pretended(needed[TORCH] - 1)
    found = by_name(measure(made, 1, gpu).results)
    assert not found[TORCH].fits
    assert "GiB are free" in str(found[TORCH].failed)
    assert all(result.fits == (name != TORCH) for name, result in found.items())
    assert found[MASKED].seconds is not None


def test_nothing_is_made_where_the_inputs_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setting, "sample", lambda *_: pytest.fail("made"))
    setting = Setting(2**40, 2**20, "bfloat16", "bool", 0.1, 7.0)
    measured = measure(group(Pretended(), setting), 1, Pretended())
    assert not any(result.fits for result in measured.results)
    assert not any(result.disagrees for result in measured.results)


@pytest.mark.parametrize("calls", [1, 4])
def test_out_of_memory_is_no_error(calls: int, capsys: pytest.CaptureFixture[str]) -> None:
    """In the check, or only in a later round."""
    right, left = losses.losses(SETTING, compiled=False)[TORCH], [None] * (calls - 1)

    def hungry(logits: Tensor, target: Tensor) -> Tensor:
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        left.pop()
        return right(logits, target)

    gpu = Pretended()
    measured = measure(group(gpu, **{MASKED: hungry}), 3, gpu)
    for name, result in by_name(measured.results).items():
        assert result.fits == (name != MASKED)
        assert (result.seconds is None) == (name == MASKED)
    report.show_times(report.Console(width=120), "", measured, "", gpu=True)
    printed = capsys.readouterr().out
    assert f"{MASKED} does not fit: CUDA out of memory" in printed


def test_ours_that_fails_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others' times are shown; what is said of the failure names its place."""

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    gpu = Pretended()
    monkeypatch.setattr(gpu, "graph", fail)
    monkeypatch.setattr(run, "find", lambda _: gpu)
    monkeypatch.setattr(contenders, "SMALL_STEPS", 1)
    sizes = ("--elements", "512", "--rounds", "1")
    assert __main__.main(["--device", "cuda", "--quick", "--no-compile", *sizes]) == 1
    printed = capsys.readouterr()
    assert f"{OURS} failed: operation not permitted" in printed.out
    assert f"{COPY} failed: operation not permitted" in printed.out
    assert "in fail" in printed.err
    assert "Summary" in printed.out


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    one = Result(OURS, 2e-3, 1.25, 1.0, 4000.0, [2e-3], p20=1.9e-3, p80=2.1e-3)
    one = one._replace(share_of_copy=0.9, peak_bytes=1024, peak_gradients=1.0)
    none = Result("big", failed="it needs some 90.0 GiB, 70.0 GiB are free", fits=False)
    report.show_times(report.Console(width=120), "", Measured([one, none], 0), "", gpu=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [OURS, "2.00", "1.25x", "1.00x", "4000.0", "90.00%", "1.90", "2.10", "1.00"] in lines
    assert ["big", "does", "not", "fit", *"-------"] in lines
    report.show_times(report.Console(width=120), "", Measured([none], 0), "", gpu=True)


def test_summary_prefers_graphs() -> None:
    def group(kind: str, graphs: bool, share: float) -> Any:
        ours = Result(OURS, times_ours=1.0, share_of_copy=share)._asdict()
        others = [Result(MASKED, times_ours=12.5, failed="raised" if graphs else None)._asdict()]
        setting = SETTING._asdict()
        return {"kind": kind, "graphs": graphs, "setting": setting, "results": [ours, *others]}

    timed = [group("training", False, 0.1), group("training", True, 0.93), group("", False, 0.2)]
    found = summary.columns([*timed, group("forward", False, 0.5)])
    assert list(found.values()) == [
        *(["float32"], ["2^9"]),
        *(["93%"], ["-"], ["50%"]),
        *(["12.50x"], ["-"], ["-"]),
    ]


def test_samples_take_turns() -> None:
    samples = Samples(SETTING, Pretended())
    assert samples.count * STEP > 4 * samples.device.cache_bytes()
    used: list[Sample] = [samples.take() for _ in range(samples.count)]
    assert len({sample.logits.data_ptr() for sample in used}) == samples.count
    assert all(torch.equal(sample.values, used[0].values) for sample in used)
    used[0].logits.grad = torch.zeros_like(used[0].logits)
    assert samples.take() is used[0]
    assert used[0].logits.grad is None
    assert Samples(Setting(2**17, 2**14, "bfloat16", "bool", 0, 1.0), Pretended()).count == 1


def test_kernels_are_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Tensor) -> None:
        raise RuntimeError("no kernel for this input: none is built for CUDA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(device, "weighted_bce_with_logits", refuse)
    assert __main__.main(["--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "none is built for CUDA" in printed.err


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
    assert gpu.free_bytes() == 7
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    sizes = ("--elements", "2^12,2^14", "--rounds", "2", "--json", str(path))
    assert __main__.main(["--device", "cuda", "--no-compile", *sizes]) == 0
    found = json.loads(path.read_text())
    assert {"GPU", "driver", "CUDA", "CUDA kernels"} <= set(found["facts"])
    assert len(found["groups"]) == 2 * 3 * 4 + 2  # sizes, dtypes
    for timed in found["groups"]:
        for row in timed["results"]:
            assert row["failed"] is None, (timed["title"], row)
            assert row["seconds"] > 0
    print(capsys.readouterr().out)
