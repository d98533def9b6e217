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

from bench import __main__, contenders, device, graphs, report, run, timing
from bench.contenders import Group
from bench.device import CPU, Cuda
from bench.losses import BY_KEY
from bench.memory import check_bytes, needed_bytes, with_most_rows
from bench.names import COPY, FORWARD, OURS, STEP
from bench.records import rows_of
from bench.samples import Sample, Samples
from bench.settings import Setting
from bench.timing import Limits, Result, measure
from weighted_bce import autograd

SETTING = Setting(8, 64, density=0.1)
BYTES = 5 * SETTING.elements  # of the logits and the target
SCALED = ["scaled", "scaled-changing"]
KEYS = [OURS, *SCALED, "inplace", "masked", "bce", "bce-float"]


class Pretended(Cuda):
    """A GPU of 1 TiB that is the CPU. Its cache holds two steps, its clock is the wall's."""

    name = "cpu"

    def __init__(self, free: int = 2**40) -> None:
        self.free = free
        self.clock = time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def cache_bytes(self) -> int:
        return 2 * BYTES

    def free_bytes(self) -> int | None:
        return self.free

    def rise_of_peak(self, work: Callable[[], object]) -> int | None:
        work()
        return 3 * SETTING.gradient_bytes

    def release(self) -> None:
        pass

    def works(self) -> bool:
        return True

    def graph(self, prepare: Callable[[], Any], work: Callable[[Any], object]) -> Any:
        return lambda: work(prepare())

    def facts(self) -> dict[str, str]:
        return {"GPU": "a pretended one", "driver": "0.0"}


def group(
    gpu: Cuda, setting: Setting = SETTING, pass_: str = STEP, **makers: Any
) -> tuple[Group, Samples]:
    """One call is one step."""
    samples = Samples(setting, gpu)
    chosen = [
        BY_KEY[key]._replace(make=makers.get(key, BY_KEY[key].make))
        for key in KEYS
        if pass_ == STEP or BY_KEY[key].only != STEP
    ]
    return contenders.group(pass_, chosen, samples), samples


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "MOST_STEPS", 1)


def by_key(results: list[Result]) -> dict[str, Result]:
    return {result.contender: result for result in results}


