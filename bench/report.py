"""The tables, and the same numbers as JSON."""

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from weighted_bce import show_config

from .device import CPU, Device
from .group import Group, Result
from .losses import Setting
from .timing import Measured

SHOWN = ("CPU", "threads", "torch", "weighted_bce", "extension", "SIMD level in use")
SHOWN_ON_GPU = (
    *("GPU", "driver", "CUDA", "CUDA kernels"),
    *("torch", "weighted_bce", "CPU"),
)
BUSY = 0.1  # share of the CPU


class Peak(NamedTuple):
    """Memory of one contender's step beyond its inputs."""

    contender: str
    bytes: int | None
    gradients: float | None


def facts(device: Device = CPU) -> dict[str, str]:
    """The processor, and what the device and weighted_bce's installation say of themselves."""
    lines = (line.partition(": ") for line in show_config().splitlines())
    known = {name: value for name, _, value in lines}
    return {"CPU": _processor(), **device.facts(), **known}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def show_head(console: Console, known: dict[str, str], rounds: int, gpu: bool = False) -> None:
    shown = SHOWN_ON_GPU if gpu else SHOWN
    text = ", ".join(f"{name} {known[name]}" for name in shown if name in known)
    console.print(f"{text}\nMedians of {rounds} rounds.", highlight=False, soft_wrap=True)


def describe(setting: Setting) -> str:
    target = f"{setting.target} target with {setting.density:.3g} positives"
    if setting.is_sparse:
        target = f"sparse labels, {setting.positives_per_row} in each row"
    return (
        f"{setting.rows} x {setting.labels} {setting.dtype} logits, {target}, "
        f"pos_weight {setting.pos_weight:g}"
    )


def power(elements: int) -> str:
    """2^20 for 1048576; other numbers as they are."""
    exponent = elements.bit_length() - 1
    return f"2^{exponent}" if elements == 2**exponent else str(elements)


def show_times(
    console: Console, title: str, measured: Measured, caption: str, gpu: bool = False
) -> None:
    results = measured.results
    fast = min((r.seconds for r in results if r.seconds is not None), default=1.0) < 1e-3
    unit, factor = ("µs", 1e6) if fast else ("ms", 1e3)
    columns = {
        "contender": [r.contender for r in results],
        f"median\n{unit}": [_median(r, factor) for r in results],
        "times\ncopy_": [number(r.times_copy, "x") for r in results],
        "times\nours": [number(r.times_ours, "x") for r in results],
        "GB/s": [number(r.gigabytes_per_second) for r in results],
    }
    if gpu:
        columns |= {
            "% of\ncopy_": [number(_times(r.share_of_copy, 100), "%") for r in results],
            "p20": [number(_times(r.p20, factor)) for r in results],
            "p80": [number(_times(r.p80, factor)) for r in results],
            "peak": [number(r.peak_gradients) for r in results],
        }
    show(console, title, columns, caption)
    if measured.taken > BUSY:
        text = f"Other programs took {measured.taken:.0%} of the CPU: short times say little."
        console.print(text, style="bold", highlight=False)
    for r in results:
        if r.failed is not None:
            verb = "failed" if r.fits else "does not fit"
            console.print(f"{r.contender} {verb}: {r.failed}", highlight=False, markup=False)


def show_peaks(console: Console, title: str, found: list[Peak], caption: str) -> None:
    columns = {
        "contender": [peak.contender for peak in found],
        "MiB": ["-" if peak.bytes is None else f"{peak.bytes / 2**20:.1f}" for peak in found],
        "gradients": [number(peak.gradients) for peak in found],
    }
    show(console, title, columns, caption)


def _median(result: Result, factor: float) -> str:
    if not result.fits:
        return "does not fit"
    return "failed" if result.seconds is None else number(result.seconds * factor)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.2f}{unit}" if value < 100 else f"{value:.1f}{unit}"


def show(console: Console, title: str, columns: dict[str, list[str]], caption: str) -> None:
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
        "kind": group.kind,
        "graphs": group.graphs,
        "setting": group.setting._asdict(),
        "cpu_taken_by_others": measured.taken,
        "results": [result._asdict() for result in measured.results],
    }


def save_json(
    path: Path, known: dict[str, str], rounds: int, timed: list[dict[str, Any]], memory: Any
) -> None:
    found = {"facts": known, "rounds": rounds, "groups": timed, "memory": memory}
    path.write_text(json.dumps(found, indent=2) + "\n")
