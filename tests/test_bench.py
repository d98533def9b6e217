"""The benchmark runs, times only what is right, and says clearly why it does not run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("rich")
pytest.importorskip("psutil")

import psutil

from bench import __main__, contenders, losses, report, run, timing
from bench.contenders import Group
from bench.device import CPU
from bench.losses import BY_KEY, LOSSES, fitting, lack
from bench.names import AGAINST, COPY, FORWARD, OURS, STEP
from bench.records import rows_of
from bench.samples import Samples
from bench.settings import Setting, grids
from bench.timing import Limits, measure

ROOT = Path(__file__).parents[1]
SETTING = Setting(6, 50, density=0.1)
DENSE = ["inplace", "masked", "bce", "bce-float", "bce-plain"]


def bench(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # tiny inputs: threads would only wait
        capture_output=True,
        text=True,
        **options,
    )


def test_a_run_and_its_check(tmp_path: Path) -> None:
    kinds = ("--shapes", "64x1000,16x16384", "--targets", "bool,sparse", "--dtypes", "float16")
    against = ("--against", ",".join([*DENSE, "scatter"]))
    given = ("--quick", *kinds, *against, "--rounds", "2", "--out", str(tmp_path))
    ran = bench(*given)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"command", "CPU", "torch", "weighted_bce", "threads"} <= set(found["facts"])
    dense, sparse = [COPY, OURS, *DENSE], [COPY, OURS, "inplace", "scatter"]
    groups = [
        (rows, labels, target, pass_, [n for n in names if pass_ == STEP or n != "inplace"])
        for rows, labels in ((64, 1000), (16, 16384))
        for target, names in (("bool", dense), ("sparse", sparse))
        for pass_ in (STEP, FORWARD)
    ]
    expected = [(*what, name) for *what, names in groups for name in names]
    what = ("rows", "labels", "target", "pass", "contender")
    assert [tuple(row[k] for k in what) for row in found["rows"]] == expected
    for row in found["rows"]:
        assert report.NAMES[row["contender"]] in ran.stdout
        assert row["failed"] is None
        assert len(row["rounds"]) == 2
        assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
        assert all(row[key] > 0 for key in ("times_ours", "times_copy", "share_of_copy"))
        assert (row["loss_error"] is None) == (row["contender"] == COPY)
        assert (row["gradient_error"] is None) == (row["contender"] == COPY or row["pass"] != STEP)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + len(expected)
    assert lines[0].startswith("rows,labels,dtype,target,density,pos_weight,threads,seed,pass")
    for name in ("time", "error"):
        for kind in ("svg", "png"):
            assert (tmp_path / f"{name}.{kind}").stat().st_size > 1000

    for row in found["rows"]:
        row["times_ours"] /= 1000  # of an ours that was slower
    (tmp_path / "results.json").write_text(json.dumps(found))
    again = ("--quick", "--shapes", "64x1000", "--dtypes", "float16", "--passes", "step")
    again += ("--against", "bce", "--rounds", "2", "--check", str(tmp_path))
    ran = bench(*again)  # which leaves the earlier results as they are
    assert ran.returncode == 0, ran.stderr
    assert "better" in ran.stdout
    for row in found["rows"]:
        row["times_ours"] *= 1e6
    (tmp_path / "results.json").write_text(json.dumps(found))
    ran = bench(*again)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "2 of 3 rows are worse" in ran.stderr
    ran = bench(*again, "--out", str(tmp_path))  # over the earlier ones, read first
    assert "2 of 3 rows are worse" in ran.stderr


@pytest.mark.parametrize("text", ["", "{}", '{"facts": {}, "rows": [{"rows": 3}]}', "[1]"])
def test_results_that_are_none(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results.json").write_text(text)
    assert __main__.main(["--quick", "--check", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "holds no results of this benchmark" in printed.err


def test_no_loss_at_all_is_wrong_in_half_precision() -> None:
    """Although its sums may be off by more than float32's."""
    setting = Setting(16, 2**16, "bfloat16")
    nothing = BY_KEY["bce"]._replace(make=lambda *_: lambda logits, _: 0 * logits.sum())
    samples = Samples(setting)
    group = contenders.group(FORWARD, [nothing, BY_KEY["masked"]], samples)
    failures, _ = timing._checked(group, samples, lambda _: None)
    assert list(failures) == ["bce"]
    assert failures["bce"].disagrees


