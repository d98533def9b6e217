"""Tables for Markdown, and a line for each setting that the benchmark measured."""

import math
from collections.abc import Iterable, Sequence

from .part import Row

OWN = ("copy", "ours", "scaled", "scaled-changing", "inplace")
OF_GROUP = ("rows", "features", "labels", "dtype", "target", "density", "pass", "graphs")
Group = dict[str, Row]  # the rows of one setting, by baseline


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def lines(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each training step that is not a graph, the smaller sizes last.

    It has the time of ours, then what else was measured by the keys of the benchmark: of our own
    ways the share of a copy's bandwidth, of others how many times as long as ours they take.
    """
    groups: dict[tuple[object, ...], Group] = {}
    for row in rows:
        if row["pass"] == "step" and not row["graphs"]:
            group = groups.setdefault(tuple(row.get(field) for field in OF_GROUP), {})
            group.setdefault(row["baseline"], row)  # what ran twice counts as it ran first
    last = sorted(groups.values(), key=lambda group: next(iter(group.values()))["run"] == "small")
    return [_line(group) for group in last]


def _line(group: Group) -> str:
    own, others = [], []
    for key, row in group.items():
        if row["seconds"] is None:
            continue
        if row["share_of_copy"] is not None and key in OWN[1:]:
            own.append(f"{key} {row['share_of_copy']:.0%}")
        elif row["times_ours"] is not None and key not in OWN:
            times = row["times_ours"]
            others.append(f"{key} {times:.2f}x" if times < 1 else f"{key} {times:.1f}x")
    ours = group.get("ours", {}).get("seconds")
    took = "failed" if ours is None else duration(ours)
    shares = f" ({', '.join(own)} of a copy's bandwidth)" if own else ""
    return f"{_setting(group)}: {took}{shares}; {', '.join(others)}"


def _setting(group: Group) -> str:
    """The setting has a name such as "2^28 float32 bool"."""
    row = next(iter(group.values()))
    count = row["rows"] * row["labels"]
    power = round(math.log2(count))
    sizes = f"2^{power}" if count == 2**power else f"{row['rows']} x {row['labels']}"
    if row.get("features"):
        sizes = f"{row['rows']} x {row['features']} x {row['labels']}"
    return f"{sizes} {row['dtype']} {row['target']}"


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
