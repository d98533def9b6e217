"""What is made of a run: files, pictures, comparisons with other runs, and figures of pages."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from bench import documentation, pictures
from bench.names import OURS, PRODUCTS
from bench.records import Records, Row, changes, load
from bench.settings import Setting, grids
from tools.program import Refusal

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
OF_LOGITS = ("copy", OURS, "masked", "bce", "inplace")
OF_LAYERS = (PRODUCTS, OURS, "fused-step", "unfused", "masked")
SMALL, LAYER = Setting(8, 16), Setting(4, 4096, target="sparse", density=5 / 4096, features=8)


def row(setting: Setting, pass_: str, key: str) -> Row:
    seconds = 2.0**-30 * setting.elements
    known: dict[str, Any] = {"times_ours": 1.0 if key == OURS else 5.0, "rounds": [seconds, 1 / 3]}
    known |= {} if key in ("copy", PRODUCTS) else {"loss_error": 1e-8, "gradient_error": 2e-7}
    if setting.features:
        known |= {"times_products": 3.25, "beyond_bytes": 3 * 2**20, "peak_bytes": 4 * 2**20}
    else:
        known |= {"times_copy": 2.0, "share_of_copy": 0.5, "gigabytes_per_second": 1.0}
        known |= {"peak_gradients": 1.0}
    if setting.busy:
        known |= {"mean": 0.5, "p95": 1.5, "worst": 2.5}
    return Row(setting, pass_, False, key, seconds, seconds / 2, seconds * 2, **known)


def made_up(settings: list[Setting], passes: tuple[str, ...] = ("step",)) -> Records:
    rows = [
        row(setting, pass_, key)
        for setting in settings
        for pass_ in passes
        for key in (OF_LAYERS if setting.features else OF_LOGITS)
    ]
    facts = {"command": "python -m bench", "CPU": "a made-up one", "threads": "2"}
    return Records(facts, rows)


def cut(records: Records) -> Records:
    """Numbers have as many digits as mean something."""
    rows = []
    for one in records.rows:
        times = {name: float(f"{getattr(one, name):.5g}") for name in ("seconds", "p20", "p80")}
        rows.append(replace(one, **times, rounds=[times["seconds"], 0.33333]))
    return Records(records.facts, rows)


def test_files(tmp_path: Path) -> None:
    """Rows of logits and of layers come back."""
    settings = [SMALL, SMALL._replace(busy=2), LAYER, LAYER._replace(features=0)]
    records, folder = made_up(settings, ("step", "forward")), tmp_path / "new" / "folder"
    records.save(folder)
    assert load(folder) == load(folder / "results.json") == cut(records)
    assert [len(group) for group in records.groups()] == [5] * 8
    head, *lines = (folder / "results.csv").read_text().splitlines()
    assert len(lines) == len(records.rows)
    assert {len(line.split(",")) for line in lines} == {len(head.split(","))}
    assert [p.name for p in folder.iterdir() if p.suffix == ".new"] == []


def test_results_of_earlier_versions(tmp_path: Path) -> None:
    """They have neither linear layers nor other losses, no busy cores, another word for a baseline,
    and baselines that are no longer measured."""
    records = made_up([SMALL])
    records.rows.extend(row(SMALL, "step", key) for key in ("no-positives", "compile-plain"))
    records.save(tmp_path)
    file = tmp_path / "results.json"
    text = file.read_text().replace('"baseline"', '"contender"')
    absent = ("features", "loss", "busy", "times_products", "beyond_bytes", "mean", "p95", "worst")
    for name in absent:
        text, count = re.subn(rf', "{name}": [^,}}]*', "", text)
        assert count == len(records.rows)
    file.write_text(text)
    earlier = load(tmp_path)
    assert earlier == cut(records)
    names = {"weighted_bce, no positives", "torch.compile(F..., no pos_weight)"}
    assert {one.name for one in earlier.rows[5:]} == names
    assert changes(records, earlier, 0.25) == (len(OF_LOGITS) + 2, [])
    for other in (Setting(8, 16, features=4), Setting(8, 16, loss="focal"), Setting(8, 16, busy=1)):
        assert changes(made_up([other]), earlier, 0.25) == (0, [])


def full_grid() -> list[Setting]:
    settings = [s for grid in grids("cpu", quick=False) for s in grid.settings()]
    return [*settings, Setting(1024, 16384, threads=torch.get_num_threads() + 1)]


def drawn(records: Records, folder: Path) -> list[Path]:
    records.save(folder)
    return pictures.draw(folder)


def test_pictures_of_every_axis(tmp_path: Path) -> None:
    records = made_up(full_grid())
    names = ["time", "memory", "error", "elements", "labels", "density", "threads", "layer"]
    paths = drawn(records, tmp_path)
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("svg", "png")]
    for path in paths:
        assert pictures.digest(tmp_path).encode() in path.read_bytes()
    elements, layer = ((tmp_path / f"{name}.svg").read_text() for name in ("elements", "layer"))
    assert "masked multiply" in elements
    assert "inplace" not in elements
    for name in ("matrix products alone", "weighted_bce, fused_step", "64 rows, 128 features"):
        assert name in layer
    lines = {
        name: [row.setting for row in pictures.longest_line(name, records.rows)]
        for name in pictures.AXES
    }
    assert {s.elements for s in lines["elements"]} >= {2**n for n in range(10, 29, 2)}
    assert {s.labels for s in lines["labels"]} >= {10**n for n in range(3, 7)}
    assert not any(s.features for s in lines["labels"])
    assert {s.density for s in lines["density"]} >= {0, 0.001, 0.02, 0.1}
    assert len({s.labels for s in lines["layer"]}) >= 5
    assert {s.features for s in lines["layer"]} == {128}


def test_no_lines_from_one_setting(tmp_path: Path) -> None:
    (tmp_path / "labels.svg").touch()
    assert {path.stem for path in drawn(made_up([SMALL]), tmp_path)} == {"time", "memory", "error"}
    assert not (tmp_path / "labels.svg").exists()  # it was of another run
    assert drawn(made_up([SMALL], ("forward",)), tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "key", "field", "factor", "worse"),
    [
        (SMALL, "bce", "times_ours", 0.7, True),
        (SMALL, "bce", "times_ours", 1.5, False),
        (SMALL, "bce", "times_ours", 0.85, None),
        (SMALL, "copy", "times_ours", 0.7, True),
        (SMALL, "inplace", "times_ours", 0.1, None),
        (SMALL, "bce", "peak_gradients", 3, None),
        (SMALL, "inplace", "peak_gradients", 1.5, True),
        (SMALL, "inplace", "peak_gradients", 0.5, False),
        (SMALL, OURS, "gradient_error", 100.0, True),
        (SMALL, OURS, "loss_error", 1.9, None),
        (SMALL, OURS, "loss_error", 1e3, True),
        (SMALL, "masked", "gradient_error", 100.0, None),
        (SMALL, OURS, "seconds", 100.0, None),
        (LAYER, OURS, "beyond_bytes", 2.7, True),
        (LAYER, OURS, "beyond_bytes", 0.7, False),
        (LAYER, OURS, "beyond_bytes", 1.3, None),  # less than a MiB more
        (LAYER, "unfused", "beyond_bytes", 3.0, None),
    ],
)
def test_changes(setting: Setting, key: str, field: str, factor: float, worse: bool | None) -> None:
    before, now = made_up([setting, Setting(8, 17)]), made_up([setting])
    assert changes(now, before, 0.25) == (5, [])
    (changed,) = (row for row in now.rows if row.key == key)
    setattr(changed, field, getattr(changed, field) * factor)
    _, differences = changes(now, before, 0.25)
    assert [change.is_worse for change in differences] == ([] if worse is None else [worse])
    for change in differences:
        assert (change.row, change.field) == (changed, field)
        assert change.now == pytest.approx(factor * change.before)


def test_pages_have_the_figures_of_the_results() -> None:
    """Otherwise run: python -m bench.documentation."""
    for page in documentation.pages():
        text = page.read_text()
        assert documentation.written(page, text) == text, f"{page.name} has other figures"
    for folder in (path.parent for path in documentation.RESULTS.glob("*/results.json")):
        digest = pictures.digest(folder).encode()
        paths = [*folder.glob("*.svg"), *folder.glob("*.png")]
        assert {path.suffix for path in paths} == {".svg", ".png"}
        for path in paths:
            assert digest in path.read_bytes(), f"{path.name} is of another run"


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of made-up results and of pages without figures."""
    monkeypatch.setattr(documentation, "ROOT", tmp_path)
    monkeypatch.setattr(documentation, "RESULTS", tmp_path / "bench" / "results")
    return tmp_path


