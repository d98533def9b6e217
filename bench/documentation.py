"""Writes the figures of bench/results into README.md and docs/benchmarks.md.

Run as: python -m bench.documentation --help
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.files import write_whole
from tools.gpu.tables import markdown
from tools.program import Parser, Refusal, insist, run

from .baselines import BY_KEY
from .names import ASYMMETRIC, BCE, OURS, SPARSE, STEP
from .records import Records, Row, load
from .report import FASTER, number, overview, ratio, short_name, shown_facts, table

PROGRAM = "python -m bench.documentation"
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
OVERVIEW = ("copy", "masked", "bce", "bce-float", "compile", "scatter")
OVERVIEW_OF_LAYERS = ("products", "fused-step", "unfused", "bce")
PICTURES = {
    "elements": "Seconds of a training step against the number of elements",
    "labels": "Seconds of a training step against the number of labels",
    "density": "Seconds of a training step against the share of positives",
    "threads": "Seconds of a training step against the number of threads",
    "layer": "Seconds of a training step of a linear layer against the number of labels",
    "memory": "Peak memory",
    "error": "Largest error of the gradient",
}


class Headline(NamedTuple):
    """A row of README's table: a training step, and the usual way to write it."""

    what: str
    sizes: tuple[int, ...]
    target: str
    baseline: str
    usual: str
    loss: str = BCE


HEADLINES = (
    Headline("Dense labels", (1024, 16384), "bool", "masked", "masked multiply"),
    Headline("Sparse labels", (64, 2812281), SPARSE, "scatter", "dense target, PyTorch's BCE"),
    Headline("Linear layer and loss", (256, 256, 131072), SPARSE, "masked", "masked multiply"),
    Headline("Asymmetric loss", (1024, 16384), "bool", ASYMMETRIC, "authors' formula", ASYMMETRIC),
)
HEAD = (
    "Training step (float32, 2 threads)",
    "usual code",
    "usual, ms",
    "weighted_bce, ms",
    "times as fast",
    "usual, MiB",
    "weighted_bce, MiB",
)
FACTS = ("GPU", "CPU", "torch", "weighted_bce", "commit", "SIMD level in use")
NOT_ON_A_GPU = ("The same on a GPU", "not measured: no GPU has run the CUDA kernels yet")


def written(page: Path, text: str) -> str:
    """The page with the figures of today's results."""
    begin, end = "<!-- figures: begin -->", "<!-- figures: end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    insist(found, f"{page.name} must have {begin} and then {end}")
    parts = PAGES[page.name](page.parent)
    return "\n\n".join([before + begin, *parts, end]) + after


def all_results() -> dict[Path, Records]:
    """The records of each folder of results."""
    return {path.parent: load(path) for path in sorted(RESULTS.glob("*/results.json"))}


def headlines(_: Path) -> list[str]:
    """README's table, and the commands by which it was made."""
    lines: list[Sequence[str]] = []
    by_run: dict[str, list[str]] = {}
    results = [*all_results().values()][::-1]  # a later folder measures a group again
    for headline in HEADLINES:
        for records in results:
            rows = _of_headline(headline, records)
            if rows:
                lines.append(_headline(headline, *rows))
                by_run.setdefault(_run(records), []).append(str(len(lines)))
                break
    if not any("GPU" in records.facts for records in results):
        lines.append([*NOT_ON_A_GPU, *[""] * (len(HEAD) - len(NOT_ON_A_GPU))])
    text = [f"- Row {' and '.join(numbers)}: {run}." for run, numbers in by_run.items()]
    return ["\n".join(markdown(HEAD, lines)), "\n".join(text)]


def _of_headline(headline: Headline, records: Records) -> tuple[Row, Row] | None:
    """The rows of weighted_bce and of the usual way."""
    found: dict[str, Row] = {}
    for row in records.rows:  # the first that fits: others have fewer threads or other densities
        setting = row.setting
        fits = (setting.sizes, setting.target) == (headline.sizes, headline.target)
        is_step = (setting.loss, row.pass_, row.graphs) == (headline.loss, STEP, False)
        if fits and is_step and setting.dtype == "float32" and not setting.busy:
            found.setdefault(row.key, row)
    keys = (OURS, headline.baseline)
    return (found[keys[0]], found[keys[1]]) if found.keys() >= {*keys} else None


