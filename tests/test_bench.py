"""The benchmark runs as asked, and says clearly why it does not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("rich")
pytest.importorskip("psutil")

import psutil

from bench import __main__, names, run
from bench.baselines import BASELINES, BY_KEY
from bench.device import CPU
from bench.losses import LOSSES
from bench.names import AGAINST, COPY, FORWARD, OURS, PRODUCTS, STEP
from bench.settings import Setting, grids

ROOT = Path(__file__).parents[1]
SHORT = ("--quick", "--shapes", "8x50", "--passes", "step", "--rounds", "1")
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


def test_a_run_and_its_check(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is a process of its own, the checks are calls in this one."""
    kinds = ("--shapes", "64x1000,4x8x200", "--targets", "bool,sparse", "--dtypes", "float16")
    against = ("--against", ",".join([*DENSE, "fused-step", "unfused", "scatter"]))
    ran = bench("--quick", *kinds, *against, "--rounds", "2", "--out", str(tmp_path))
    assert (ran.returncode, ran.stderr) == (0, "")
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert {"command", "CPU", "torch", "weighted_bce", "threads"} <= set(results["facts"])
    layer = [PRODUCTS, OURS, "fused-step", "unfused", "masked", "bce"]
    groups = [
        (0, "bool", [COPY, OURS, *DENSE]),
        (0, "sparse", [COPY, OURS, "inplace", "scatter"]),
        (8, "bool", layer),
        (8, "sparse", [*layer, "scatter"]),
    ]
    assert [(row["features"], row["target"], row["pass"], row["baseline"]) for row in rows] == [
        (features, target, pass_, key)
        for features, target, keys in groups
        for pass_ in (STEP, FORWARD)
        for key in keys
        if BY_KEY[key].only in ("", pass_)
    ]
    for row in rows:
        is_step, is_loss = row["pass"] == STEP, row["baseline"] not in (COPY, PRODUCTS)
        is_layer = row["features"] > 0
        assert BY_KEY[row["baseline"]].name("bce") in ran.stdout
        assert (row["failed"], row["loss"], len(row["rounds"])) == (None, "bce", 2)
        assert 0 < row["p20"] <= row["seconds"] <= row["p80"]
        has = dict.fromkeys(("times_copy", "gigabytes_per_second", "share_of_copy"), not is_layer)
        has |= {"times_ours": True, "times_products": is_layer, "peak_gradients": False}
        has |= {"loss_error": is_loss, "gradient_error": is_loss and is_step}
        has |= {"beyond_bytes": is_layer and is_loss and is_step}
        assert {name: row[name] is not None for name in has} == has
    assert "4x8x200 float16 sparse 2.5% 1t step" in ran.stdout
    assert "Linear layer and loss: a step goes" in ran.stdout
    head, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == len(rows)
    assert head.startswith("rows,labels,dtype,target,density,pos_weight,threads,seed,")
    for name in ("time.svg", "time.png", "error.svg", "error.png"):
        assert (tmp_path / name).stat().st_size > 1000

    again = ("--quick", "--shapes", "64x1000", "--dtypes", "float16", "--passes", "step")
    again += ("--against", "bce", "--rounds", "2", "--check", str(tmp_path))
    monkeypatch.setattr("bench.samples.MOST", 3)
    torch.set_num_threads(1)
    # Ours was slower; it was faster; and that run is written over, which is read first.
    for factor, code, more in ((1e-3, 0, ()), (1e6, 1, ()), (1, 1, ("--out", str(tmp_path)))):
        for row in rows:
            row["times_ours"] *= factor
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert __main__.main([*again, *more]) == code
        printed = capsys.readouterr()
        assert ("better" in printed.out) == (code == 0)
        assert printed.err.count("\n") == code
        assert ("2 of 3 rows are worse" in printed.err) == (code == 1)


