"""Pictures of a run: time, memory and error of all, and time along each axis that was followed."""

import hashlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from .baselines import BASELINES
from .names import LOSSES, OURS, STEP, in_rows
from .records import Row, load
from .settings import Setting

FORMATS = ("svg", "png")
LINES = ("copy", "products", "ours", "fused-step", "unfused", "dense", *LOSSES, "masked", "scatter")
LINES += ("compile", "timm", "torchvision")
OWN, OTHER = "tab:orange", "tab:blue"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "weighted_bce", "font.size": 9}


class Axis(NamedTuple):
    """What changes along a line, and what else is then equal; None: it is on no such line."""

    name: str
    value: Callable[[Setting], float]
    line: Callable[[Setting], Hashable]
    fewest: int = 3
    label: str = ""  # "": the name


def _rarity(setting: Setting) -> float:
    return setting.positives_per_row if setting.is_sparse else setting.density


def _of_sizes(setting: Setting) -> Hashable:
    usual = setting.sizes == in_rows(setting.elements)
    return setting._replace(rows=0, labels=0) if usual else None


def _of_labels(setting: Setting) -> Hashable:
    """The sizes are about equal."""
    size = (setting.elements - 1).bit_length()
    line = setting._replace(rows=size, labels=0, density=_rarity(setting))
    return None if setting.features else line


def _of_layers(setting: Setting) -> Hashable:
    line = setting._replace(labels=0, density=_rarity(setting))
    return line if setting.features else None


AXES = (
    Axis("elements", lambda s: s.elements, _of_sizes),
    Axis("labels", lambda s: s.labels, _of_labels),
    Axis("density", lambda s: s.density, lambda s: s._replace(density=0)),
    Axis("threads", lambda s: s.threads, lambda s: s._replace(threads=0), fewest=2),
    Axis("layer", lambda s: s.labels, _of_layers, label="labels"),
)
# Pictures of one group: the field, the name, the title, the unit, and whether it is logarithmic.
BARS = (
    ("seconds", "time", "Seconds of a step: {}", 1, True),
    ("peak_gradients", "memory", "Peak memory beyond the inputs, in gradients", 1, False),
    ("beyond_bytes", "memory", "Peak memory beyond the inputs and gradients, MiB", 2**20, False),
    ("gradient_error", "error", "Largest relative error of the gradient", 1, True),
)


def draw(folder: Path) -> list[Path]:
    """All pictures that the results in the folder are enough for, each as SVG and PNG."""
    steps = [row for row in load(folder).rows if row.pass_ == STEP and row.seconds is not None]
    if not steps:
        return []
    saved = []
    with plt.rc_context(STYLE):
        figures = _bars(steps)
        for axis in AXES:
            rows = longest_line(axis, steps)
            figures |= {axis.name: _along(axis, rows)} if rows else {}
        for name, figure in figures.items():
            for kind in FORMATS:
                path = folder / f"{name}.{kind}"
                known = {"Description": digest(folder)} | ({"Date": None} if kind == "svg" else {})
                figure.savefig(path, metadata=known, dpi=150, bbox_inches="tight")
                saved.append(path)
            plt.close(figure)
    for name in ("time", "memory", "error", *(axis.name for axis in AXES)):
        for path in (folder / f"{name}.{kind}" for kind in FORMATS):
            if path not in saved:  # it is of an earlier run
                path.unlink(missing_ok=True)
    return saved


def digest(folder: Path) -> str:
    """What a picture is of: written into each file."""
    return "sha256 " + hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()


def _bars(steps: list[Row]) -> dict[str, Figure]:
    """Pictures of the first group."""
    first, found = [row for row in steps if row.title == steps[0].title], {}
    for field, name, title, unit, logarithmic in BARS:
        values = ((row, getattr(row, field)) for row in first)
        shown = [(row, value / unit) for row, value in values if value is not None]
        if not shown:
            continue
        figure, axes = plt.subplots(figsize=(7, 0.5 + 0.28 * len(shown)))
        bars = axes.barh(
            [row.name for row, _ in shown],
            [value for _, value in shown],
            color=[OWN if row.baseline.is_own else OTHER for row, _ in shown],
            log=logarithmic,
        )
        axes.bar_label(bars, [f"{value:.3g}" for _, value in shown], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.xaxis.set_visible(False)
        axes.set_title(title.format(first[0].setting), loc="left")
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        found[name] = figure
    return found


def longest_line(axis: Axis, steps: list[Row]) -> list[Row]:
    """The rows of the line with the most values, all baselines; none where these are few."""
    lines: dict[Hashable, list[Row]] = {}
    for row in steps:
        line = axis.line(row.setting)
        if line is not None:
            lines.setdefault((line, row.graphs), []).append(row)

    def values(rows: list[Row]) -> int:
        return len({axis.value(row.setting) for row in rows})

    longest = max(lines.values(), key=values, default=[])
    return longest if values(longest) >= axis.fewest else []


def _along(axis: Axis, rows: list[Row]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4))
    others = (color for color in TABLEAU_COLORS if color not in (OWN, "tab:gray"))
    axes.set_prop_cycle(color=["tab:gray", *others])
    for baseline in (baseline for baseline in BASELINES if baseline.key in LINES):
        mine = [row for row in rows if row.key == baseline.key]
        points = sorted((axis.value(row.setting), row.seconds) for row in mine)
        if points:
            style = {"color": OWN, "lw": 2.5} if baseline.key == OURS else {}
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=mine[0].name, **style)
    axes.set_yscale("log")
    if axis.name == "density":
        axes.set_xscale("symlog", linthresh=1e-3)
    elif axis.name != "threads":
        axes.set_xscale("log")
    setting = rows[0].setting
    axes.set_xlabel(axis.label or axis.name)
    layer = f"{setting.rows} rows, {setting.features} features"
    what = layer if setting.features else f"{setting.dtype} logits, {setting.target} target"
    axes.set_title(f"Seconds of a step, {setting.loss}, {what}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