def _headline(headline: Headline, ours: Row, usual: Row) -> list[str]:
    sizes = " x ".join(f"{size:,}" for size in headline.sizes)
    times = [number(1e3 * (row.seconds or 0)) for row in (usual, ours)]
    faster = number(usual.times_ours or 0)
    return [f"{headline.what}: {sizes}", headline.usual, *times, faster, _mib(usual), _mib(ours)]


def _mib(row: Row) -> str:
    """The peak of the memory beyond the inputs and their gradients."""
    beyond = row.beyond_bytes
    if beyond is None and row.peak_bytes is not None:
        beyond = max(0, row.peak_bytes - row.setting.gradient_bytes)
    return "" if beyond is None else number(beyond / 2**20)


def _run(records: Records) -> str:
    facts = {name: records.facts[name] for name in FACTS if name in records.facts}
    return f"`{records.facts['command']}` ({shown_facts(facts)})"


def figures(folder: Path) -> list[str]:
    """The tables and pictures of every run, for a page in the folder."""
    parts = []
    for results, records in all_results().items():
        parts += _of_run(records, Path(os.path.relpath(results, folder)).as_posix())
    return parts


def _of_run(records: Records, link: str) -> list[str]:
    groups, facts = records.groups(), shown_facts(records.facts)
    parts = [f"## {Path(link).name}", f"`{records.facts['command']}`", f"{facts}."]
    for is_layer in (False, True):
        parts += _of_groups([g for g in groups if (g[0].setting.features > 0) == is_layer])
    faster = [
        f"- {row.name} at {short_name(row)} ({ratio(row).removesuffix(FASTER)})"
        for row in records.rows
        if row.loses
    ]
    if faster:
        parts += ["In this run these were faster than weighted_bce:", "\n".join(faster)]
    else:
        parts.append("In this run nothing that computes a loss was faster than weighted_bce.")
    folder = RESULTS / Path(link).name
    pictures = {name: what for name, what in PICTURES.items() if (folder / f"{name}.svg").exists()}
    return parts + [f"![{what}]({link}/{name}.svg)" for name, what in pictures.items()]


def _of_groups(groups: list[list[Row]]) -> list[str]:
    """The groups of the first setting and of the most labels, and an overview of some others.

    The overview of linear layers has all of their groups. With busy cores each group has a table.
    """
    if not groups:
        return []
    main, most = groups[0][0].setting, max(rows[0].setting.labels for rows in groups)
    tables, others = [], []
    for rows in groups:
        setting = rows[0].setting
        usual = setting.density == main.density and setting.threads == main.threads
        is_main = setting._replace(loss=main.loss) == main  # a table for each loss
        if is_main or setting.labels == most > main.labels or setting.busy:
            lines = table([row for row in rows if row.seconds is not None])
            tables.append(_markdown(rows[0].title, lines))
        elif main.features or (setting.sizes == main.sizes and usual) or setting.elements < 2**10:
            others.append(rows)
    if others:
        shown, columns = (groups, OVERVIEW_OF_LAYERS) if main.features else (others, OVERVIEW)
        (first, ours, *keys), *lines = overview(shown, columns)
        names = [BY_KEY[key].name(main.loss) for key in keys]
        tables += ["Times as long as weighted_bce takes:"]
        tables += [_markdown(first, [[first, ours, *names], *lines])]
    return tables


def _markdown(title: str, lines: Sequence[Sequence[str]]) -> str:
    """A table; what is faster than weighted_bce stands out, and what has no value is empty."""
    (_, *head), *others = [[_cell(cell) for cell in line] for line in lines]
    return "\n".join(markdown([title, *head], others))


def _cell(text: str) -> str:
    if text.endswith(FASTER):
        return f"**{text.removesuffix(FASTER)}**"
    return "" if text == "-" else text.replace("copy_", "`copy_`")


PAGES = {"README.md": headlines, "benchmarks.md": figures}


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Writes the figures of bench/results into README.md and docs/benchmarks.md."
    parser = Parser(prog=PROGRAM, description=description)

    def work() -> None:
        parser.parse_args(arguments)
        try:  # all or none is written
            texts = {path: written(path, path.read_text(encoding="utf-8")) for path in pages()}
        except (ValueError, TypeError, LookupError) as error:
            raise Refusal(f"the results or the pages cannot be read: {error!r}", 1) from None
        for path, text in texts.items():
            write_whole(path, text)

    return run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
