"""Writes the figures of bench/results into README.md, between two marks.

Run as: python -m bench.readme, or with --check to see whether they are the ones that are there.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .losses import NAMES
from .names import FORWARD, STEP
from .records import Records, Row, load, setting_of
from .report import loses, mebibytes, number, times

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PICTURES = {
    "elements": "Seconds of a step against the number of elements",
    "labels": "Seconds of a step against the number of labels",
    "layer": "Seconds of a step of a linear layer and its loss against the number of labels",
    "memory": "Peak memory",
    "error": "Largest error of the gradient",
}


def written(text: str) -> str:
    """README with the figures of today's results."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md must have {BEGIN} and then {END}")
    parts = [_of_machine(path.parent) for path in sorted(RESULTS.glob("*/results.json"))]
    return "\n\n".join([before + BEGIN, *parts, END]) + after


def _of_machine(folder: Path) -> str:
    records = load(folder)
    parts = [_facts(records, folder)]
    groups = records.groups()
    losses = [group for group in groups if not group[0]["features"]]
    layers = [group for group in groups if group[0]["features"]]
    if losses:
        parts += _of_losses(losses)
    parts += [_table(rows) for rows in _most_telling(layers)]
    parts += [_faster(groups), *_pictures(folder)]
    return "\n\n".join(part for part in parts if part)


def _of_losses(groups: list[list[Row]]) -> list[str]:
    main = groups[0][0]
    same = [g for g in groups if all(g[0][f] == main[f] for f in ("rows", "labels", "threads"))]
    usual = [g for g in same if g[0]["target"] == "bool" and g[0]["density"] == main["density"]]
    first = [g for g in usual if g[0]["dtype"] == main["dtype"]]
    others = [g for g in same if g not in first and g[0]["density"] == main["density"]]
    pairs = [(g, setting_of(g[0])) for g in groups]
    sparse = [g for g, s in pairs if s.is_sparse and s.positives_per_row == 5]
    small = [g for g, s in pairs if s.elements < 2**10]
    parts = [_table(rows) for rows in first]
    parts += ["Times of ours, of other dtypes, targets and sizes:", _overview([*others, *small])]
    parts += [_table(rows) for rows in sparse if rows[0]["labels"] > 10**5][:2]
    return parts


def _most_telling(layers: list[list[Row]]) -> list[list[Row]]:
    """Those of the first shape, and of the most labels; a picture shows the others."""
    if not layers:
        return []
    first = setting_of(layers[0][0]).sizes
    most = max(rows[0]["labels"] for rows in layers)
    return [g for g in layers if setting_of(g[0]).sizes == first or g[0]["labels"] == most]


def _facts(records: Records, folder: Path) -> str:
    known = records.facts
    names = ("GPU", "driver", "CPU", "threads", "torch", "weighted_bce", "commit")
    text = ", ".join(f"{name} {known[name]}" for name in names if name in known)
    link = folder.relative_to(ROOT).as_posix()
    return f"`{known['command']}` ([results]({link})): {text}."


def _describe(row: Row) -> str:
    what = {STEP: "Forward and backward", FORWARD: "Forward alone, under `no_grad`"}[row["pass"]]
    what += ", CUDA graphs" * row["graphs"]
    target = f"{row['target']} targets with {row['density']:.1%} positives"
    setting = setting_of(row)
    if setting.is_sparse:
        target = f"sparse labels, {setting.positives_per_row} in each row"
    logits = " logits"
    if setting.features:
        logits, what = "", f"Linear layer and loss, {what[0].lower()}{what[1:]}"
    sizes = " x ".join(f"{size:,}" for size in setting.sizes)
    return f"{what}: {sizes} {row['dtype']}{logits}, {target}"


def _table(rows: list[Row]) -> str:
    yardstick, name, memory = "times_copy", "`copy_`", "peak_gradients"
    if rows[0]["features"]:
        yardstick, name, memory = "times_products", "products", "beyond_bytes"
    peak = any(row[memory] is not None for row in rows)
    heads = ["ms", "p20 to p80", f"times {name}", "times ours"]
    heads += [_MEMORY[memory]] * peak + ["error of the loss", "of the gradient"]
    step = rows[0]["pass"] == STEP
    lines = [[_describe(rows[0]), *(heads if step else heads[:-1])]]
    for row in rows:
        if row["seconds"] is None or row[yardstick] is None:
            continue
        spread = f"{number(1e3 * row['p20'])} to {number(1e3 * row['p80'])}"
        cells = [number(1e3 * row["seconds"]), spread, number(row[yardstick]), _bold(row)]
        cells += [_of_memory(row)] * peak
        cells.append(_or_empty(row["loss_error"], "{:.0e}"))
        cells += [_or_empty(row["gradient_error"], "{:.0e}")] * step
        lines.append([NAMES[row["contender"]], *cells])
    return _markdown(lines)


_MEMORY = {
    "peak_gradients": "peak memory, in gradients",
    "beyond_bytes": "peak memory beyond inputs and gradients, MiB",
}


def _of_memory(row: Row) -> str:
    if row["beyond_bytes"] is not None:
        return mebibytes(row["beyond_bytes"])
    return _or_empty(row["peak_gradients"], "{:.2f}")


def _bold(row: Row) -> str:
    """What is faster than ours stands out."""
    return f"**{times(row)}**" if loses(row) else times(row)


def _or_empty(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


OVERVIEW = ("copy", "masked", "bce", "bce-float", "compile", "scatter", "timm", "torchvision")


def _overview(groups: Iterable[list[Row]]) -> str:
    lines = [["", "ours, ms", *(NAMES[key] for key in OVERVIEW)]]
    for rows in groups:
        by = {row["contender"]: row for row in rows}
        own = by["ours"]["seconds"]
        if own is None:
            continue
        cells = [_bold(by[key]) if key in by else "" for key in OVERVIEW]
        first = rows[0]
        name = f"{first['rows']} x {first['labels']} {first['dtype']}, {first['target']}"
        lines.append([f"{name}, {first['pass']}", f"{1e3 * own:.3g}", *cells])
    return _markdown(lines)


def _faster(groups: Iterable[list[Row]]) -> str:
    found = [
        f"{NAMES[row['contender']]} at {' x '.join(map(str, setting_of(row).sizes))} "
        f"{row['dtype']}, "
        f"{row['target']} targets, {row['pass']} ({times(row)})"
        for rows in groups
        for row in rows
        if loses(row)
    ]
    if not found:
        return "Nothing that computes this loss was faster than ours in this run."
    return f"Faster than ours in this run: {'; '.join(found)}."


def _pictures(folder: Path) -> Iterator[str]:
    link = folder.relative_to(ROOT).as_posix()
    for name, what in PICTURES.items():
        if (folder / f"{name}.svg").exists():
            yield f"![{what}]({link}/{name}.svg)"


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where it is stale")
    check = parser.parse_args().check
    text = README.read_text()
    new = written(text)
    if not check:
        README.write_text(new)
    return int(check and new != text)


if __name__ == "__main__":
    sys.exit(main())
