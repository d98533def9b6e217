"""Draws the pictures of docs/which_loss.md and prints its tables, from examples/results.

Run as: python -m examples.study --help
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.command import obstacle
from tools.program import Parser, Refusal, insist, run

PROGRAM = "python -m examples.study"
PACKAGES = ("matplotlib",)
ROOT = Path(__file__).parent.parent
RESULTS, PICTURES = ROOT / "examples" / "results", ROOT / "docs" / "pictures"
DATA = {"imports": "modules of Python files", "debian": "tags of Debian packages"}
SAME = "masked multiply, 7"  # is weight 7 by other means
RATE = 0.02  # the learning rate with which all was trained
Results = list[dict[str, Any]]


def read(name: str) -> dict[float, Results]:
    """What was trained with each learning rate.

    Each has the losses in the same order, and each loss from 0 and then from the prior.
    """
    runs = {}
    for path in sorted(RESULTS.glob(f"{name}*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        shared = {"learning_rate": run["learning_rate"], "true_per_row": run["true_per_row"]}
        some = [result | shared for result in run["losses"] if result["loss"] != SAME]
        runs[run["learning_rate"]] = some
    return runs


def chosen(runs: dict[float, Results]) -> Results:
    """Each loss and start with the rate that has the best micro-F1 on validation rows."""
    alike = zip(*runs.values(), strict=True)
    return [max(same, key=lambda r: mean(values(r, "validation_f1"))) for same in alike]


def values(result: dict[str, Any], path: str) -> list[float]:
    """A number with each seed, at a path such as "at_half.f1"; none where there is none."""
    found = []
    for quality in result["qualities"]:
        for name in path.split("."):
            quality = quality and quality[name]
        found.append(quality)
    return [value for value in found if value is not None]


def name_of(result: dict[str, Any]) -> str:
    return str(result["loss"]).removeprefix("ours, ")


def cell(result: dict[str, Any], path: str, form: str) -> str:
    """The mean over the seeds."""
    known = values(result, path)
    return f"{mean(known):{form}}" if known else "-"


def cell_with_spread(result: dict[str, Any], path: str, form: str = ".3f") -> str:
    """The mean over the seeds and the standard deviation."""
    known = values(result, path)
    spread = f"{stdev(known):{form}}" if len(known) > 1 else "?"
    return f"{mean(known):{form}} ±{spread.removeprefix('0')}"


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (headers, *rows)]
    return "\n".join([lines[0], "|---" * len(headers) + "|", *lines[1:]])


def table_of_rankings(title: str, results: Results) -> str:
    f1, average = "at_best.f1", "mean_average_precision"
    headers = [title, "micro-F1, from 0", "from the prior", "macro-F1", "mAP, from 0"]
    rows = [
        [
            name_of(prior),
            *(cell_with_spread(start, f1) for start in (zero, prior)),
            cell_with_spread(prior, "at_best.macro_f1"),
            *(cell_with_spread(start, average) for start in (zero, prior)),
            *(cell_with_spread(prior, f"precision_at_{k}") for k in (1, 5)),
        ]
        for zero, prior in zip(results[::2], results[1::2], strict=True)
    ]
    return markdown([*headers, "from the prior", "P@1", "P@5"], rows)


def table_of_rates(title: str, results: Results) -> str:
    pairs = zip(results[::2], results[1::2], strict=True)
    rows = [[name_of(pair[0]), *(f"{one['learning_rate']:g}" for one in pair)] for pair in pairs]
    return markdown([title, "rate, from 0", "from the prior"], rows)


def table_at_half(title: str, results: Results) -> str:
    headers = [title, "precision", "recall", "labels per row", "rows empty", "sum"]
    headers += ["error", "undone: sum", "error"]
    paths = {"at_half.precision": ".3f", "at_half.recall": ".3f", "at_half.per_row": ".2f"}
    paths |= {"at_half.empty_rows": ".1%", "calibration.per_row": ".2f"}
    paths |= {"calibration.error": ".2f", "undone.calibration.per_row": ".2f"}
    paths |= {"undone.calibration.error": ".2f"}
    some = [result for result in results if result["prior"]]
    rows = [[name_of(r), *(cell(r, path, form) for path, form in paths.items())] for r in some]
    return markdown(headers, rows)


def table_of_starts(results: Results) -> str:
    """What training that is too short or too slow leaves empty, from both starts."""
    paths = {"at_half.recall": ".3f", "at_half.empty_rows": ".1%", "at_best.f1": ".3f"}
    paths["mean_average_precision"] = ".3f"
    headers = ["loss", "recall, from 0", "from the prior", "rows empty, from 0", "from the prior"]
    headers += ["micro-F1, from 0", "from the prior", "mAP, from 0", "from the prior"]
    rows = [
        [name_of(pair[0]), *(cell(r, *path) for path in paths.items() for r in pair)]
        for pair in zip(results[::2], results[1::2], strict=True)
    ]
    return markdown(headers, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    summary, _, _ = str(__doc__).partition("\n")
    Parser(prog=PROGRAM, description=summary).parse_args(arguments)
    problem = obstacle(PACKAGES, reference=True)
    insist(not problem, problem)
    from . import study_pictures

    try:
        runs = {name: read(name) for name in (*DATA, "collapse", "exponents")}
        best = {name: chosen(runs[name]) for name in DATA}
        # What a weight does to probabilities is seen among networks with one rate.
        alike = {name: runs[name][RATE] for name in DATA}
        tables = [
            table(title, results)
            for name, title in DATA.items()
            for table, results in (
                (table_of_rankings, best[name]),
                (table_of_rates, best[name]),
                (table_at_half, alike[name]),
            )
        ]
        for name in ("collapse", "exponents"):
            tables += [f"{name}\n\n{table_of_starts(some)}" for some in runs[name].values()]
        study_pictures.draw(best, alike)
    except (ValueError, TypeError, LookupError) as error:
        raise Refusal(f"{RESULTS} does not hold the results that it should: {error!r}", 1) from None
    print("\n\n".join(tables), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
