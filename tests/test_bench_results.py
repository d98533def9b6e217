"""What is made of a run: files, pictures, the comparison with another run, and README's figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from bench import pictures, readme
from bench.compare import changes, common
from bench.contenders import Group
from bench.names import OURS, PRODUCTS
from bench.records import ADDED, Records, load, rows_of, setting_of
from bench.settings import Setting, grids
from bench.timing import Result

CONTENDERS = ("copy", OURS, "masked", "bce", "inplace")
OF_LAYERS = (PRODUCTS, OURS, "fused-step", "unfused", "masked")
LAYER = Setting(4, 4096, target="sparse", density=5 / 4096, features=8)


def result(key: str, seconds: float = 1e-3, **fields: Any) -> Result:
    given = {"times_copy": 2.0, "times_ours": 1.0 if key == OURS else 5.0, "share_of_copy": 0.5}
    given |= {"gigabytes_per_second": 1.0, "peak_gradients": 1.0, "rounds": [seconds, 1 / 3]}
    errors = {} if key == "copy" else {"loss_error": 1e-8, "gradient_error": 2e-7}
    return Result(key, seconds, seconds / 2, seconds * 2, **{**given, **errors, **fields})


def result_of_layer(key: str, seconds: float) -> Result:
    fields = {"times_products": 3.25, "beyond_bytes": 3 * 2**20, "peak_bytes": 4 * 2**20}
    return result(key, seconds, times_copy=None, peak_gradients=None, **fields)


def made_up(settings: list[Setting], passes: tuple[str, ...] = ("step",)) -> Records:
    rows = [
        row
        for setting in settings
        for pass_ in passes
        for row in rows_of(
            Group(setting, pass_, []),
            [result_of_layer(key, 1e-9 * setting.elements) for key in OF_LAYERS]
            if setting.features
            else [result(key, 1e-9 * setting.elements) for key in CONTENDERS],
        )
    ]
    facts = {"command": "python -m bench", "CPU": "a made-up one", "threads": "2"}
    return Records(facts, rows)


def test_files(tmp_path: Path) -> None:
    records = made_up([Setting(8, 16), Setting(8, 16, "float16", "sparse")], ("step", "forward"))
    records.save(tmp_path / "new" / "folder")
    assert load(tmp_path / "new" / "folder") == records
    assert load(tmp_path / "new" / "folder" / "results.json") == records
    assert [len(group) for group in records.groups()] == [len(CONTENDERS)] * 4
    assert records.rows[0]["rounds"][1] == 0.33333  # as many digits as mean something
    head, *lines = (tmp_path / "new" / "folder" / "results.csv").read_text().splitlines()
    assert len(lines) == len(records.rows)
    assert {len(line.split(",")) for line in lines} == {len(head.split(","))}
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir() if p.suffix == ".new"] == []


def test_results_of_earlier_versions(tmp_path: Path) -> None:
    """They have no linear layers, and pictures of them stay pictures of them."""
    records = made_up([Setting(8, 16)])
    records.save(tmp_path)
    file = tmp_path / "results.json"
    earlier = json.loads(file.read_text())
    earlier["rows"] = [{k: v for k, v in r.items() if k not in ADDED} for r in earlier["rows"]]
    assert "features" not in earlier["rows"][0]
    file.write_text(json.dumps(earlier))
    assert load(tmp_path) == records
    digest = pictures.digest(Records({}, earlier["rows"]))
    assert digest == pictures.digest(load(tmp_path))
    assert digest != pictures.digest(made_up([Setting(8, 16, features=4)]))
    assert changes(made_up([Setting(8, 16)]), load(tmp_path), 0.25) == []
    assert common(made_up([Setting(8, 16, features=4)]), load(tmp_path)) == 0


def test_files_of_layers(tmp_path: Path) -> None:
    records = made_up([LAYER, LAYER._replace(features=0)])
    records.save(tmp_path)
    found = load(tmp_path)
    assert found == records
    assert [len(group) for group in found.groups()] == [len(OF_LAYERS), len(CONTENDERS)]
    assert setting_of(found.rows[0]) == LAYER
    assert (found.rows[0]["times_products"], found.rows[0]["times_copy"]) == (3.25, None)


@pytest.mark.parametrize(("beyond", "worse"), [(8, [True]), (2, [False]), (3.9, [])])
def test_changes_of_the_memory_of_layers(beyond: float, worse: list[bool]) -> None:
    before, now = made_up([LAYER]), made_up([LAYER])
    for row in now.rows:
        if row["contender"] in (OURS, "unfused"):  # only ours is compared
            row["beyond_bytes"] = beyond * 2**20
    assert [change.is_worse for change in changes(now, before, 0.25)] == worse


def full_grid() -> list[Setting]:
    found = [s for grid in grids("cpu", quick=False) for s in grid.settings(7.0, 0)]
    return [*found, Setting(1024, 16384, threads=torch.get_num_threads() + 1)]


def test_pictures_of_every_axis(tmp_path: Path) -> None:
    records = made_up(full_grid())
    drawn = pictures.draw(records, tmp_path)
    names = ["time", "memory", "error", "elements", "labels", "density", "threads", "layer"]
    assert [path.name for path in drawn] == [
        f"{n}.{kind}" for n in names for kind in ("svg", "png")
    ]
    for path in drawn:
        assert pictures.digest(records).encode() in path.read_bytes()
    elements = (tmp_path / "elements.svg").read_text()
    assert "masked multiply" in elements
    assert "inplace" not in elements
    lines = pictures._longest(pictures.AXES[0], records.rows)
    assert {row["rows"] * row["labels"] for row in lines} >= {2**n for n in range(10, 29, 2)}
    lines = pictures._longest(pictures.AXES[1], records.rows)
    assert {row["labels"] for row in lines} >= {10**n for n in range(3, 7)}
    assert not any(row["features"] for row in lines)
    lines = pictures._longest(pictures.AXES[-1], records.rows)
    assert len({row["labels"] for row in lines}) >= 5
    assert {row["features"] for row in lines} == {128}
    layer = (tmp_path / "layer.svg").read_text()
    for name in ("the products alone", "ours, fused_step", "64 rows, 128 features"):
        assert name in layer


def test_no_lines_from_one_setting(tmp_path: Path) -> None:
    drawn = pictures.draw(made_up([Setting(8, 16)]), tmp_path)
    assert {path.stem for path in drawn} == {"time", "memory", "error"}
    (tmp_path / "labels.svg").touch()
    pictures.draw(made_up([Setting(8, 16)]), tmp_path)
    assert not (tmp_path / "labels.svg").exists()  # it was of another run
    assert pictures.draw(made_up([Setting(8, 16)], ("forward",)), tmp_path) == []


@pytest.mark.parametrize(
    ("contender", "field", "factor", "worse"),
    [
        ("bce", "times_ours", 0.7, True),
        ("bce", "times_ours", 1.5, False),
        ("bce", "times_ours", 0.85, None),
        ("copy", "times_ours", 0.7, True),
        ("inplace", "times_ours", 0.1, None),
        ("bce", "peak_gradients", 3, None),
        ("inplace", "peak_gradients", 1.5, True),
        ("inplace", "peak_gradients", 0.5, False),
        (OURS, "gradient_error", 100.0, True),
        (OURS, "loss_error", 1.9, None),
        (OURS, "loss_error", 1e3, True),
        ("masked", "gradient_error", 100.0, None),
        (OURS, "seconds", 100.0, None),
    ],
)
def test_changes(contender: str, field: str, factor: float, worse: bool | None) -> None:
    before, now = made_up([Setting(8, 16), Setting(8, 17)]), made_up([Setting(8, 16)])
    assert common(now, before) == len(CONTENDERS)
    assert changes(now, before, 0.25) == []
    (row,) = (row for row in now.rows if row["contender"] == contender)
    row[field] *= factor
    found = changes(now, before, 0.25)
    assert [change.is_worse for change in found] == ([] if worse is None else [worse])
    for change in found:
        assert (change.row, change.field) == (row, field)
        assert change.now == pytest.approx(factor * change.before)


def test_readme_has_the_figures_of_the_results() -> None:
    """Else: python -m bench.readme."""
    text = readme.README.read_text()
    assert readme.written(text) == text
    for folder in (path.parent for path in readme.RESULTS.glob("*/results.json")):
        digest = pictures.digest(load(folder)).encode()
        drawn = [*folder.glob("*.svg"), *folder.glob("*.png")]
        assert {path.suffix for path in drawn} == {".svg", ".png"}
        for path in drawn:
            assert digest in path.read_bytes(), f"{path.name} is of another run"


def test_what_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    records = made_up(full_grid(), ("step", "forward"))
    (slower,) = (
        row
        for row in records.rows
        if (row["rows"], row["contender"], row["pass"]) == (8, "bce", "step")
    )
    slower["times_ours"] = 0.9
    records.save(tmp_path / "machine")
    pictures.draw(records, tmp_path / "machine")
    before = f"a\n\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    text = readme.written(before)
    assert text.startswith(f"a\n\n{readme.BEGIN}\n\n`python -m bench` ([results](machine)): ")
    assert text.endswith(f"\n\n{readme.END}\nb\n")
    assert "old" not in text
    assert "CPU a made-up one" in text
    assert "**0.90x**" in text
    assert "Faster than ours in this run: F.bce_with_logits at 8 x 16 float32" in text
    assert "(machine/elements.svg)" in text
    assert "(machine/layer.svg)" in text
    layer = "| Linear layer and loss, forward and backward: 256 x 256 x 131,072 float32, "
    assert layer + "sparse labels, 5 in each row | ms | p20 to p80 | times products | " in text
    assert "64 x 128 x 2,812,281" in text
    assert "64 x 128 x 8,192" not in text  # the picture shows it
    assert readme.written(text) == text
    with pytest.raises(ValueError, match="figures: begin"):
        readme.written("no marks")


def test_what_readme_says_of_layers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    records = made_up([LAYER], ("step", "forward"))
    for row in records.rows:
        if row["contender"] == "unfused":
            row["times_ours"] = 0.5
    records.save(tmp_path / "machine")
    drawn = pictures.draw(records, tmp_path / "machine")
    assert {path.stem for path in drawn} == {"time", "memory", "error"}
    text = readme.written(f"{readme.BEGIN}{readme.END}")
    assert "Linear layer and loss, forward and backward: 4 x 8 x 4,096 float32" in text
    assert "Linear layer and loss, forward alone, under `no_grad`: 4 x 8 x 4,096" in text
    assert "beyond inputs and gradients, MiB" in text
    spread = "0.02 | 0.01 to 0.03"
    assert f"| ours, fused_step | {spread} | 3.25 | 5.00x | 3.00 | 1e-08 | 2e-07 |" in text
    assert f"| {spread} | 3.25 | **0.50x** | 3.00 |" in text
    assert "at 4 x 8 x 4096 float32, sparse targets, step (0.50x)" in text
    assert "copy_" not in text
