"""Draws time, memory and error of a run, and the time along each axis that was measured."""

import hashlib
from collections.abc import Hashable, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from tools.files import write_whole

from .baselines import BASELINES
from .names import LOSSES, OURS, STEP, in_rows
from .records import Row, load
from .settings import Setting

FORMATS = ("svg", "png")
LINES = ("copy", "products", "ours", "fused-step", "unfused", "dense", *LOSSES, "masked", "scatter")
LINES += ("compile", "torchvision", "timm")
OWN, OTHER = "tab:orange", "tab:blue"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "weighted_bce", "font.size": 9}


# README's picture: the baselines that it shows, and the names that they have there.
FRONT = {
    OURS: "weighted_bce",
    "compile": "PyTorch's BCE, compiled",
    "bce": "PyTorch's BCE",
    "masked": "loss[target] *= weight",
}

# Pictures of lines: the field of a setting that changes along them.
AXES = {
    "elements": "elements",
    "labels": "labels",
    "density": "density",
    "threads": "threads",
    "layer": "labels",
}
# Pictures of one group: the field, the name, the title, the unit, and whether it is logarithmic.
BARS = (
    ("seconds", "time", "Time of a training step in seconds: {}", 1, True),
    ("peak_gradients", "memory", "Peak memory beyond the inputs, relative to a gradient", 1, False),
    ("beyond_bytes", "memory", "Peak memory beyond the inputs and gradients, MiB", 2**20, False),
    ("gradient_error", "error", "Largest relative error of the gradient", 1, True),
)


def draw(folder: Path) -> list[Path]:
    """Draws the pictures for which the results in the folder suffice, each as SVG and PNG."""
    for name in (*(name for _, name, *_ in BARS), "front", *AXES):
        for kind in FORMATS:  # they may be of an earlier run
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    steps = [row for row in load(folder).rows if row.pass_ == STEP and row.seconds is not None]
    first = [row for row in steps if row.title == steps[0].title]
    figures, saved, what = {}, [], {"Description": digest(folder)}
    with plt.rc_context(STYLE):
        for field, name, *how in BARS:
            rows = [row for row in first if getattr(row, field) is not None]
            figures |= {name: _bars(rows, field, *how)} if rows else {}
        front = [row for key in FRONT for row in first if row.key == key]
        figures |= {"front": _front(front)} if len(front) == len(FRONT) else {}
        for name, field in AXES.items():
            rows = longest_line(name, steps)
            figures |= {name: _along(rows, field)} if rows else {}
        for name, figure in figures.items():
            for kind in FORMATS:
                saved.append(folder / f"{name}.{kind}")
                known = what | ({"Date": None} if kind == "svg" else {})
                image, how = BytesIO(), {"dpi": 150, "bbox_inches": "tight"}
                figure.savefig(image, format=kind, metadata=known, **how)
                write_whole(saved[-1], image.getvalue())
            plt.close(figure)
    return saved


def digest(folder: Path) -> str:
    """Returns a digest of the results, which is written into each picture."""
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


def _front(rows: Sequence[Row]) -> Figure:
    """The time and the memory of a training step, side by side."""
    gradient, ours = rows[0].setting.gradient_bytes, rows[0]
    panels = (
        ("Time of loss and gradient, ms", [1e3 * (row.seconds or 0) for row in rows]),
        (
            "Memory beyond the logits and their gradient, MiB",
            [max(0, (row.peak_bytes or 0) - gradient) / 2**20 for row in rows],
        ),
    )
    figure, both = plt.subplots(1, 2, figsize=(8.4, 1.55), sharey=True, layout="constrained")
    for axes, (title, values) in zip(both, panels, strict=True):
        colors = [OWN if row is ours else OTHER for row in rows]
        bars = axes.barh([*FRONT.values()], values, color=colors)
        axes.bar_label(
            bars, [f"{value:.3g}" if value >= 0.05 else "0" for value in values], padding=3
        )
        axes.margins(x=0.15)
        axes.xaxis.set_visible(False)
        axes.set_title(title, loc="left")
        axes.tick_params(left=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    both[0].invert_yaxis()
    return figure


def longest_line(name: str, steps: Sequence[Row]) -> list[Row]:
    """Returns the rows, of all baselines, along the line with the most values; none if few."""
    lines: dict[Hashable, list[Row]] = {}
    for row in steps:
        line = _line(name, row.setting)
        if line is not None:
            lines.setdefault((line, row.graphs), []).append(row)

    def values(rows: list[Row]) -> int:
        return len({getattr(row.setting, AXES[name]) for row in rows})

    longest = max(lines.values(), key=values, default=[])
    return longest if values(longest) >= (2 if name == "threads" else 3) else []


def _line(name: str, setting: Setting) -> Setting | None:
    """Returns what is equal along the line of a setting; None if it is on no line."""
    if name == "elements":
        usual = setting.sizes == in_rows(setting.elements)
        return setting._replace(rows=0, labels=0) if usual else None
    if name in ("density", "threads"):
        return setting._replace(**{name: 0})
    if (name == "layer") != (setting.features > 0):
        return None
    # Sparse labels are equally many in each row. The sizes of logits are about equal.
    rarity = setting.positives_per_row if setting.is_sparse else setting.density
    rows = setting.rows if setting.features else (setting.elements - 1).bit_length()
    return setting._replace(rows=rows, labels=0, density=rarity)


def _along(rows: list[Row], field: str) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4))
    others = (color for color in TABLEAU_COLORS if color not in (OWN, "tab:gray"))
    axes.set_prop_cycle(color=["tab:gray", *others])
    for key in (baseline.key for baseline in BASELINES if baseline.key in LINES):
        mine = [row for row in rows if row.key == key]
        points = sorted((getattr(row.setting, field), row.seconds) for row in mine)
        if points:
            style = {"color": OWN, "lw": 2.5} if key == OURS else {}
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=mine[0].name, **style)
    axes.set_yscale("log")
    if field == "density":
        axes.set_xscale("symlog", linthresh=1e-3)
    elif field != "threads":
        axes.set_xscale("log")
    setting = rows[0].setting
    axes.set_xlabel("share of positives" if field == "density" else field)
    layer = f"{setting.rows} rows, {setting.features} features"
    what = layer if setting.features else f"{setting.dtype} logits, {setting.target} target"
    axes.set_title(f"Time of a training step in seconds: {setting.loss}, {what}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