def test_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "find", lambda _: Pretended())
    monkeypatch.setattr(graphs, "MOST_ELEMENTS", 512)
    given = ("--shapes", "8x64,15x64", "--rounds", "2", "--out", str(tmp_path))
    against = ("--against", ",".join(["dense", "scatter", *KEYS[1:]]))
    arguments = ["--device", "cuda", "--quick", *given, "--targets", "bool,sparse", *against]
    # The name of the device that it passes for is not "cuda".
    for key in SCALED:
        monkeypatch.setitem(BY_KEY, key, BY_KEY[key]._replace(device="cpu"))
    monkeypatch.setattr("bench.losses.LOSSES", tuple(BY_KEY.values()))
    assert __main__.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "a pretended one" in printed
    assert "Times of ours" in printed
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    step = {
        "bool": [COPY, *KEYS],
        "sparse": [COPY, OURS, *SCALED, "inplace", "dense", "scatter"],
    }
    expected = []
    for size in (8, 15):
        for target, names in step.items():
            for pass_ in (STEP, FORWARD):
                of = [n for n in names if pass_ == STEP or n not in ("inplace", *SCALED)]
                expected += [(size, target, pass_, False, n) for n in of]
                if size == 8:
                    expected += [(size, target, pass_, True, n) for n in of if n in graphs.CAPTURED]
    what = ("rows", "target", "pass", "graphs", "contender")
    assert [tuple(row[k] for k in what) for row in rows] == expected
    for row in rows:
        assert row["failed"] is None
        assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
        assert (row["peak_gradients"] is None) == row["graphs"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pass_", [STEP, FORWARD])
def test_all_compute_the_same(dtype: str, pass_: str) -> None:
    """Also at another loss scale, and when replayed."""
    one, samples = group(Pretended(), Setting(16, 4096, dtype, density=0.05), pass_)
    for some in (one, graphs.replayed(one, samples)):
        failures, found = timing._checked(some, samples, lambda _: None)
        assert failures == {}
        assert OURS in found


def test_a_wrong_loss_scale_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    one, samples = group(Pretended())
    right = timing.errors.__globals__["loss_scale"]
    monkeypatch.setitem(
        timing.errors.__globals__,
        "loss_scale",
        lambda loss, setting: right(loss, setting) * (1 + 1e-5 * (loss.key == "scaled")),
    )
    failures, _ = timing._checked(one, samples, lambda _: None)
    assert [key for key, result in failures.items() if result.disagrees] == ["scaled"]


def test_percent_of_copy() -> None:
    """By the bytes that must move: a step of 2 s + t bytes for each 2 s of a copy."""
    gpu = Pretended()
    now = iter([0.0, 1.0] * 100)
    gpu.clock = lambda: next(now)  # whatever is timed takes a second
    found = by_key(measure(*group(gpu), Limits(3)).results)
    assert found[COPY].share_of_copy == 1
    assert found[OURS].share_of_copy == 9 / 8
    assert found["bce-float"].share_of_copy == 12 / 8
    assert found[OURS].gigabytes_per_second == 9 * 512 / 1e9
    assert found[OURS].peak_gradients == 3


def test_what_does_not_fit_is_not_tried() -> None:
    made, _ = group(Pretended())
    needed = {c.key: c.memory for c in made.contenders}
    inputs = 5 * 13 * 512  # samples of logits, room and two targets
    assert needed[COPY] == inputs
    assert needed[OURS] == inputs + 2 * 4 * 512  # with the gradient of the sample before
    assert needed["bce"] == inputs + 5 * 4 * 512
    gpu = Pretended(needed["bce"] + check_bytes(SETTING, CPU) - 1)
    found = by_key(measure(*group(gpu), Limits(1)).results)
    assert not found["bce"].fits
    assert "GiB are free" in str(found["bce"].failed)
    assert all(result.fits == (key != "bce") for key, result in found.items())
    assert found["masked"].seconds is not None


@pytest.mark.parametrize(
    ("setting", "element"),
    [
        (Setting(0, 2**14), 21),  # logits, room, gradients of two steps; the target twice
        (Setting(0, 2**14, "float16"), 11),
        (Setting(0, 2**14, "bfloat16", "sparse"), 9),
    ],
)
def test_the_largest_size(setting: Setting, element: int) -> None:
    """A power of two for which ours has memory, and would not have for twice as many rows."""
    gpu = Pretended(2**36)
    found = with_most_rows(setting, gpu)
    assert found == setting._replace(rows=found.rows)
    assert found.rows.bit_count() == 1
    assert 0.3 * gpu.free < found.elements * element < 0.9 * gpu.free
    assert 2 * found.elements * element > 0.89 * gpu.free
    ours = group(gpu, found)[0].contenders[1]
    assert needed_bytes(ours, found, gpu) < gpu.free


def test_shapes_of_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """No size twice, and each dtype has its own."""
    given = ["--shapes", "2^20,largest", "--dtypes", "float32,bfloat16", "--passes", "step"]
    options = __main__._parser().parse_args(["--device", "cuda", *given])
    tasks = run._tasks(options, Pretended(2**36))
    sizes = [(task.setting.dtype, task.setting.elements) for task in tasks]
    assert sizes == [
        *(("float32", 2**20), ("bfloat16", 2**20)),
        *(("float32", 2**31), ("bfloat16", 2**32)),
    ]
    once = run._tasks(options, Pretended(75 * 2**20))
    assert [task.setting.elements for task in once] == [2**20, 2**20]


def test_a_changing_loss_scale_is_never_the_expected_one() -> None:
    one, _ = group(Pretended())
    for key, surprised in (("scaled", False), ("scaled-changing", True)):
        (contender,) = (c for c in one.contenders if c.key == key)
        assert contender.steps == 1
        for _ in range(3):
            sample = contender.before()
            expected = autograd.expectation(sample.logits).item()
            contender.step(sample)
            assert (expected != 65536) == surprised
            assert autograd.expectation(sample.logits).item() == 65536


def test_nothing_is_made_where_the_inputs_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setting, "sample", lambda *_: pytest.fail("made"))
    setting = Setting(2**40, 2**20, "bfloat16", density=0.1)
    measured = measure(*group(Pretended(), setting), Limits(1))
    assert not any(result.fits for result in measured.results)
    assert not any(result.disagrees for result in measured.results)


@pytest.mark.parametrize("calls", [1, 4])
def test_out_of_memory_is_no_error(calls: int, capsys: pytest.CaptureFixture[str]) -> None:
    """In the check, or only in a later round."""
    left = [None] * (calls - 1)

    def hungry(*setting: Any) -> Callable[[Tensor, Tensor], Tensor]:
        right = BY_KEY["masked"].make(*setting)

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            if not left:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
            left.pop()
            return right(logits, target)

        return loss

    one, samples = group(Pretended(), masked=hungry)
    measured = measure(one, samples, Limits(3))
    for key, result in by_key(measured.results).items():
        assert result.fits == (key != "masked")
        assert (result.seconds is None) == (key == "masked")
    report.show_group(report.Console(width=132), "", rows_of(one, measured.results), 0)
    printed = capsys.readouterr().out
    assert "masked multiply does not fit: CUDA out of memory" in printed