def test_a_default_shape_that_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    memory = SimpleNamespace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert __main__.main(["--quick", "--rounds", "1", "--against", "bce"]) == 0
    printed = capsys.readouterr().out
    assert "skipped: 1024x16384 needs" in printed
    assert "8 x 16" in printed


def test_peak_memory() -> None:
    from bench.peak import peak_bytes

    setting = Setting(64, 2**15)
    for key, gradients in ((OURS, 1), ("inplace", 0), ("bce", 4)):
        found = peak_bytes(key, setting)
        assert found is not None
        assert abs(found / setting.gradient_bytes - gradients) < 0.3
    assert peak_bytes("scatter", setting) is None  # it fails, for want of sparse labels


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="no signals")
def test_an_interrupted_run_keeps_what_is_done(tmp_path: Path) -> None:
    kinds = ("--shapes", "64x1000,1024x16384", "--passes", "step", "--against", "bce")
    command = [sys.executable, "-m", "bench", *kinds, "--rounds", "9999", "--seconds", "1"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)], cwd=ROOT, stdout=-1, stderr=-1, text=True
    ) as child:
        found = tmp_path / "results.json"
        until = time.monotonic() + 120
        while not (found.exists() and found.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == "python -m bench: interrupted\n"
    assert "Times of ours" in out
    assert [row["contender"] for row in json.loads(found.read_text())["rows"]] == [
        COPY,
        OURS,
        "bce",
    ]
    assert (tmp_path / "time.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda"), ("cuda", "cpu")),
        (("--device", "tpu"), ("--device", "'tpu'", "cuda")),
        (("--shapes", "0x5"), ("--shapes", "'0x5'", "1024x16384")),
        (("--shapes", "2^20,"), ("--shapes", "''")),
        (("--shapes", "3^2"), ("--shapes", "'3^2'", "2^20")),
        (("--shapes", "2^63"), ("--shapes", "'2^63'")),
        (("--shapes", "1e3"), ("--shapes", "'1e3'")),
        (("--density", "0.1,2"), ("--density", "0 to 1", "'2'")),
        (("--density", "nan"), ("--density", "'nan'")),
        (("--pos-weight", "-1"), ("--pos-weight", "at least 0")),
        (("--dtypes", "float32,int8"), ("--dtypes", "float32", "'int8'")),
        (("--targets", "dense"), ("--targets", "sparse", "'dense'")),
        (("--passes", "backward"), ("--passes", "forward", "'backward'")),
        (("--against", "bce,tf"), ("--against", "masked", "'tf'")),
        (("--threads", "0"), ("--threads", "'0'")),
        (("--seed", "-1"), ("--seed", "'-1'")),
        (("--rounds", "few"), ("--rounds", "'few'")),
        (("--seconds", "0"), ("--seconds", "'0'")),
        (("--tolerance", "inf"), ("--tolerance", "'inf'")),
        (("--out", "/dev/null/folder"), ("--out", "cannot write")),
        (("--check", "no/such/file"), ("--check", "'no/such/file'")),
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


def options(*arguments: str) -> Any:
    return __main__._parser().parse_args(["--quick", *arguments])


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        (("--shapes", "2^20, 2^28"), [(64, 16384), (16384, 16384)]),
        (("--shapes", "2^31"), [(131072, 16384)]),
        (("--shapes", "100,8x16,8x2^4"), [(1, 100), (8, 16)]),
        (("--dtypes", "float64"), [(1024, 16384)]),
        ((), [(1024, 16384), (512, 131073), (8, 16)]),
        (("--passes", "forward"), [(1024, 16384)]),
    ],
)
def test_sizes(arguments: tuple[str, ...], shapes: list[tuple[int, int]]) -> None:
    tasks = run._tasks(options(*arguments), CPU)
    assert [(task.setting.rows, task.setting.labels) for task in tasks] == shapes


