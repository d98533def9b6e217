"""Writes a report of a course as Markdown, and a summary for the terminal."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.program import shortened

from . import tables
from .correctness import FAILURES
from .machine import text_of
from .part import Row

MOST_LINES, MOST_COLUMNS = 40, 160
MOST_TESTS = 6  # lines on tests in the summary
BAD = (*FAILURES, "began")


def report(results: dict[str, Any], logs: Path) -> str:
    """report.md; of the figures it has the tables that the benchmark has printed into its logs."""
    facts = results["facts"]
    text = [f"# weighted_bce on {facts.get('GPU', 'a GPU')}", ""]
    text += [f"- {name}: {value}" for name, value in facts.items()]
    text += [f"- clocks: {clocks(results)}", ""]
    head = ("part", "outcome", "seconds", "time limit", "remark")
    keys = ("part", "outcome", "seconds", "limit", "why")
    text += tables.markdown(head, [[part[key] for key in keys] for part in results["parts"]])
    for part in results["parts"]:
        if part["results"]:
            text += ["", f"## {part['part'].capitalize()}", ""]
            text += [f"- {line}" for line in _lines(part)]
        if part["part"] == "figures":
            for name in dict.fromkeys(row["run"] for row in part["results"] if "run" in row):
                printed = text_of(logs / "figures" / f"{name}.txt").strip()
                text += ["", f"### {name}", "", "```", printed, "```"]
    return "\n".join(text) + "\n"


def summary(results: dict[str, Any], out: Path, code: int) -> list[str]:
    """Returns what is printed last: the parts, then as much as fits of their results."""
    facts = results["facts"]
    head = [
        f"weighted_bce {facts['commit']} on {facts.get('GPU')}, driver {facts['driver']}, "
        f"torch {facts.get('torch')}",
        f"clocks: {clocks(results)}",
    ]
    parts = {part["part"]: part for part in results["parts"]}
    for part in results["parts"]:
        text = f"{part['part']:9}{part['outcome']:12}{part['seconds']:4.0f} s  {part['why']}"
        head.append(text.rstrip())
    last = [f"results: {out}", f"exit code {code}"]
    more, left_out = [], 0
    for name in LINES:
        lines = _lines(parts[name]) if name in parts else []
        most = MOST_TESTS if name == "tests" else len(lines)
        more += [f"  {line}" for line in lines[:most]]
        left_out += len(lines[most:])
    space = MOST_LINES - len(head) - len(last)
    if left_out or len(more) > space:
        kept = more[: space - 1]
        kept.append(f"  and {left_out + len(more) - len(kept)} more lines, in report.md")
    else:
        kept = more
    return [shortened(line, MOST_COLUMNS) for line in (*head, *kept, *last)]


def clocks(results: dict[str, Any]) -> str:
    """The range of the GPU's clock, and of its temperature and power."""
    ranges = []
    for name in ("SM MHz", "memory MHz", "W", "degrees C"):
        texts = [row[name] for row in results["clocks"]]
        values = [float(text) for text in texts if text.replace(".", "", 1).isdecimal()]
        if values:
            ranges.append(f"{min(values):.0f} to {max(values):.0f} {name}")
    return ", ".join(ranges) or "not known"


def _lines(part: Row) -> list[str]:
    """What came of a part; where its rows cannot be read, the others are still worth having."""
    try:
        return LINES[part["part"]](part["results"]) if part["results"] else []
    except Exception as error:
        return [f"unreadable: {type(error).__name__}: {error}"]


def _tests(rows: Sequence[Row]) -> list[str]:
    """How many tests passed, failed, were skipped, began and did not end; then those not right."""
    counts = Counter(row["outcome"] for row in rows)
    words = {"began": "did not end"}
    tally = ", ".join(f"{count} {words.get(name, name)}" for name, count in counts.items())
    bad = [f"{row['test']}: {_reason(row)}" for row in rows if row["outcome"] in BAD]
    return [f"tests: {tally}", *bad]


def _reason(row: Row) -> str:
    """The line of a traceback that pytest points to, or the first one."""
    if row["outcome"] == "began":
        return "did not end"
    lines = [line for line in str(row["text"]).splitlines() if line.strip()]
    pointed_to = [line[1:].strip() for line in lines if line.startswith("E ")]
    return shortened((pointed_to or lines or [""])[0], 200)


def _kernel(row: Row) -> str:
    """What was counted of a kernel, and in brackets what was expected of an H200."""
    expected = row["expected"]

    def percent(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.0f}%"

    issue = "issue active %" if row["issue slots %"] is None else "issue slots %"
    rate, registers = row["DRAM bytes/s"], row["registers"]
    facts = [
        "-" if row["seconds"] is None else tables.duration(row["seconds"]),
        f"DRAM {percent('DRAM %')}" + ("" if rate is None else f" {rate / 1e9:.0f} GB/s"),
        f"issue {percent(issue)} ({expected.get('issue', '-')})",
        f"{registers or 0:.0f} registers ({expected.get('registers', '-')})",
        f"occupancy {percent('occupancy %')}",
        f"stalls: {row['top stall'].replace('_', ' ')}",
        f"limit ({expected.get('first limit', '-')})",
    ]
    return f"{row['kernel'].removesuffix(', loss and gradient')}: {', '.join(facts)}"


def _profile(rows: Sequence[Row]) -> list[str]:
    return [_kernel(row) for row in rows]


def _sanitize(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row['tool']}: {row['says']}, {row['in our kernels']} in our kernels; {row['cases']}"
        for row in rows
    ]


def _smoke(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        done = f"{row['failed']} of {row['cases']} cases failed in {row['seconds']:.1f} s"
        lines.append("; ".join(filter(None, (f"{row['group']}: {done}", row["remark"]))))
    return lines


# The summary has these in this order, as many lines as there is space for.
LINES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "tests": _tests,
    "profile": _profile,
    "figures": tables.lines,
    "sanitize": _sanitize,
    "smoke": _smoke,
}