def test_ours_that_fails_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others' times are shown; what is said of the failure names its place."""

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    gpu = Pretended()
    monkeypatch.setattr(gpu, "graph", fail)
    monkeypatch.setattr(run, "find", lambda _: gpu)
    given = ("--shapes", "8x64", "--rounds", "1", "--against", "bce")
    assert __main__.main(["--device", "cuda", "--quick", *given]) == 1
    printed = capsys.readouterr()
    assert "ours failed: operation not permitted" in printed.out
    assert "copy_ of the logits failed: operation not permitted" in printed.out
    assert "in fail" in printed.err
    assert "Times of ours" in printed.out


def test_a_gpu_that_has_failed_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An allocation that fails there is no lack of memory. What was measured before is kept."""
    gpu = Pretended()
    groups = [True, True]

    def works() -> bool:
        return bool(groups) and groups.pop()

    def broken(*_: Any) -> Callable[..., Tensor]:
        def loss(*_: Any) -> Tensor:
            if groups:
                return BY_KEY["bce"].make(SETTING, "cpu")(*_)
            raise RuntimeError("aoti_torch_empty_strided(...) API call failed")

        return loss

    monkeypatch.setattr(gpu, "works", works)
    monkeypatch.setattr(run, "find", lambda _: gpu)
    own = BY_KEY[OURS]._replace(make=broken)
    monkeypatch.setattr("bench.losses.LOSSES", (own, BY_KEY["bce"]))
    given = ("--shapes", "8x64,9x64,10x64,11x64", "--passes", "step", "--against", "bce")
    monkeypatch.setattr(graphs, "MOST_ELEMENTS", 0)
    arguments = ["--device", "cuda", "--rounds", "1", *given, "--out", str(tmp_path)]
    assert __main__.main(arguments) == 1
    printed = capsys.readouterr()
    assert "nothing more is measured" in printed.out
    assert "ours failed: aoti_torch_empty_strided" in printed.out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["rows"] for row in rows if row["contender"] == OURS] == [8, 9, 10]
    assert [row["fits"] for row in rows if row["contender"] == OURS] == [True] * 3


def test_graphs_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step on each sample, however many steps an eager call has."""
    monkeypatch.setattr(contenders, "MOST_STEPS", 500)
    gpu = Pretended()
    monkeypatch.setattr(gpu, "cache_bytes", lambda: 2**26)
    samples = Samples(SETTING, gpu)
    made = contenders.group(STEP, [BY_KEY["bce"]], samples)
    assert [c.steps for c in made.contenders] == [256, 256]
    calls: list[Any] = []
    counted = made.contenders[1]._replace(one_step=lambda sample: calls.append(sample))
    (replay,) = graphs.replayed(made._replace(contenders=[counted]), samples).contenders
    replay.step(replay.before())
    assert replay.steps == samples.count == 256
    assert len(calls) == 2 * samples.count
    assert len({id(sample) for sample in calls}) == samples.count


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    one = Result(OURS, 2e-3, 1.9e-3, 2.1e-3, 1.25, 1.0, 4000.0, 0.9, 1024, 1.0, 1.6e-8, 3e-7)
    none = Result("masked", failed="it needs some 90.0 GiB, 70.0 GiB are free", fits=False)
    made, _ = group(Pretended())
    report.show_group(report.Console(width=132), "", rows_of(made, [one, none]), 0)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = ["2.00", "1.90", "2.10", "1.25x", "1.00x", "4000", "90%", "1.00", "2e-08", "3e-07"]
    assert [OURS, *cells] in lines
    assert ["masked", "multiply", "does", "not", "fit", *"---------"] in lines
    report.show_group(report.Console(width=132), "", rows_of(made, [none]), 0)


def test_samples_take_turns() -> None:
    samples = Samples(SETTING, Pretended())
    assert samples.count * BYTES > 2 * samples.device.cache_bytes()
    used: list[Sample] = [samples.take() for _ in range(samples.count)]
    assert len({sample.logits.data_ptr() for sample in used}) == samples.count
    assert all(torch.equal(sample.values[0], used[0].values[0]) for sample in used)
    used[0].logits.grad = torch.zeros_like(used[0].logits)
    assert samples.take() is used[0]
    assert used[0].logits.grad is None
    assert Samples(Setting(2**17, 2**14, "bfloat16"), Pretended()).count == 1


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("--shapes", "2^14", "--dtypes", "float32,bfloat16,float16", "--rounds", "2")
    against = ("--against", ",".join([*KEYS[1:], "scatter", "dense"]))
    given = (*kinds, *against, "--targets", "bool,sparse", "--out", str(tmp_path))
    assert __main__.main(["--device", "cuda", *given]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"GPU", "driver", "CUDA", "CUDA kernels"} <= set(found["facts"])
    assert {row["graphs"] for row in found["rows"]} == {True, False}
    for row in found["rows"]:
        assert row["failed"] is None, row
        assert row["seconds"] > 0
    print(capsys.readouterr().out)