ROW = '{"facts": {}, "rows": [{"rows": 8, "labels": 50, "pass": "step", "graphs": false, '
ROW += '"baseline": "bce", "times_ours": %s}]}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", '{"facts": {}, "rows": [{"rows": 3}]}', "[1]", "[" * 10**5, "\xff\0"),
        *(ROW % value for value in ('"x"', "0", "-1", "NaN", "[2]")),
        ROW.replace("50", "[50]") % 2,
    ],
)
def test_results_that_are_none(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results.json").write_text(text, encoding="latin1")
    assert __main__.main(["--quick", "--check", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "holds no results of this benchmark" in printed.err


@pytest.mark.parametrize(
    ("larger", "shape", "code"),
    [
        ("64x99999999", "64x1000", 0),
        ("64x99999999", "64x999999999", 2),
        ("64x128x2812281", "64x1000", 0),
    ],
)
def test_what_does_not_fit_is_left_out(
    larger: str, shape: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Where nothing else was measured, the exit code says so."""
    memory = SimpleNamespace(available=2**28)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    given = ["--quick", "--rounds", "1", "--passes", "forward", "--against", "bce"]
    assert __main__.main([*given, "--shapes", f"{larger},{shape}"]) == code
    printed = capsys.readouterr()
    assert "weighted_bce does not fit: it needs about" in printed.out
    assert ("64 x 1,000 float32" in printed.out) == (code == 0)
    assert ("nothing that was asked for fits in memory" in printed.err) == (code == 2)


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="no signals")
def test_an_interrupted_run_keeps_what_is_done(tmp_path: Path) -> None:
    kinds = ("--shapes", "64x1000,1024x16384", "--passes", "step", "--against", "bce")
    command = [sys.executable, "-m", "bench", *kinds, "--rounds", "9999", "--seconds", "1"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=-1,
        stderr=-1,
        text=True,
        # A program that a shell has started in the background ignores this signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        results, until = tmp_path / "results.json", time.monotonic() + 120
        while not results.exists() and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "python -m bench: interrupted\n")
    assert "Time of weighted_bce" in out
    rows = json.loads(results.read_text())["rows"]
    assert [row["baseline"] for row in rows] == [COPY, OURS, "bce"]
    assert (tmp_path / "time.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda"), ("cuda", "cpu")),
        (("--loss", "hinge"), ("--loss", "'hinge'", "bce")),
        (("--device", "tpu"), ("--device", "'tpu'", "cuda")),
        (("--shapes", "0x5"), ("--shapes", "'0x5'", "1024x16384")),
        (("--shapes", "3^2"), ("--shapes", "'3^2'", "2^20")),
        (("--shapes", "2^-1"), ("--shapes", "'2^-1'")),
        (("--shapes", "2^63"), ("--shapes", "'2^63'")),
        (("--shapes", "1e3"), ("--shapes", "'1e3'")),
        (("--shapes", "8x4x"), ("--shapes", "'8x4x'", "256x256x131072")),
        (("--shapes", "8x4x16x2"), ("--shapes", "'8x4x16x2'")),
        (("--density", "0.1,2"), ("--density", "0 to 1", "'2'")),
        (("--pos-weight", "-1"), ("--pos-weight", "from 0 to 1e+09")),
        (("--dtypes", "float32,int8"), ("--dtypes", "float32", "'int8'")),
        (("--targets", "dense"), ("--targets", "sparse", "'dense'")),
        (("--passes", "backward"), ("--passes", "forward", "'backward'")),
        (("--against", "bce,tf"), ("--against", "masked", "'tf'")),
        (("--threads", "0"), ("--threads", "'0'")),
        (("--seed", "-1"), ("--seed", "'-1'")),
        (("--busy", "-1"), ("--busy", "whole number from 0", "'-1'")),
        (("--busy", "2.5"), ("--busy", "whole number from 0", "'2.5'")),
        (("--rounds", "few"), ("--rounds", "'few'")),
        (("--seconds", "0"), ("--seconds", "'0'")),
        (("--out", "/dev/null/folder"), ("--out", "cannot write")),
        (("--check", "no/such/file"), ("--check", "'no/such/file'")),
        (("--fast",), ("--fast",)),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], words: tuple[str, ...], capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        code = __main__.main(arguments)
    except SystemExit as end:
        code = int(str(end.code))
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith("python -m bench: ")
    assert all(word in printed.err for word in words)


def tasks(*arguments: str) -> dict[Setting, list[str]]:
    return run.tasks_of(__main__.parser().parse_args(["--quick", *arguments]), CPU)


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        (("--shapes", "2^20, 2^28"), [(64, 16384), (16384, 16384)]),
        (("--shapes", "2^31"), [(131072, 16384)]),
        (("--shapes", "100,8x16,8x2^4"), [(1, 100), (8, 16)]),
        (("--dtypes", "float64"), [(1024, 16384)]),
        ((), [(1024, 16384), (128, 131073), (8, 16), (64, 128, 32768)]),
        (("--passes", "forward"), [(1024, 16384)]),
        (("--shapes", "4x2^3x100,8x16"), [(8, 16), (4, 8, 100)]),
    ],
)
def test_sizes(arguments: tuple[str, ...], shapes: list[tuple[int, ...]]) -> None:
    assert [setting.sizes for setting in tasks(*arguments)] == shapes


def test_all_combinations_of_what_is_asked_for() -> None:
    given = ("--shapes", "4x8,8x4", "--targets", "bool,sparse", "--density", "0,0.5")
    all_of_them = tasks(*given, "--threads", "1,2", "--seed", "3")
    assert (len(all_of_them), {setting.seed for setting in all_of_them}) == (16, {3})


@pytest.mark.parametrize(
    ("arguments", "target", "positives"),
    [((), "sparse", 5), (("--targets", "bool"), "bool", 5), (("--density", "0.5"), "sparse", 50)],
)
def test_labels_of_layers(arguments: tuple[str, ...], target: str, positives: int) -> None:
    ((setting, passes),) = tasks("--shapes", "4x8x100", *arguments).items()
    assert passes == [STEP, FORWARD]
    assert (setting.target, setting.positives_per_row) == (target, positives)


@pytest.mark.parametrize(("device", "labels", "most"), [("cpu", 5, 2**28), ("cuda", 3, 2**31)])
def test_the_full_grids(device: str, labels: int, most: int) -> None:
    """A test of the pictures holds which values an axis has on a CPU."""
    settings = [s for grid in grids(device, quick=False) for s in grid.settings()]
    layers = [s for s in settings if s.features]
    assert max(s.elements for s in settings if not s.features) == most
    assert {s.threads for s in settings} >= {torch.get_num_threads()}
    assert all(s.is_sparse and s.positives_per_row == 5 for s in layers)
    assert len({s.labels for s in layers}) >= labels
    if device == "cpu":  # from small classifiers up
        sizes = {(32, 128, 28), (64, 128, 512), (128, 128, 4096), (128, 128, 18154)}
        assert {s.sizes for s in layers} >= sizes | {(64, 128, 2812281)}


def test_the_names_on_the_command_line() -> None:
    assert tuple(one.key for one in BASELINES if one.is_optional) == AGAINST
    assert tuple(LOSSES) == names.LOSSES
    assert len(BY_KEY) == len(BASELINES)


def test_a_wrong_baseline_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", lambda x, *_, **__: 2 * x)
    assert __main__.main([*SHORT, "--against", "masked"]) == 1
    printed = capsys.readouterr()
    assert "masked multiply failed: the loss is" in printed.out
    assert "something else" in printed.err


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It says what is measured, and leaves each line of the tables alone."""
    tables = []
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        monkeypatch.setenv(name, "1")
        assert __main__.main([*SHORT, "--against", "bce"]) == 0
        printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
        is_terminal = name == "FORCE_COLOR"
        for bar in ("8x50 float32 bool 0.5% 1t step: F.bce_with_logits", " 0/1 "):
            assert (bar in printed) == is_terminal
        lines = re.split(r"[\r\n]+", printed)
        tables.append([re.sub(r"[\d.*]+", "", line).split() for line in lines if " to " in line])
    assert tables[0] == tables[1] != []
