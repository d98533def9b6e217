"""Draws the pictures of docs/which_loss.md and prints its tables, from examples/results.

Run as: python -m examples.study
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .picture import BLUE, CURVES, GREEN, GREY, ORANGE

ROOT = Path(__file__).parent.parent
RESULTS, PICTURES = ROOT / "examples" / "results", ROOT / "docs" / "pictures"
DATA = {"imports": "modules of Python files", "debian": "tags of Debian packages"}
SAME = "masked multiply, 7"  # is weight 7 by other means
RATE = 0.02  # the learning rate with which all was trained
SHARES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)  # the ticks of the calibration curves
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


def figure_of(rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    size = (10.0, height)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def save(figure: Figure, name: str) -> None:
    for ax in figure.axes:
        ax.grid(True, color="#DDDDDD", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"which_{name}.svg"
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    # matplotlib leaves spaces at the ends of lines.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def draw_losses(of_data: dict[str, Results]) -> None:
    """Micro-F1 and mAP of each loss, from both starts, with the deviation over seeds."""
    measures = {"at_best.f1": "micro-F1, best threshold", "mean_average_precision": "mAP"}
    figure, axes = figure_of(2, 2, 8.4)
    for row, (name, results) in zip(axes, of_data.items(), strict=True):
        for ax, (path, label) in zip(row, measures.items(), strict=True):
            _draw_starts(ax, results, path)
            ax.set(xlabel=label, title=DATA[name])
        row[1].tick_params(labelleft=False)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside upper center", ncols=2)
    save(figure, "losses")


def _draw_starts(ax: Axes, results: Results, path: str) -> None:
    for prior, color, fill, shift in ((False, GREY, "white", -0.15), (True, BLUE, BLUE, 0.15)):
        some = [result for result in results if result["prior"] == prior]
        found = [values(result, path) for result in some]
        spreads = [stdev(x) if len(x) > 1 else 0.0 for x in found]
        places = [k + shift for k in range(len(some))]
        label = f"bias from {'the prior' if prior else '0'}"
        style = {"fmt": "o", "color": color, "markerfacecolor": fill, "label": label}
        ax.errorbar([mean(x) for x in found], places, xerr=spreads, **style)
    ax.set_yticks(range(len(results) // 2), [name_of(result) for result in results[::2]])
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)


def draw_weights(of_data: dict[str, Results]) -> None:
    """Precision, recall and labels per row at probability 0.5, against pos_weight."""
    figure, axes = figure_of(2, 2, 7.2)
    for (left, right), (name, results) in zip(axes, of_data.items(), strict=True):
        line = [r for r in results if r["prior"] and r["kind"] in ("plain", "weighted")]
        weights = [r["pos_weight"] for r in line]
        for measure, (color, style) in CURVES.items():
            means = [mean(values(r, f"at_half.{measure}")) for r in line]
            left.plot(weights, means, style, color=color, label=measure.replace("f1", "micro-F1"))
        left.set(ylim=(0, 1.02), ylabel="at probability 0.5", title=DATA[name])
        predicted = [mean(values(r, "at_half.per_row")) for r in line]
        right.plot(weights, predicted, "o-", color=BLUE, label="predicted")
        true = line[0]["true_per_row"]
        right.axhline(true, color=GREY, linestyle="--", label=f"true: {true:.2f}")
        right.set(yscale="log", ylabel="labels per row (log scale)", title=DATA[name])
        low, high = 0.8 * min(*predicted, true), 1.25 * max(*predicted, true)
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if low < tick < high]
        right.set(ylim=(low, high))
        right.set_yticks(ticks, map(str, ticks))
        for ax in (left, right):
            ax.set(xscale="log", xlabel="pos_weight (1 is plain BCE)")
            ax.set_xticks(weights, [f"{w:g}" for w in weights])
            ax.minorticks_off()
            ax.legend(frameon=False)
    save(figure, "weights")


def draw_calibration(of_data: dict[str, Results]) -> None:
    """The share of true labels among pairs with about the same probability."""
    lines = {
        ("plain BCE", "calibration"): (GREY, "o-", "plain BCE"),
        ("ours, weight 7", "calibration"): (ORANGE, "s-", "weight 7"),
        ("ours, weight 7", "undone"): (GREEN, "^--", "weight 7, undone"),
        ("ours, Focal", "calibration"): (BLUE, "d-", "focal"),
    }
    figure, axes = figure_of(1, 2, 4.6)
    for ax, (name, results) in zip(axes[0], of_data.items(), strict=True):
        ax.plot(SHARES, SHARES, ":", color=GREY, label="calibrated")
        for (loss, where), (color, style, label) in lines.items():
            (result,) = (r for r in results if r["prior"] and r["loss"] == loss)
            bins = result["quality"][where]
            bins = bins["calibration"] if where == "undone" else bins
            sums = zip(bins["pairs"], bins["expected"], bins["true"], strict=True)
            # A share of few pairs, or of few true ones, is chance.
            points = [(e / n, t / n) for n, e, t in sums if n >= 20 and t >= 5 and t < n]
            ax.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4)
        ax.set(xscale="logit", yscale="logit", title=DATA[name])
        ax.set(xlabel="mean probability of a bin", ylabel="share of true labels")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(SHARES, [f"{share:g}" for share in SHARES])
        ax.minorticks_off()
        ax.set(xlim=(SHARES[0], SHARES[-1]), ylim=(SHARES[0], SHARES[-1]))
    axes[0, 0].legend(frameon=False)
    save(figure, "calibration")


def main() -> int:
    runs = {name: read(name) for name in DATA}
    best = {name: chosen(some) for name, some in runs.items()}
    # What a weight does to probabilities is seen among networks with one rate.
    alike = {name: some[RATE] for name, some in runs.items()}
    # Text stays text: as outlines it would be most of a file.
    style = {"font.size": 10, "lines.linewidth": 1.6, "svg.fonttype": "none"}
    style["svg.hashsalt"] = "weighted_bce"
    with plt.rc_context(style):
        draw_losses(best)
        draw_weights(alike)
        draw_calibration(alike)
    for name, title in DATA.items():
        for table, results in (
            (table_of_rankings, best[name]),
            (table_of_rates, best[name]),
            (table_at_half, alike[name]),
        ):
            print(f"{table(title, results)}\n")
    for name in ("collapse", "exponents"):
        for results in read(name).values():
            print(f"{name}\n\n{table_of_starts(results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