def written(page: Path) -> str:
    text = documentation.written(page, f"a\n\n{BEGIN}\nold\n{END}\nb\n")
    assert text.startswith(f"a\n\n{BEGIN}\n\n")
    assert text.endswith(f"\n\n{END}\nb\n")
    assert "old" not in text
    return text


def test_what_the_page_of_benchmarks_says(pages: Path) -> None:
    """Its figures take the place of others."""
    records = made_up([*full_grid(), LAYER], ("step", "forward"))
    for one in records.rows:
        if one.setting.rows in (8, 4) and one.key in ("bce", "unfused"):
            one.times_ours = 0.9
    drawn(records, documentation.RESULTS / "machine")
    text = written(pages / "docs" / "benchmarks.md")
    for part in (
        "## machine\n\n`python -m bench`\n\nCPU a made-up one",
        "**0.90x**",
        "were faster than weighted_bce:\n\n- F.bce_with_logits at 8x16 float32",
        "at 4x8x4096 float32 sparse 0.1% 1t step (0.90x)",
        "(../bench/results/machine/elements.svg)",
        "(../bench/results/machine/layer.svg)",
        "| Training step: 256 x 256 x 131,072 float32 linear layer and loss, sparse labels, 5 in ",
        "64 x 128 x 2,812,281",
    ):
        assert part in text
    assert "64 x 128 x 8,192" not in text  # the picture shows it


