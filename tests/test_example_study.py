"""The pictures and tables of docs/which_loss.md are those of examples/results."""

import json
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from examples import study

PAGE = study.ROOT / "docs" / "which_loss.md"


def result(loss: str, prior: bool, f1s: tuple[float, ...], validation: float) -> dict:
    """What examples.report writes of one loss, as far as it is read here."""
    predictions = {"precision": 0.5, "recall": 0.25, "f1": 0.3, "macro_f1": 0.2}
    predictions |= {"per_row": 2.0, "empty_rows": 0.125}
    calibration = {"per_row": 3.0, "error": 0.5}
    undone = {"at_half": predictions, "calibration": calibration} if "weight" in loss else None
    of_seeds = [
        {
            "at_half": predictions,
            "at_best": predictions | {"f1": f1},
            "validation_f1": validation,
            "mean_average_precision": 0.4,
            "precision_at_1": 0.9,
            "precision_at_5": 0.7,
            "calibration": calibration,
            "undone": undone,
        }
        for f1 in f1s
    ]
    bins = {"pairs": [100.0, 50.0], "expected": [10.0, 40.0], "true": [20.0, 30.0]}
    mean = of_seeds[0] | {"calibration": calibration | bins}
    if undone:
        mean["undone"] = undone | {"calibration": calibration | bins}
    kind = {"plain BCE": "plain", "ours, Focal": "focal"}.get(loss, "weighted")
    weight = {"plain": 1.0, "weighted": 7.0}.get(kind)
    shared = {"loss": loss, "kind": kind, "pos_weight": weight, "prior": prior}
    return {**shared, "quality": mean, "qualities": of_seeds}


def write(path: Path, rate: float, f1s: tuple[float, ...], validation: float) -> None:
    losses = [
        result(loss, prior, f1s, validation)
        for loss in ("plain BCE", study.SAME, "ours, weight 7", "ours, Focal")
        for prior in (False, True)
    ]
    run = {"learning_rate": rate, "true_per_row": 4.0, "losses": losses}
    path.write_text(json.dumps(run))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RESULTS", "PICTURES"):
        monkeypatch.setattr(study, name, tmp_path)
    for name in study.DATA:
        write(tmp_path / f"{name}.json", 0.02, (0.25, 0.75), 0.5)
    write(tmp_path / "debian-0.005.json", 0.005, (0.5, 0.5), 0.6)
    return tmp_path


@pytest.mark.usefixtures("folders")
def test_tables_show_means_and_the_rate_that_validation_rows_chose() -> None:
    at_0_02, chosen = (study.chosen(study.read(name)) for name in study.DATA)
    assert [one["loss"] for one in chosen[::2]] == ["plain BCE", "ours, weight 7", "ours, Focal"]
    *_, row = study.table_of_rankings("files", at_0_02).splitlines()
    assert row.startswith("| Focal | 0.500 ±.354 | 0.500 ±.354 | 0.200 ±.000 |")
    *_, row = study.table_of_rankings("tags", chosen).splitlines()
    assert row.startswith("| Focal | 0.500 ±.000 | 0.500 ±.000 |")
    *_, row = study.table_of_rates("tags", chosen).splitlines()
    assert row == "| Focal | 0.005 | 0.005 |"
    *_, weighted, focal = study.table_at_half("tags", chosen).splitlines()
    assert weighted == "| weight 7 | 0.500 | 0.250 | 2.00 | 12.5% | 3.00 | 0.50 | 3.00 | 0.50 |"
    assert focal.endswith("| 3.00 | 0.50 | - | - |")


def test_pictures_repeat_themselves(folders: Path) -> None:
    drawn = []
    for _ in range(2):
        assert study.main([]) == 0
        drawn.append([path.read_text() for path in sorted(folders.glob("which_*.svg"))])
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1]
    assert all("fill: #ffffff" in text for text in drawn[0])


def test_the_page_has_the_tables_of_the_results() -> None:
    if not study.RESULTS.exists():
        pytest.skip("an sdist has no results")
    page = PAGE.read_text(encoding="utf-8")
    for name, title in study.DATA.items():
        runs = study.read(name)
        assert study.table_of_rankings(title, study.chosen(runs)) in page
        assert study.table_at_half(title, runs[study.RATE]) in page
    (collapsed,) = study.read("collapse").values()
    assert study.table_of_starts(collapsed) in page
