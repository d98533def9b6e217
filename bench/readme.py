"""Writes the figures of bench/results into README.md, between two comments.

Run as: python -m bench.readme
"""

from collections.abc import Sequence
from pathlib import Path

from tools.gpu.tables import markdown

from .baselines import BY_KEY
from .records import Row, load
from .report import FASTER, overview, ratio, short_name, shown_facts, table

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
OVERVIEW = ("copy", "masked", "bce", "bce-float", "compile", "scatter")
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
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md must have {BEGIN} and then {END}")
    parts = [_of_machine(path.parent) for path in sorted(RESULTS.glob("*/results.json"))]
    return "\n\n".join([before + BEGIN, *parts, END]) + after


def _of_machine(folder: Path) -> str:
    records, link = load(folder), folder.relative_to(ROOT).as_posix()
    groups, facts = records.groups(), shown_facts(records.facts)
    parts = [f"`{records.facts['command']}` ([results]({link})): {facts}."]
    for is_layer in (False, True):
        parts += _of_groups([g for g in groups if (g[0].setting.features > 0) == is_layer])
    faster = [
        f"{row.name} at {short_name(row)} ({ratio(row).removesuffix(FASTER)})"
        for row in records.rows
        if row.loses
    ]
    if faster:
        parts.append(f"Faster than ours in this run: {'; '.join(faster)}.")
    else:
        parts.append("Nothing that computes this loss was faster than ours in this run.")
    pictures = {name: what for name, what in PICTURES.items() if (folder / f"{name}.svg").exists()}
    parts += [f"![{what}]({link}/{name}.svg)" for name, what in pictures.items()]
    return "\n\n".join(parts)


def _of_groups(groups: list[list[Row]]) -> list[str]:
    """The groups of the first setting and of the most labels, and an overview of some others."""
    if not groups:
        return []
    main, most = groups[0][0].setting, max(rows[0].setting.labels for rows in groups)
    tables, others = [], []
    for rows in groups:
        setting = rows[0].setting
        usual = setting.density == main.density and setting.threads == main.threads
        if setting == main or setting.labels == most:
            lines = table([row for row in rows if row.seconds is not None])
            tables.append(_markdown(rows[0].title, lines))
        elif (setting.sizes == main.sizes and usual) or setting.elements < 2**10:
            others.append(rows)
    if others and not main.features:
        (first, ours, *keys), *lines = overview(others, OVERVIEW)
        names = [BY_KEY[key].name(main.loss) for key in keys]
        tables += ["Times of ours:", _markdown(first, [[first, ours, *names], *lines])]
    return tables


def _markdown(title: str, lines: Sequence[Sequence[str]]) -> str:
    """A table; what is faster than ours stands out, and what has no value is empty."""
    (_, *head), *others = [[_cell(cell) for cell in line] for line in lines]
    return "\n".join(markdown([title, *head], others))


def _cell(text: str) -> str:
    if text.endswith(FASTER):
        return f"**{text.removesuffix(FASTER)}**"
    return "" if text == "-" else text.replace("copy_", "`copy_`")


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
