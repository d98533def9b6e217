"""What was measured, as files: a row for each baseline of each group."""

import csv
import json
import os
import platform
from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tools.gpu.machine import of_git
from weighted_bce import show_config

from .baselines import BY_KEY, Baseline
from .device import Device
from .names import STEP
from .settings import Setting

DIGITS = 5


@dataclass
class Row:
    """A baseline of a group: what was measured, None where nothing was.

    The ratios are medians of the ratios in each round; the errors are relative, against float64.
    """

    setting: Setting
    pass_: str
    graphs: bool
    key: str
    seconds: float | None = None  # of a step: the median
    p20: float | None = None
    p80: float | None = None
    times_copy: float | None = None
    times_ours: float | None = None
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None  # of its bandwidth
    peak_bytes: int | None = None  # beyond the inputs
    peak_gradients: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    times_products: float | None = None  # of a linear layer, instead of times_copy
    beyond_bytes: int | None = None  # of a linear layer, beyond the inputs and their gradients
    failed: str | None = None  # why there are no times
    disagrees: bool = False
    fits: bool = True  # in the device's memory
    rounds: list[float] = field(default_factory=list)  # seconds

    @property
    def baseline(self) -> Baseline:
        return BY_KEY[self.key]

    @property
    def name(self) -> str:
        return self.baseline.name(self.setting.loss)

    @property
    def title(self) -> str:
        """What names its group."""
        what = "Training step" if self.pass_ == STEP else "Forward alone"
        return f"{what}{', CUDA graphs' * self.graphs}: {self.setting}"

    @property
    def identity(self) -> tuple[Hashable, ...]:
        return self.setting, self.pass_, self.graphs, self.key

    @property
    def loses(self) -> bool:
        """Whether it is another way to compute the loss, or less than it, and faster than ours."""
        is_other = self.baseline.is_loss and not self.baseline.is_own
        return is_other and self.times_ours is not None and self.times_ours < 1


RENAMED = {"pass_": "pass", "key": "baseline"}
# The fields of a row but the setting, by what a file calls them.
FIELDS = {RENAMED.get(one.name, one.name): one.name for one in fields(Row)[1:]}


class Records(NamedTuple):
    """What one run has measured, and on what."""

    facts: dict[str, str]
    rows: list[Row]

    def groups(self) -> list[list[Row]]:
        """The rows of each group, in the order of the run."""
        return [list(rows) for _, rows in groupby(self.rows, lambda row: row.identity[:3])]

    def save(self, folder: Path) -> None:
        """Writes results.json and results.csv. The csv leaves out the single rounds."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, facts = [_flat(row) for row in self.rows], json.dumps(self.facts, indent=1)
        text = ",\n".join(map(json.dumps, rows))
        # All of it or nothing is written: the run may be stopped at any time.
        new = folder / "results.new"
        new.write_text(f'{{"facts": {facts},\n"rows": [\n{text}\n]}}\n')
        new.replace(folder / "results.json")
        with (folder / "results.csv").open("w", newline="") as file:
            names = [name for name in rows[0] if name != "rounds"]
            table = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def _flat(row: Row) -> dict[str, Any]:
    """The fields of the row and its setting. Numbers are cut to what they are good for."""
    own = {name: _short(getattr(row, field)) for name, field in FIELDS.items()}
    return row.setting._asdict() | own


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return [_short(v) for v in value] if isinstance(value, list) else value


def load(path: Path) -> Records:
    """The records in results.json, or in the folder that holds it."""
    found = json.loads((path / "results.json" if path.is_dir() else path).read_text())
    return Records(found["facts"], [_row(row) for row in found["rows"]])


def _row(flat: dict[str, Any]) -> Row:
    """Rows of earlier versions have fewer fields, and call the baseline a contender."""
    flat = {"baseline": flat.get("contender"), **flat}
    setting = {name: flat[name] for name in Setting._fields if name in flat}
    own = {field: flat[name] for name, field in FIELDS.items() if name in flat}
    return Row(Setting(**setting), **own)


def facts(device: Device, command: str) -> dict[str, str]:
    """The command, the machine, and what weighted_bce's installation says of itself."""
    lines = (line.partition(": ") for line in show_config().splitlines())
    known = {name: value for name, _, value in lines if value}
    own = {"command": command, "CPU": _processor(), "system": platform.platform(terse=True)}
    commit = of_git()
    return own | ({"commit": commit} if commit else {}) | device.facts() | known


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores"
