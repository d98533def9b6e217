"""Pictures of a run: time, memory and error of all, and time along each axis that was followed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from .losses import LOSSES, NAMES, YARDSTICKS
from .names import OURS, STEP, in_rows
from .records import ADDED, Records, Row, setting_of

FORMATS = ("svg", "png")
LINES = ("copy", "products", "ours", "fused-step", "unfused", "dense", "bce", "masked", "scatter")
LINES += ("compile", "timm", "torchvision")
OWN, OTHER = "tab:orange", "tab:blue"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "weighted_bce", "font.size": 9}


class Axis(NamedTuple):
    """What changes along a line, and what must then be equal; None: the row is on no such line."""

    name: str
    value: Callable[[Row], float]
    fixed: Callable[[Row], tuple[Any, ...] | None]
    fewest: int = 3
    label: str = ""  # "": the name


def _always(row: Row) -> tuple[Any, ...]:
    return tuple(row[f] for f in ("dtype", "target", "pos_weight", "pass", "graphs", "features"))


def _elements(row: Row) -> int:
    return setting_of(row).elements


def _rarity(row: Row) -> float:
    """Of sparse labels the positives in each row."""
    setting = setting_of(row)
    return setting.positives_per_row if setting.is_sparse else setting.density


def _of_sizes(row: Row) -> tuple[Any, ...] | None:
    usual = (row["rows"], row["labels"]) == in_rows(_elements(row))
    return (*_always(row), row["density"], row["threads"]) if usual else None


def _of_labels(row: Row) -> tuple[Any, ...] | None:
    size = len(f"{_elements(row) - 1:b}")
    return None if row["features"] else (*_always(row), _rarity(row), row["threads"], size)


def _of_layer(row: Row) -> tuple[Any, ...] | None:
    """Of equally many rows and features."""
    kind = *_always(row), _rarity(row), row["threads"], row["rows"]
    return kind if row["features"] else None


AXES = (
    Axis("elements", _elements, _of_sizes),
    Axis("labels", lambda row: row["labels"], _of_labels),
    Axis(
        "density",
        lambda row: row["density"],
        lambda row: (*_always(row), row["rows"], row["labels"], row["threads"]),
    ),
    Axis(
        "threads",
        lambda row: row["threads"],
        lambda row: (*_always(row), row["rows"], row["labels"], row["density"]),
        fewest=2,
    ),
    Axis("layer", lambda row: row["labels"], _of_layer, label="labels"),
)


def draw(records: Records, folder: Path) -> list[Path]:
    """All pictures that the rows are enough for, each as SVG and PNG."""
    steps = [row for row in records.rows if row["pass"] == STEP and row["seconds"] is not None]
    if not steps:
        return []
    mark, saved = digest(records), []
    with plt.rc_context(_STYLE):
        for name, figure in [*_bars(steps), *_lines(steps)]:
            for kind in FORMATS:
                path = folder / f"{name}.{kind}"
                known = {"Description": mark} | ({"Date": None} if kind == "svg" else {})
                figure.savefig(path, metadata=known, dpi=150, bbox_inches="tight")
                saved.append(path)
            plt.close(figure)
    for name in ("time", "memory", "error", *(axis.name for axis in AXES)):
        for path in (folder / f"{name}.{kind}" for kind in FORMATS):
            if path not in saved:  # of an earlier run
                path.unlink(missing_ok=True)
    return saved


def digest(records: Records) -> str:
    """What a picture is of: written into each file."""
    rows = [
        {k: v for k, v in row.items() if k != "rounds" and (k not in ADDED or v)}
        for row in records.rows
    ]
    return "sha256 " + hashlib.sha256(repr(rows).encode()).hexdigest()


def _bars(steps: list[Row]) -> list[tuple[str, Figure]]:
    """Of the first group."""
    first = [row for row in steps if _key(row) == _key(steps[0])]
    where = f"{' x '.join(map(str, setting_of(first[0]).sizes))} {_what(first[0])}"
    found = []
    for name, field, title, logarithmic in (
        ("time", "seconds", f"Training step, {where}: seconds", True),
        ("memory", "peak_gradients", "Peak memory beyond the inputs, in gradients", False),
        ("memory", "beyond_bytes", "Peak memory beyond the inputs and gradients, in MiB", False),
        ("error", "gradient_error", "Largest relative error of the gradient", True),
    ):
        rows = [row for row in first if row[field] is not None]
        if not rows:
            continue
        unit = 2**20 if field == "beyond_bytes" else 1
        values = [row[field] / unit for row in rows]
        figure, axes = plt.subplots(figsize=(7, 0.5 + 0.28 * len(rows)))
        names = [NAMES[row["contender"]] for row in rows]
        bars = axes.barh(
            names,
            values,
            color=[OWN if "ours" in name else OTHER for name in names],
            log=logarithmic,
        )
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.xaxis.set_visible(False)
        axes.set_title(title, loc="left")
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        found.append((name, figure))
    return found


def _what(row: Row) -> str:
    return f"{row['dtype']} {'linear layer and loss' if row['features'] else 'logits'}"


def _key(row: Row) -> tuple[Any, ...]:
    return (*_always(row), row["rows"], row["labels"], row["density"], row["threads"])


def _lines(steps: list[Row]) -> list[tuple[str, Figure]]:
    found = []
    for axis in AXES:
        rows = _longest(axis, steps)
        if rows:
            found.append((axis.name, _along(axis, rows)))
    return found


def _longest(axis: Axis, steps: list[Row]) -> list[Row]:
    """The rows of the line with the most values, all contenders."""
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in steps:
        fixed = axis.fixed(row)
        if fixed is not None:
            lines.setdefault(fixed, []).append(row)

    def values(rows: list[Row]) -> int:
        return len({axis.value(row) for row in rows})

    longest = max(lines.values(), key=values, default=[])
    return longest if values(longest) >= axis.fewest else []


def _along(axis: Axis, rows: list[Row]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.set_prop_cycle(
        color=["tab:gray", *(c for c in TABLEAU_COLORS if c not in (OWN, "tab:gray"))]
    )
    for key in (*YARDSTICKS, *(loss.key for loss in LOSSES)):
        points = {axis.value(row): row["seconds"] for row in rows if row["contender"] == key}
        if key in LINES and points:
            x, y = zip(*sorted(points.items()), strict=True)
            style = {"color": OWN, "lw": 2.5} if key == OURS else {}
            axes.plot(x, y, marker="o", ms=3, label=NAMES[key], **style)
    axes.set_yscale("log")
    if axis.name != "threads":
        axes.set_xscale("symlog" if axis.name == "density" else "log", **_scale(axis))
    first = rows[0]
    axes.set_xlabel(axis.label or axis.name)
    title = f"Seconds of a training step, {_what(first)}, {first['target']} target"
    if axis.name == "layer":
        title = f"Seconds of a training step, {first['rows']} rows, {first['features']} features"
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _scale(axis: Axis) -> dict[str, float]:
    return {"linthresh": 1e-3} if axis.name == "density" else {}