def test_all_combinations_of_what_is_asked_for() -> None:
    given = ("--shapes", "4x8,8x4", "--targets", "bool,sparse", "--density", "0,0.5")
    tasks = list(run._tasks(options(*given, "--threads", "1,2", "--seed", "3"), CPU))
    kinds = {task.setting[:5] + task.setting[6:] for task in tasks}
    assert len(tasks) == len(kinds) == 16
    assert {task.setting.seed for task in tasks} == {3}


def test_the_full_grids_follow_every_axis() -> None:
    on_cpu = [s for grid in grids("cpu", quick=False) for s in grid.settings(7.0, 0)]
    assert {s.elements for s in on_cpu} >= {2**n for n in range(10, 29, 2)}
    assert {s.labels for s in on_cpu} >= {10**n for n in range(2, 7)}
    assert {s.density for s in on_cpu} >= {0, 0.5}
    assert {s.threads for s in on_cpu} == set(range(1, torch.get_num_threads() + 1))
    on_cuda = [s for grid in grids("cuda", quick=False) for s in grid.settings(7.0, 0)]
    assert max(s.elements for s in on_cuda) == 2**31


def test_what_does_not_fit_in_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--shapes", f"{10**9}x{10**6}"]) == 2
    assert "GiB" in capsys.readouterr().err


def test_the_names_on_the_command_line() -> None:
    assert tuple(loss.key for loss in LOSSES) == (OURS, *AGAINST)


