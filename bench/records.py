"""Writes measurements to files, reads them, and compares two runs."""

import csv
import json
import os
import platform
import re
from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.files import write_whole
from tools.gpu.machine import of_git
from tools.program import Refusal
from weighted_bce import show_config

from .baselines import BY_KEY, Baseline
from .device import Device
from .names import STEP
from .settings import Setting

# The fields of weighted_bce that are compared, which are worse if they grow, with the differences
# that are ignored (for errors, the eps of the dtype). The baselines' field is worse if it falls.
OF_OURS = {"peak_gradients": 0.1, "beyond_bytes": 2.0**20, "loss_error": 0, "gradient_error": 0}
OF_OTHERS = {"times_ours": 0}
ERRORS = 2.0  # roundings, that much larger, are no longer the same


@dataclass
class Row:
    """What was measured of a baseline in a group; None stands for what was not measured.

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
    mean: float | None = None  # of the seconds, like those below, where cores were busy
    p95: float | None = None
    worst: float | None = None
    rounds: list[float] = field(default_factory=list)  # seconds

    @property
    def baseline(self) -> Baseline:
        return BY_KEY[self.key]

    @property
    def name(self) -> str:
        return self.baseline.name(self.setting.loss)

    @property
    def title(self) -> str:
        """The title of the group."""
        what = "Training step" if self.pass_ == STEP else "Forward pass"
        return f"{what}{', CUDA graphs' * self.graphs}: {self.setting}"

    @property
    def timed_rounds(self) -> int | None:
        """The number of rounds, which says how much statistics of busy cores are worth."""
        return len(self.rounds) if self.setting.busy and self.rounds else None

    @property
    def identity(self) -> tuple[Hashable, ...]:
        return self.setting, self.pass_, self.graphs, self.key

    @property
    def loses(self) -> bool:
        """Whether it computes the loss, or less than it, and is faster than weighted_bce."""
        is_other = self.baseline.is_loss and not self.baseline.is_own
        return is_other and self.times_ours is not None and self.times_ours < 1


# The fields of a row but the setting, by what a file calls them.
RENAMED = {"pass_": "pass", "key": "baseline"}
FIELDS = {RENAMED.get(one.name, one.name): one.name for one in fields(Row)[1:]}


class Records(NamedTuple):
    """The results of a run, and facts about the machine."""

    facts: dict[str, str]
    rows: list[Row]

    def groups(self) -> list[list[Row]]:
        """Returns the rows of each group, in the order of the run."""
        return [list(rows) for _, rows in groupby(self.rows, lambda row: row.identity[:3])]

    def save(self, folder: Path) -> None:
        """Writes results.json and results.csv. The csv leaves out the single rounds."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, facts = [_flat(row) for row in self.rows], json.dumps(self.facts, indent=1)
        text = ",\n".join(map(json.dumps, rows))
        write_whole(folder / "results.json", f'{{"facts": {facts},\n"rows": [\n{text}\n]}}\n')
        names, lines = [name for name in rows[0] if name != "rounds"], StringIO()
        table = csv.writer(lines, lineterminator="\n")
        table.writerows([names, *([row[name] for name in names] for row in rows)])
        write_whole(folder / "results.csv", lines.getvalue())


def _flat(row: Row) -> dict[str, Any]:
    """Returns the fields of the row and its setting, with numbers of five digits."""
    own = {name: getattr(row, field) for name, field in FIELDS.items()}
    cut = json.loads(json.dumps(own), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    return row.setting._asdict() | cut


def load(path: Path) -> Records:
    """Reads the records in results.json, or in the folder that holds it.

    Rows of earlier versions have fewer fields, and call the baseline a contender.

    Raises:
        Refusal: if the file cannot be read or holds something else.
    """
    try:
        return _load(path / "results.json" if path.is_dir() else path)
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise Refusal(f"{path} holds no results of this benchmark") from None


def _load(path: Path) -> Records:
    results, rows = json.loads(path.read_text(encoding="utf-8")), []
    for row in results["rows"]:
        flat = {"baseline": row.get("contender"), **row}
        setting = {name: flat[name] for name in Setting._fields if name in flat}
        own = {field: flat[name] for name, field in FIELDS.items() if name in flat}
        rows.append(Row(Setting(**setting), **own))
        hash(rows[-1].identity)
        compared = [getattr(rows[-1], name) for name in (*OF_OURS, *OF_OTHERS)]
        if not all(value is None or value >= 0 for value in compared) or rows[-1].times_ours == 0:
            raise ValueError
    return Records(results["facts"], rows)


class Change(NamedTuple):
    """A field that is better or worse than in the earlier run."""

    row: Row
    field: str
    before: float
    now: float
    is_worse: bool


def changes(now: Records, before: Records, tolerance: float) -> tuple[int, list[Change]]:
    """Returns how many rows both runs have, and changes beyond a tolerance such as 0.25.

    weighted_bce may have become slower relative to the baselines of the same round, and its memory
    and errors may have grown. Rows that only one of the runs has are left out.
    """
    earlier, changed = {row.identity: row for row in before.rows}, []
    pairs = [(row, earlier[row.identity]) for row in now.rows if row.identity in earlier]
    for row, old in pairs:
        is_own, eps = row.baseline.is_own, torch.finfo(row.setting.torch_dtype).eps
        for name, nothing in (OF_OURS if is_own else OF_OTHERS).items():
            was, value, is_error = getattr(old, name), getattr(row, name), name.endswith("error")
            if was is not None and value is not None:
                least = eps if is_error else nothing
                growth = (value + least) / (was + least)
                if max(growth, 1 / growth) > (ERRORS if is_error else 1 + tolerance):
                    changed.append(Change(row, name, was, value, (growth > 1) == is_own))
    return len(pairs), changed


def facts(device: Device, command: str) -> dict[str, str]:
    """Returns the command, facts about the machine, and those of show_config()."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    processor = model[1] if model else platform.processor() or platform.machine()
    own = {"command": command, "CPU": f"{processor}, {os.cpu_count()} cores"}
    own |= {"system": platform.platform(terse=True)}
    commit = of_git()
    lines = (line.partition(": ") for line in show_config().splitlines())
    known = {name: value for name, _, value in lines if value}
    return own | ({"commit": commit} if commit else {}) | device.facts() | known
