"""What was measured, as files: a row for each contender of each group."""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from weighted_bce import show_config

from .contenders import Group
from .device import Device
from .settings import Setting
from .timing import Result

Row = dict[str, Any]
WHAT = (*Setting._fields, "pass", "graphs", "contender")  # what names a row
KINDS = WHAT[:-1]  # what names a group
# Fields that earlier results lack, which have no linear layers.
ADDED = {"features": 0, "times_products": None, "beyond_bytes": None}
DIGITS = 5


class Records(NamedTuple):
    """Of one run."""

    facts: dict[str, str]
    rows: list[Row]

    def groups(self) -> list[list[Row]]:
        """The rows of each group, in the order of the run."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(tuple(row[field] for field in KINDS), []).append(row)
        return list(found.values())

    def save(self, folder: Path) -> None:
        """results.json and results.csv. The csv leaves out the single rounds."""
        folder.mkdir(parents=True, exist_ok=True)
        text = ",\n".join(json.dumps(row) for row in self.rows)
        facts = json.dumps(self.facts, indent=1)
        _write(folder / "results.json", f'{{"facts": {facts},\n"rows": [\n{text}\n]}}\n')
        with (folder / "results.csv").open("w", newline="") as file:
            fields = (*WHAT, *(f for f in Result._fields if f not in (*WHAT, "rounds")))
            table = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)


def _write(path: Path, text: str) -> None:
    """All of it or nothing: the run may be stopped at any time."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def load(path: Path) -> Records:
    """Of results.json, or of the folder that holds it."""
    found = json.loads((path / "results.json" if path.is_dir() else path).read_text())
    return Records(found["facts"], [{**ADDED, **row} for row in found["rows"]])


def setting_of(row: Row) -> Setting:
    return Setting(*(row[field] for field in Setting._fields))


def rows_of(group: Group, results: Iterable[Result]) -> list[Row]:
    """Numbers are cut to what they are good for."""
    head = {**group.setting._asdict(), "pass": group.pass_, "graphs": group.graphs}
    return [head | {k: _short(v) for k, v in result._asdict().items()} for result in results]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return [_short(v) for v in value] if isinstance(value, list | tuple) else value


def facts(device: Device, command: str) -> dict[str, str]:
    """The command, the machine, and what weighted_bce's installation says of itself."""
    lines = (line.partition(": ") for line in show_config().splitlines())
    known = {name: value for name, _, value in lines if value}
    own = {"command": command, "CPU": _processor(), "system": platform.platform(terse=True)}
    commit = _commit()
    return own | ({"commit": commit} if commit else {}) | device.facts() | known


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """Of the working tree that this file is in, with a + where it has changes."""
    command = ("git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*")
    try:
        ran = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout.strip() or None