@pytest.mark.parametrize("target", ["bool", "int64", "float", "sparse"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_all_compute_the_same(dtype: str, target: str) -> None:
    """Against float64, step and forward; what compiles is in a test of its own."""
    setting = Setting(300, 700, dtype, target, 0.05)
    for pass_ in (STEP, FORWARD):
        chosen = [
            loss
            for loss in fitting(setting, pass_, "cpu")
            if not (loss.compiles or lack(loss.needs))
        ]
        samples = Samples(setting)
        group = contenders.group(pass_, chosen, samples)
        failures, found = timing._checked(group, samples, lambda _: None)
        assert failures == {}
        assert len(found) == len(chosen)


def test_what_is_compiled_computes_the_same() -> None:
    chosen = [loss for loss in LOSSES if loss.compiles]
    samples = Samples(SETTING)
    group = contenders.group(STEP, chosen, samples)
    assert timing._checked(group, samples, lambda _: None)[0] == {}


EDGES = (
    SETTING,
    Setting(8, 64, "float64", density=0.0),
    Setting(8, 64, density=1.0, pos_weight=0.0),
)


@pytest.mark.parametrize("setting", EDGES)
def test_errors_are_against_float64(setting: Setting) -> None:
    samples = Samples(setting)
    group = contenders.group(STEP, [BY_KEY[OURS], BY_KEY["bce"]], samples)
    _, found = timing._checked(group, samples, lambda _: None)
    eps = torch.finfo(getattr(torch, setting.dtype)).eps
    for error in found.values():
        assert 0 <= error.loss < 2 * eps
        assert error.gradient is not None
        assert 0 <= error.gradient < 100 * eps
    x = samples.take().values.double().requires_grad_()
    y, p = samples.take().ready.double(), torch.tensor(setting.pos_weight, dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(x, y, pos_weight=p)
    known = timing.truth(samples.take(), setting.pos_weight, True)
    assert known.loss == pytest.approx(loss.item(), rel=1e-14)
    slope = torch.autograd.grad(loss, x)[0].flatten()
    torch.testing.assert_close(known.gradient, slope, rtol=1e-12, atol=1e-17)


def with_loss(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Group, Samples]:
    samples = Samples(SETTING)
    other = BY_KEY["timm"]._replace(make=lambda *_: function)
    chosen = [BY_KEY[key] for key in (OURS, "masked", "bce")]
    return contenders.group(STEP, [*chosen, other], samples), samples


def right_loss(logits: Tensor, target: Tensor) -> Tensor:
    return losses.bce(SETTING, "cpu")(logits, target)


def other_loss(logits: Tensor, target: Tensor) -> Tensor:
    p = torch.tensor(7.01)
    return F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=p)


def other_gradient(logits: Tensor, target: Tensor) -> Tensor:
    loss = right_loss(logits, target)
    return loss + 1e-3 * (loss - loss.detach())


def not_a_number(logits: Tensor, target: Tensor) -> Tensor:
    return right_loss(logits, target) + 0 * logits.log().sum()


@pytest.mark.parametrize(
    ("function", "what"),
    [(other_loss, "loss"), (other_gradient, "gradient"), (not_a_number, "loss")],
)
def test_what_is_wrong_is_not_timed(
    function: Callable[[Tensor, Tensor], Tensor], what: str
) -> None:
    *others, wrong = measure(*with_loss(function), Limits(1)).results
    assert wrong.disagrees
    assert wrong.seconds is None
    assert wrong.failed is not None
    assert wrong.failed.startswith(f"the {what} is")
    assert not any(result.disagrees for result in others)


def test_a_wrong_contender_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", lambda x, *_, **__: x.sum())
    given = ["--quick", "--shapes", "8x50", "--rounds", "1", "--against", "bce"]
    assert __main__.main(given) == 1
    printed = capsys.readouterr()
    assert "F.bce_with_logits failed: the loss is" in printed.out
    assert "something else" in printed.err


def test_what_fails_is_reported_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("backend raised:\nno [compiler]\nat line 3")

    group, samples = with_loss(broken)
    measured = measure(group, samples, Limits(1))
    *others, failed = measured.results
    assert (failed.contender, failed.failed, failed.seconds) == ("timm", "no [compiler]", None)
    assert not failed.disagrees
    assert all(result.seconds is not None for result in others)
    report.show_group(report.Console(), "", rows_of(group, measured.results), 0.5)
    printed = capsys.readouterr().out
    assert "timm BinaryCrossEntropy failed: no [compiler]" in printed
    assert "Other programs took 50% of the CPU" in printed


def test_what_is_faster_than_ours_is_marked() -> None:
    head = {"failed": None, "fits": True}
    faster = {**head, "contender": "bce", "times_ours": 0.95}
    assert report.ratio(faster) == "0.95x*"
    assert report.ratio({**faster, "times_ours": 1.05}) == "1.05x"
    assert report.ratio({**faster, "contender": COPY}) == "0.95x"


def test_rounds_end_with_the_time() -> None:
    group, samples = with_loss(right_loss)
    for limits, rounds in ((Limits(3), 3), (Limits(9, 0.0), 5)):
        results = measure(group, samples, limits).results
        assert {len(result.rounds) for result in results} == {rounds}


@pytest.mark.parametrize("package", [None, "raise RuntimeError('of another torch')"])
def test_what_cannot_be_imported_is_skipped_by_name(
    package: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    name, why = "not_there", "not_there is not installed"
    if package is not None:
        name, why = "broken_one", "broken_one does not import: of another torch"
        (tmp_path / f"{name}.py").write_text(package)
        monkeypatch.syspath_prepend(tmp_path)
    changed = tuple(loss._replace(needs=name) if loss.key == "timm" else loss for loss in LOSSES)
    monkeypatch.setattr(losses, "LOSSES", changed)
    monkeypatch.setattr(run, "LOSSES", changed)
    given = ["--quick", "--shapes", "8x50", "--rounds", "1", "--against", "timm,bce"]
    assert __main__.main(given) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"timm BinaryCrossEntropy: skipped, {why}" in printed
    assert "torchvision" not in printed.partition("Times of ours")[0]


def focal_loss(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> Any:
    """As torchvision documents it."""
    matrix = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    assert (gamma, reduction) == (0.0, "mean")
    return ((alpha * targets + (1 - alpha) * (1 - targets)) * matrix).mean()


def test_what_torchvision_would_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed."""
    pretended = SimpleNamespace(sigmoid_focal_loss=focal_loss)
    monkeypatch.setattr(losses, "import_module", lambda _: pretended)
    samples = Samples(SETTING)
    group = contenders.group(STEP, [BY_KEY["torchvision"]], samples)
    assert timing._checked(group, samples, lambda _: None)[0] == {}


def test_ratios_are_of_each_round() -> None:
    """A round in which the whole machine is slow does not count twice."""
    assert timing.median_ratio([2.0, 40.0, 9.0], [1.0, 20.0, 3.0]) == 2.0
    assert timing.median_ratio([1.0], None) is None


def test_percentiles() -> None:
    assert timing.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 5.0)
    assert timing.percentiles([7.0]) == (7.0, 7.0)