def test_a_table_for_each_loss(pages: Path) -> None:
    losses = ("focal", "asymmetric")
    settings = [Setting(1024, 16384, loss=loss) for loss in losses]
    made_up(settings).save(documentation.RESULTS / "machine")
    text = written(pages / "docs" / "benchmarks.md")
    for loss in losses:
        assert f"bool target with 0.5% positives, {loss} loss, pos_weight 7" in text


def test_an_overview_of_linear_layers(pages: Path) -> None:
    """It has all of them, so that what is faster than weighted_bce is seen at a glance."""
    settings = [LAYER._replace(labels=labels) for labels in (64, 4096, 512)]
    made_up(settings, ("step", "forward")).save(documentation.RESULTS / "machine")
    text = written(pages / "docs" / "benchmarks.md")
    for labels in (64, 512, 4096):
        for pass_ in ("step", "forward"):
            (line,) = (x for x in text.splitlines() if f"4x8x{labels} " in x and f"{pass_} |" in x)
            assert line.split(" | ")[2:] == ["5.00x", "5.00x", "5.00x |"]
    made_up([LAYER]).save(documentation.RESULTS / "machine")
    assert "4x8x4096" not in written(pages / "docs" / "benchmarks.md")


def test_pages_about_busy_cores(pages: Path) -> None:
    """Each group has a table, with the statistics; README shows what was measured without them."""
    settings = [s for s in full_grid() if s.labels in (28, 512, 18154, 131073)]
    made_up([s._replace(busy=2) for s in settings]).save(documentation.RESULTS / "machine-busy")
    made_up(full_grid()).save(documentation.RESULTS / "machine")
    text = written(pages / "docs" / "benchmarks.md")
    heads = [x for x in text.splitlines() if "2 busy processes" in x]
    assert len(heads) == len(settings) == 5
    for head in heads:
        assert " | p20 to p80 | mean | 95th percentile | worst | times weighted_bce | " in head
    quiet = [x for x in text.splitlines() if x.startswith("| Training step") and x not in heads]
    assert quiet != []
    assert "worst" not in "".join(quiet)
    made_up([s._replace(busy=2) for s in full_grid()]).save(documentation.RESULTS / "machine")
    assert "| Linear layer and loss" not in written(pages / "README.md")


def test_what_readme_says(pages: Path) -> None:
    """A row for each headline that was measured, and one that says that no GPU was."""
    records = made_up(full_grid())
    for one in records.rows:
        if one.key == "masked" and one.setting.sizes == (1024, 16384):
            one.times_ours, one.peak_bytes = 61.5, 4 * one.setting.gradient_bytes
    records.save(documentation.RESULTS / "machine")
    table = [line.split(" | ") for line in written(pages / "README.md").splitlines()]
    rows = [line for line in table if len(line) == len(documentation.HEAD)]
    dense, layer, gpu = rows[2:]  # no sparse baseline was measured, and no other loss
    assert dense[0] == "| Dense labels: 1,024 x 16,384"
    assert dense[4:6] == ["61.50", "192.0"]
    assert layer[0] == "| Linear layer and loss: 256 x 256 x 131,072"
    assert layer[5:] == ["3.00", "3.00 |"]
    assert gpu[1] == "not measured: no GPU has run the CUDA kernels yet"
    records.facts["GPU"] = "a made-up one"
    records.save(documentation.RESULTS / "machine")
    assert "not measured" not in written(pages / "README.md")


def test_pages_without_a_place_for_figures() -> None:
    with pytest.raises(Refusal, match="figures: begin"):
        documentation.written(Path("README.md"), "no figures")
