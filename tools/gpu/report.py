"""What a course tells: tables for a README, and a summary for the terminal."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import tables
from .correctness import FAILURES
from .part import Row
from .tables import markdown

Section = Callable[[Sequence[Row]], list[str]]
MOST_LINES, MOST_COLUMNS = 40, 160
BAD = (*FAILURES, "began")


def report(results: dict[str, Any]) -> str:
    """report.md."""
    facts = results["facts"]
    text = [f"# weighted_bce on {facts.get('GPU', 'a GPU')}", ""]
    text += [f"- {name}: {value}" for name, value in facts.items()]
    text += [f"- clocks: {clocks(results)}", ""]
    head = ("part", "outcome", "seconds", "of at most", "remark")
    keys = ("part", "outcome", "seconds", "limit", "why")
    text += markdown(head, [[part[key] for key in keys] for part in results["parts"]])
    for part in results["parts"]:
        section = SECTIONS.get(part["part"])
        if section is not None and part["results"]:
            lines = _safely(section, part["results"])
            text += ["", f"## {part['part'].capitalize()}", *lines]
    return "\n".join(text) + "\n"


def _safely(section: Section, rows: Sequence[Row]) -> list[str]:
    """What a section says; where it cannot read the rows, the others are still worth having."""
    try:
        return section(rows)
    except Exception as error:
        return ["", f"unreadable: {type(error).__name__}: {error}"]


def clocks(results: dict[str, Any]) -> str:
    """The range of the GPU's clock, and of its temperature and power."""
    seen = results["clocks"]
    ranges = []
    for name in ("SM MHz", "memory MHz", "W", "degrees C"):
        values = [float(row[name]) for row in seen if row[name].replace(".", "", 1).isdecimal()]
        if values:
            ranges.append(f"{min(values):.0f} to {max(values):.0f} {name}")
    return ", ".join(ranges) or "not known"


def _figures(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    text = (
        f"Medians; pos_weight {first['pos_weight']:g}, {first['density']:.2%} positives (linear "
        "layers: 5 in each row). Of ours: the bandwidth, and its share of that of a copy; of "
        "others: how many times as long as ours they take."
    )
    return ["", text, *tables.of_losses(rows), *tables.of_layers(rows)]


def _columns(*keys: str) -> Section:
    """A section that is these columns of the rows."""
    return lambda rows: ["", *markdown(keys, [[row[key] for key in keys] for row in rows])]


def _tests(rows: Sequence[Row]) -> list[str]:
    bad = [[row["test"], _reason(row)] for row in rows if row["outcome"] in BAD]
    return ["", tally(rows), "", *(markdown(("test", "what failed"), bad) if bad else [])]


def tally(rows: Sequence[Row]) -> str:
    """How many tests passed, failed, were skipped, or began and did not end."""
    counts = Counter(row["outcome"] for row in rows)
    words = {"began": "did not end"}
    return ", ".join(f"{count} {words.get(name, name)}" for name, count in counts.items())


def _reason(row: Row) -> str:
    """The line of a traceback that pytest points to, or the first one."""
    if row["outcome"] == "began":
        return "did not end"
    lines = [line for line in str(row["text"]).splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (marked or lines or [""])[0][:200]


def _profile(rows: Sequence[Row]) -> list[str]:
    """What was counted, and in brackets what was expected of an H200."""
    head = ("kernel", "time", "DRAM", "issue slots", "registers", "occupancy", "top stall", "limit")
    return ["", *markdown(head, [_counted(row) for row in rows])]


def _counted(row: Row) -> list[str]:
    wanted = row["expected"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}%"

    seconds, rate, registers = row["seconds"], row["DRAM bytes/s"], row["registers"]
    issue = row["issue slots %"] if row["issue slots %"] is not None else row["issue active %"]
    return [
        row["kernel"],
        "-" if seconds is None else tables.duration(seconds),
        percent(row["DRAM %"]) + ("" if rate is None else f", {rate / 1e9:.0f} GB/s"),
        f"{percent(issue)} ({wanted.get('issue', '-')})",
        f"{registers:.0f} ({wanted.get('registers', '-')})" if registers else "-",
        percent(row["occupancy %"]),
        row["top stall"].replace("_", " "),
        f"({wanted.get('first limit', '-')})",
    ]


SECTIONS: dict[str, Section] = {
    "smoke": _columns("group", "cases", "failed", "seconds", "remark"),
    "figures": _figures,
    "tests": _tests,
    "sanitize": _columns("tool", "says", "in our kernels", "cases"),
    "profile": _profile,
}


def summary(results: dict[str, Any], out: Path, code: int) -> list[str]:
    """What is printed last: the parts, then as much as fits of their results."""
    facts = results["facts"]
    head = [
        f"weighted_bce {facts['commit']} on {facts.get('GPU')}, driver {facts['driver']}, "
        f"torch {facts.get('torch')}",
        f"clocks: {clocks(results)}",
    ]
    more: list[str] = []
    for part in results["parts"]:
        text = f"{part['part']:9}{part['outcome']:12}{part['seconds']:4.0f} s  {part['why']}"
        head.append(text.rstrip())
    for name, details in DETAILS.items():
        for part in results["parts"]:
            if part["part"] == name and part["results"]:
                more += [f"  {line}" for line in _safely(details, part["results"])]
    last = [f"results: {out}", f"exit code {code}"]
    kept = more[: MOST_LINES - len(head) - len(last)]
    return [line[:MOST_COLUMNS] for line in (*head, *kept, *last)]


def _failing(rows: Sequence[Row]) -> list[str]:
    bad = [f"{row['test']}: {_reason(row)}" for row in rows if row["outcome"] in BAD]
    return [f"tests: {tally(rows)}", *bad[:5]]


def _kernels(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        name, time, memory, issue, registers, occupancy, stall, _ = _counted(row)
        lines.append(
            f"{name.removesuffix(', loss and gradient')}: {time}, DRAM {memory}, issue {issue}, "
            f"{registers} registers, occupancy {occupancy}, stalls: {stall}"
        )
    return lines


# The summary has these in this order, as many lines as there is space for.
DETAILS: dict[str, Section] = {
    "tests": _failing,
    "profile": _kernels,
    "figures": tables.lines,
}
