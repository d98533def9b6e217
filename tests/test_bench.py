"""The benchmark runs, compares only what agrees, and says clearly why it does not run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, contenders, losses, report, run, timing
from bench.contenders import BOOL, COPY, NO_POSITIVES, RELEASED, TORCH_READY
from bench.device import CPU
from bench.group import Group
from bench.losses import COMPILED, INPLACE, MASKED, OURS, SCATTER, TORCH, Setting
from bench.samples import Samples
from bench.timing import measure

ROOT = Path(__file__).parents[1]
TRAINING = [COPY, OURS, RELEASED, INPLACE, MASKED, TORCH, TORCH_READY]
SETTING = Setting(6, 50, "float32", "bool", 0.1, 7.0)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # tiny inputs: threads would only wait
        capture_output=True,
        text=True,
    )


def test_quick_run(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    shape = ("--rows", "64", "--labels", "1000")
    ran = bench("--quick", *shape, "--rounds", "2", "--no-compile", "--json", str(path))
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    found = json.loads(path.read_text())
    assert {"CPU", "torch", "weighted_bce", "threads"} <= set(found["facts"])
    train, forward, *small = found["groups"]
    assert train["setting"] == Setting(64, 1000, "float32", "bool", 0.005, 7.0)._asdict()
    sparse = [COPY, OURS, NO_POSITIVES, BOOL, SCATTER]
    expected = [TRAINING, [COPY, OURS, MASKED, TORCH], sparse, [OURS, TORCH], [OURS, TORCH]]
    for group, names in zip((train, forward, *small), expected, strict=True):
        assert group["title"] in ran.stdout.replace("\n", " ")
        assert [row["contender"] for row in group["results"]] == names
        for row in group["results"]:
            assert row["contender"] in ran.stdout
            _check_numbers(row, COPY in names)
    names = [OURS, INPLACE, MASKED, TORCH, OURS, SCATTER]
    assert [row["contender"] for row in found["memory"]] == names


def _check_numbers(row: dict[str, Any], against_copy: bool) -> None:
    assert row["failed"] is None
    assert len(row["rounds"]) == 2
    keys = ["seconds", "times_ours"]
    keys += ["times_copy", "gigabytes_per_second"] if against_copy else []
    assert all(row[key] > 0 for key in keys)
    if row["contender"] == OURS:
        assert row["times_ours"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda"), ("cuda", "cpu")),
        (("--device", "tpu"), ("--device", "'tpu'", "cuda")),
        (("--rows", "0"), ("--rows", "'0'")),
        (("--elements", "2^20,"), ("--elements", "''")),
        (("--elements", "3^2"), ("--elements", "'3^2'", "2^20")),
        (("--elements", "2^63"), ("--elements", "'2^63'")),
        (("--elements", "0"), ("--elements", "'0'")),
        (("--elements", "8", "--rows", "8"), ("--elements", "--rows")),
        (("--labels", "1e3"), ("--labels", "'1e3'")),
        (("--density", "2"), ("--density", "0 to 1")),
        (("--density", "nan"), ("--density", "'nan'")),
        (("--pos-weight", "-1"), ("--pos-weight", "at least 0")),
        (("--dtype", "int8"), ("--dtype", "float32")),
        (("--rounds", "few"), ("--rounds", "'few'")),
        (("--json", "no/such/folder"), ("--json", "No such file")),
        (("--fast",), ("--fast",)),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        code = __main__.main(arguments)
    except SystemExit as end:
        code = int(str(end.code))
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("python -m bench: ")
    assert printed.err.count("\n") == 1
    assert all(word in printed.err for word in words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_kernels_for_cuda_is_one_line_and_exit_code_2() -> None:
    ran = bench("--device", "cuda")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        (("--elements", "2^20, 2^28"), [(64, 16384), (16384, 16384)]),
        (("--elements", "2^31"), [(131072, 16384)]),
        (("--elements", "2^12,3000", "--labels", "1000"), [(4, 1000), (3, 1000)]),
        (("--elements", "100"), [(1, 100)]),
        (("--rows", "3"), [(3, 16384)]),
        ((), [(1024, 16384)]),
    ],
)
def test_sizes(arguments: tuple[str, ...], shapes: list[tuple[int, int]]) -> None:
    options = __main__._parser().parse_args(["--quick", *arguments])
    settings = run._settings(options, CPU)
    assert [(setting.rows, setting.labels) for setting in settings] == shapes


def test_what_does_not_fit_in_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--rows", str(10**9), "--labels", str(10**6)]) == 2
    assert "GiB" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["bool", "int64", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_agree(dtype: str, target: str) -> None:
    setting = Setting(300, 700, dtype, target, 0.05, 7.0)
    functions = losses.losses(setting, compiled=False)
    for make in (contenders.training, contenders.forward):
        group = Group("", setting, make(functions, Samples(setting)))
        assert timing.check(group) == {}
    setting = setting._replace(target="sparse")
    group = Group("", setting, contenders.sparse(losses.losses(setting), Samples(setting)))
    assert timing.check(group) == {}


def _with(function: Callable[[Tensor, Tensor], Tensor]) -> Group:
    functions = {**losses.losses(SETTING, compiled=False), COMPILED: function}
    return Group("", SETTING, contenders.training(functions, Samples(SETTING)))


def other_loss(logits: Tensor, target: Tensor) -> Tensor:
    p = torch.tensor(7.01)
    return F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=p)


def other_gradient(logits: Tensor, target: Tensor) -> Tensor:
    loss = losses.losses(SETTING, compiled=False)[TORCH](logits, target)
    return loss + 1e-3 * (loss - loss.detach())


def not_a_number(logits: Tensor, target: Tensor) -> Tensor:
    return losses.losses(SETTING, compiled=False)[TORCH](logits, target) + 0 * logits.log().sum()


@pytest.mark.parametrize(
    ("function", "what"),
    [(other_loss, "loss"), (other_gradient, "gradient"), (not_a_number, "loss")],
)
def test_what_disagrees_is_not_timed(
    function: Callable[[Tensor, Tensor], Tensor], what: str
) -> None:
    *others, wrong = measure(_with(function), 1).results
    assert wrong.disagrees
    assert wrong.seconds is None
    assert wrong.failed is not None
    assert wrong.failed.startswith(f"the {what} differs")
    assert not any(result.disagrees for result in others)


def test_disagreement_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "peak_bytes", lambda *_: None)  # saves four processes
    monkeypatch.setattr(contenders, "SMALL_STEPS", 1)
    monkeypatch.setattr(losses, "masked_multiply", lambda logits, target, weight: logits.sum())
    shape = ["--rows", "8", "--labels", "50"]
    assert __main__.main(["--quick", *shape, "--rounds", "1", "--no-compile"]) == 1
    printed = capsys.readouterr()
    assert f"{MASKED} failed: the loss differs" in printed.out
    assert "disagree" in printed.err


def test_what_fails_is_reported_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("backend raised:\nno [compiler]\nat line 3")

    measured = measure(_with(broken), 1)
    *others, failed = measured.results
    assert (failed.contender, failed.failed, failed.seconds) == (COMPILED, "no [compiler]", None)
    assert not failed.disagrees
    assert all(result.seconds is not None for result in others)
    report.show_times(report.Console(), "", measured._replace(taken=0.5), "")
    printed = capsys.readouterr().out
    assert f"{COMPILED} failed: no [compiler]" in printed
    assert "Other programs took 50% of the CPU" in printed


def test_ratios_are_of_each_round() -> None:
    """A round in which the whole machine is slow does not count twice."""
    assert timing.median_ratio([2.0, 40.0, 9.0], [1.0, 20.0, 3.0]) == 2.0
    assert timing.median_ratio([1.0], None) is None


def test_percentiles() -> None:
    assert timing.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 5.0)
    assert timing.percentiles([7.0]) == (7.0, 7.0)
