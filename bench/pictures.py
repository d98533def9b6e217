"""Pictures of a run: time, memory and error of all, and time along each axis that was followed."""

import hashlib
from collections.abc import Hashable, Sequence
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
LINES += ("compile",)
OWN, OTHER = "tab:orange", "tab:blue"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "weighted_bce", "font.size": 9}


class Axis(NamedTuple):
    """A field that changes along a line, the picture of which has another name for layers."""

    name: str
    field: str
    fewest: int = 3

    def value(self, setting: Setting) -> float:
        return float(getattr(setting, self.field))

    def line(self, setting: Setting) -> Hashable:
        """What is equal along the line of a setting; None where it is on none."""
        usual = setting.sizes == in_rows(setting.elements)
        if self.name == "elements":
            return setting._replace(rows=0, labels=0) if usual else None
        if self.field != "labels":
            return setting._replace(**{self.field: 0})
        if (self.name == "layer") != (setting.features > 0):
            return None
        # Sparse labels are equally many in each row. The sizes of logits are about equal.
        rarity = setting.positives_per_row if setting.is_sparse else setting.density
        rows = setting.rows if setting.features else (setting.elements - 1).bit_length()
        return setting._replace(rows=rows, labels=0, density=rarity)


AXES = (
    Axis("elements", "elements"),
    Axis("labels", "labels"),
    Axis("density", "density"),
    Axis("threads", "threads", fewest=2),
    Axis("layer", "labels"),
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
    for name in (*(name for _, name, *_ in BARS), *(axis.name for axis in AXES)):
        for kind in FORMATS:  # they may be of an earlier run
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    steps = [row for row in load(folder).rows if row.pass_ == STEP and row.seconds is not None]
    first = [row for row in steps if row.title == steps[0].title]
    saved = []
    with plt.rc_context(STYLE):
        figures = {}
        for field, name, *how in BARS:
            rows = [row for row in first if getattr(row, field) is not None]
            figures |= {name: _bars(rows, field, *how)} if rows else {}
        for axis in AXES:
            rows = longest_line(axis, steps)
            figures |= {axis.name: _along(axis, rows)} if rows else {}
        for name, figure in figures.items():
            for kind in FORMATS:
                saved.append(folder / f"{name}.{kind}")
                known = {"Description": digest(folder)} | ({"Date": None} if kind == "svg" else {})
                figure.savefig(saved[-1], metadata=known, dpi=150, bbox_inches="tight")
            plt.close(figure)
    return saved


def digest(folder: Path) -> str:
    """What a picture is of: written into each file."""
    return "sha256 " + hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()


def _bars(rows: Sequence[Row], field: str, title: str, unit: float, logarithmic: bool) -> Figure:
    names, values = [row.name for row in rows], [getattr(row, field) / unit for row in rows]
    colors = [OWN if row.baseline.is_own else OTHER for row in rows]
    figure, axes = plt.subplots(figsize=(7, 0.5 + 0.28 * len(rows)))
    bars = axes.barh(names, values, color=colors, log=logarithmic)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.xaxis.set_visible(False)
    axes.set_title(title.format(rows[0].setting), loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


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
    axes.set_xlabel(axis.field)
    layer = f"{setting.rows} rows, {setting.features} features"
    what = layer if setting.features else f"{setting.dtype} logits, {setting.target} target"
    axes.set_title(f"Seconds of a step, {setting.loss}, {what}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
