"""The files of a course: written as a whole or not at all, since it may be stopped at any time."""

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

from .machine import CLOCK_FIELDS, text_of
from .report import report

RESULTS, REPORT, LOGS = "results.json", "report.md", "logs.tar.gz"


def save(results: dict[str, Any], out: Path, work: Path | None) -> None:
    """Writes the results; and the report, and an archive of the logs and pictures in `work`."""
    _write(out / RESULTS, json.dumps(results, indent=1))
    if work is not None:
        _write(out / REPORT, report(results))
        new = out / f"{LOGS}.new"
        with tarfile.open(new, "w:gz") as archive:
            archive.add(work, "logs")
        new.replace(out / LOGS)


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def clocks(path: Path) -> list[dict[str, str]]:
    """What nvidia-smi has printed, a line each second."""
    rows = csv.reader(text_of(path).splitlines(), skipinitialspace=True)
    return [dict(zip(CLOCK_FIELDS, r, strict=True)) for r in rows if len(r) == len(CLOCK_FIELDS)]
