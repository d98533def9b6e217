"""The tables, and the same numbers as JSON."""

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from weighted_bce import show_config

from .losses import Setting
from .timing import Group, Measured, Result

SHOWN = ("CPU", "threads", "torch", "weighted_bce", "extension", "SIMD level in use")
BUSY = 0.1  # share of the CPU


class Peak(NamedTuple):
    """Memory of one contender's step beyond its inputs."""

    contender: str
    bytes: int | None
    gradients: float | None


def facts() -> dict[str, str]:
    """The processor, and what weighted_bce says about its installation."""
    lines = (line.partition(": ") for line in show_config().splitlines())
    return {"CPU": _processor(), **{name: value for name, _, value in lines}}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def show_head(console: Console, known: dict[str, str], rounds: int) -> None:
    text = ", ".join(f"{name} {known[name]}" for name in SHOWN if name in known)
    console.print(f"{text}\nMedians of {rounds} rounds.", highlight=False, soft_wrap=True)


def describe(setting: Setting) -> str:
    return (
        f"{setting.rows} x {setting.labels} {setting.dtype} logits, {setting.target} target with "
        f"{setting.density:.3g} positives, pos_weight {setting.pos_weight:g}"
    )


def show_times(console: Console, title: str, measured: Measured, caption: str) -> None:
    results = measured.results
    fast = min(r.seconds for r in results if r.seconds is not None) < 1e-3
    unit, factor = ("µs", 1e6) if fast else ("ms", 1e3)
    columns = {
        "contender": [r.contender for r in results],
        f"median\n{unit}": [_median(r, factor) for r in results],
        "times\ncopy_": [_number(r.times_copy, "x") for r in results],
        "times\nours": [_number(r.times_ours, "x") for r in results],
        "GB/s": [_number(r.gigabytes_per_second) for r in results],
    }
    _show(console, title, columns, caption)
    if measured.taken > BUSY:
        text = f"Other programs took {measured.taken:.0%} of the CPU: short times say little."
        console.print(text, style="bold", highlight=False)
    for r in results:
        if r.failed is not None:
            console.print(f"{r.contender} failed: {r.failed}", highlight=False, markup=False)


def show_peaks(console: Console, title: str, found: list[Peak], caption: str) -> None:
    columns = {
        "contender": [peak.contender for peak in found],
        "MiB": ["-" if peak.bytes is None else f"{peak.bytes / 2**20:.1f}" for peak in found],
        "gradients": [_number(peak.gradients) for peak in found],
    }
    _show(console, title, columns, caption)


def _median(result: Result, factor: float) -> str:
    return "failed" if result.seconds is None else _number(result.seconds * factor)


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.2f}{unit}" if value < 100 else f"{value:.1f}{unit}"


def _show(console: Console, title: str, columns: dict[str, list[str]], caption: str) -> None:
    """Without the columns in which nobody has a value."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    for number, name in enumerate(shown):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    console.print()
    console.print(title, style="bold", highlight=False)
    console.print(table)
    console.print(caption, style="dim", highlight=False)


def group_json(group: Group, measured: Measured) -> dict[str, Any]:
    return {
        "title": group.title,
        "setting": group.setting._asdict(),
        "cpu_taken_by_others": measured.taken,
        "results": [result._asdict() for result in measured.results],
    }


def save_json(
    path: Path, known: dict[str, str], rounds: int, timed: list[dict[str, Any]], memory: Any
) -> None:
    found = {"facts": known, "rounds": rounds, "groups": timed, "memory": memory}
    path.write_text(json.dumps(found, indent=2) + "\n")
