"""The files of a course: written as a whole or not at all, since it may be stopped at any time."""

import json
import tarfile
from pathlib import Path
from typing import Any

from .machine import CLOCK_FIELDS, text_of
from .report import report

RESULTS, REPORT, LOGS = "results.json", "report.md", "logs.tar.gz"


def save(results: dict[str, Any], out: Path, work: Path | None) -> None:
    """Writes the results; and the report, and an archive of the logs and pictures in `work`."""
    _write(out / RESULTS, as_json(results))
    if work is not None:
        _write(out / REPORT, report(results))
        new = out / f"{LOGS}.new"
        with tarfile.open(new, "w:gz") as archive:
            archive.add(work, "logs")
        new.replace(out / LOGS)


def as_json(results: dict[str, Any]) -> str:
    """A line for each result."""
    parts = []
    for part in results["parts"]:
        head = json.dumps({key: value for key, value in part.items() if key != "results"})
        rows = ",\n".join(map(json.dumps, part["results"]))
        parts.append(f'{head[:-1]}, "results": [\n{rows}]}}')
    facts = json.dumps(results["facts"], indent=1)
    clocks = ",\n".join(map(json.dumps, results["clocks"]))
    text = ",\n".join(parts)
    return f'{{"facts": {facts},\n"clocks": [\n{clocks}],\n"parts": [\n{text}]}}\n'


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def clocks(path: Path) -> list[dict[str, str]]:
    """What nvidia-smi has printed, a line each second."""
    rows = ([cell.strip() for cell in line.split(",")] for line in text_of(path).splitlines())
    return [dict(zip(CLOCK_FIELDS, r, strict=True)) for r in rows if len(r) == len(CLOCK_FIELDS)]
