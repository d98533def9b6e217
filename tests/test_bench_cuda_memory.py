"""What fits in the memory of a GPU is measured, and what fails there is told from what does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, contenders, graphs, report, run
from bench.device import CPU
from bench.losses import BY_KEY
from bench.memory import check_bytes, needed_bytes, with_most_rows
from bench.names import COPY, OURS
from bench.records import rows_of
from bench.settings import Setting
from bench.timing import Limits, measure

from .test_bench_cuda import SETTING, Pretended, by_key, group


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "MOST_STEPS", 1)


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


def test_samples_of_the_pass_before_count_once() -> None:
    """They are in memory, and so no longer in what is free."""
    gpu = Pretended()
    one, samples = group(gpu)
    measure(one, samples, Limits(1))
    bce = next(c for c in one.contenders if c.key == "bce")
    held = samples.bytes + sum(sample.gradients_bytes for sample in samples._made)
    assert samples.held_bytes == held > samples.bytes
    gpu.free = needed_bytes(bce, SETTING, gpu) - held
    assert all(result.fits for result in measure(one, samples, Limits(1)).results)
    gpu.free = needed_bytes(bce, SETTING, gpu) - samples.held_bytes - 1
    results = by_key(measure(one, samples, Limits(1)).results)
    assert [key for key, result in results.items() if not result.fits] == ["bce"]


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
    found = with_most_rows(setting, gpu)
    assert found == setting._replace(rows=found.rows)
    assert found.rows.bit_count() == 1
    assert 0.3 * gpu.free < found.elements * element < 0.9 * gpu.free
    assert 2 * found.elements * element > 0.89 * gpu.free
    ours = group(gpu, found)[0].contenders[1]
    assert needed_bytes(ours, found, gpu) < gpu.free


def test_shapes_of_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dtype has its own, and no size is measured twice."""
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


def test_a_gpu_that_has_failed_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An allocation that fails there does not show that memory is short; results are kept."""
    gpu = Pretended()
    groups = [True, True]

    def works() -> bool:
        return bool(groups) and groups.pop()

    def broken(*_: Any) -> Callable[..., Tensor]:
        def loss(*_: Any) -> Tensor:
            if groups:
                return BY_KEY["bce"].make(SETTING, "cpu")(*_)
            raise RuntimeError("torch failed to allocate a tensor")

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
    assert "ours failed: torch failed to allocate a tensor" in printed.out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["rows"] for row in rows if row["contender"] == OURS] == [8, 9, 10]
    assert [row["fits"] for row in rows if row["contender"] == OURS] == [True] * 3
