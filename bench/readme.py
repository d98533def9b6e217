"""Writes the figures of bench/results into README.md, between two marks.

Run as: python -m bench.readme, or with --check to see whether they are the ones that are there.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.gpu.tables import markdown

from .baselines import BY_KEY
from .names import FORWARD, STEP
from .records import Row, load
from .report import FASTER, overview, ratio, table

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
FACTS = ("GPU", "driver", "CPU", "threads", "torch", "weighted_bce", "commit")
OVERVIEW = ("copy", "masked", "bce", "bce-float", "compile", "scatter", "timm", "torchvision")
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
    records, link = load(folder), folder.relative_to(ROOT).as_posix()
    known, groups = records.facts, records.groups()
    text = ", ".join(f"{name} {known[name]}" for name in FACTS if name in known)
    parts = [f"`{known['command']}` ([results]({link})): {text}."]
    parts += _of_losses([group for group in groups if not group[0].setting.features])
    parts += _of_layers([group for group in groups if group[0].setting.features])
    parts.append(_faster(row for row in records.rows if row.loses))
    parts += [
        f"![{what}]({link}/{name}.svg)"
        for name, what in PICTURES.items()
        if (folder / f"{name}.svg").exists()
    ]
    return "\n\n".join(parts)


def _of_losses(groups: list[list[Row]]) -> list[str]:
    """The groups of the first setting, an overview of others, and those of the most labels."""
    if not groups:
        return []
    main = groups[0][0].setting
    first, others, most = [], [], []
    for group in groups:
        setting = group[0].setting
        if setting == main:
            first.append(group)
        elif (
            setting.sizes == main.sizes
            and (setting.density, setting.threads)
            == (
                main.density,
                main.threads,
            )
        ) or setting.elements < 2**10:
            others.append(group)
        elif setting.is_sparse and setting.positives_per_row == 5 and setting.labels > 10**5:
            most.append(group)
    parts = [_table(group) for group in first]
    if others:
        parts += ["Times of ours, of other dtypes, targets and sizes:"]
        (name, ours, *keys), *lines = overview(others, OVERVIEW)
        parts += [_markdown([[name, ours, *(BY_KEY[key].name(main.loss) for key in keys)], *lines])]
    return [*parts, *(_table(group) for group in most[:2])]


def _of_layers(groups: list[list[Row]]) -> list[str]:
    """Those of the first shape, and of the most labels; a picture shows the others."""
    if not groups:
        return []
    sizes, most = groups[0][0].setting.sizes, max(group[0].setting.labels for group in groups)
    settings = ((group, group[0].setting) for group in groups)
    return [_table(group) for group, s in settings if s.sizes == sizes or s.labels == most]


def _table(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.seconds is not None and row.times_floor is not None]
    (_, *head), *lines = table(timed)
    return _markdown([[_described(rows[0]), *head], *lines])


def _described(row: Row) -> str:
    setting = row.setting
    passes = {STEP: "forward and backward", FORWARD: "forward alone, under `no_grad`"}
    layer = "linear layer and loss, " * (setting.features > 0)
    text = f"{layer}{passes[row.pass_]}{', CUDA graphs' * row.graphs}"
    sizes = " x ".join(f"{size:,}" for size in setting.sizes)
    logits = "" if setting.features else " logits"
    return (
        f"{text[0].upper()}{text[1:]}: {sizes} {setting.dtype}{logits}, {setting.described_target}"
    )


def _markdown(lines: list[list[str]]) -> str:
    """A table; what is faster than ours stands out, and what has no value is empty."""
    head, *others = [[_cell(cell) for cell in line] for line in lines]
    return "\n".join(markdown(head, others))


def _cell(text: str) -> str:
    if text.endswith(FASTER):
        return f"**{text.removesuffix(FASTER)}**"
    return "" if text == "-" else text.replace("copy_", "`copy_`")


def _faster(rows: Iterable[Row]) -> str:
    found = [
        f"{row.name} at {' x '.join(map(str, row.setting.sizes))} {row.setting.dtype}, "
        f"{row.setting.target} targets, {row.pass_} ({ratio(row).removesuffix(FASTER)})"
        for row in rows
    ]
    if not found:
        return "Nothing that computes this loss was faster than ours in this run."
    return f"Faster than ours in this run: {'; '.join(found)}."


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
