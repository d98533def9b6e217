"""The pictures of docs/which_loss.md."""

from io import StringIO
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.files import write_whole

from . import study
from .picture import BLUE, CURVES, GREEN, GREY, ORANGE
from .study import DATA, Results, name_of, values

SHARES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)  # the ticks of the calibration curves
# Text stays text: as outlines it would be most of a file.
STYLE = {
    "font.size": 10,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "weighted_bce",
}


def draw(best: dict[str, Results], alike: dict[str, Results]) -> None:
    """Draws all, of the best networks and of those with one learning rate."""
    with plt.rc_context(STYLE):
        draw_losses(best)
        draw_weights(alike)
        draw_calibration(alike)


def figure_of(rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    size = (10.0, height)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def save(figure: Figure, name: str) -> None:
    for ax in figure.axes:
        ax.grid(True, color="#DDDDDD", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    image = StringIO()
    figure.savefig(image, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    # matplotlib leaves spaces at the ends of lines.
    text = "".join(f"{line.rstrip()}\n" for line in image.getvalue().splitlines())
    study.PICTURES.mkdir(exist_ok=True)
    write_whole(study.PICTURES / f"which_{name}.svg", text)


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
