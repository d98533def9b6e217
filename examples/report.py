"""The results as a table, a picture, and the answers to two questions."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib
from rich import box
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .losses import Loss

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers differ as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
CAPTION = (
    "CE: cross-entropy; weight: pos_weight. Labels predicted: probability >= 0.5; softmax "
    "(categorical CE) >= 0.5 / {positives:.2f}, half of a positive's mean share of its target. "
    "mAP: average precision of each row's ranking, mean over rows (as sklearn's, "
    'average="samples").\n'
    "Step: loss and backward, from {rows} x {labels} float32 logits and sparse labels to the "
    "gradient of the logits. ms: median of rounds in which the losses take turns. Peak: rise of "
    "the resident-set high-water mark of a fresh process in its first step, inputs not counted; "
    "one gradient is {mib:.1f} MiB."
)


class Quality(NamedTuple):
    """Micro-averaged over all (row, label) pairs, except where a row is named."""

    precision: float
    recall: float
    f1: float
    mean_average_precision: float  # of each row's ranking of the labels, averaged over rows
    predicted_per_row: float
    true_per_row: float
    empty_rows: float  # the share of rows without a predicted label


class Result(NamedTuple):
    """The worth of what one loss trained, and what a step of it costs."""

    loss: Loss
    quality: Quality
    milliseconds: float
    peak_bytes: int | None

    @property
    def weight(self) -> float:
        return self.loss.pos_weight or 1.0


class Shape(NamedTuple):
    """The logits on which the step was measured."""

    rows: int
    labels: int


def table(results: list[Result], shape: Shape, positives_per_row: float) -> Table:
    mib = 4 * shape.rows * shape.labels / 2**20
    made = Table(
        title=f"Held-out fifth of the rows, {results[0].quality.true_per_row:.2f} true labels "
        "per row",
        caption=CAPTION.format(positives=positives_per_row, mib=mib, **shape._asdict()),
        caption_justify="left",
        # Without lines between the columns the table fits into a terminal of 80 columns.
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    made.add_column("loss", no_wrap=True)
    headers = ("preci-\nsion", "recall", "micro\nF1", "mAP", "labels\nper row")
    for header in (*headers, "rows\nempty", "step\nms", "peak\nMiB"):
        made.add_column(header, justify="right", no_wrap=True)
    for loss, q, milliseconds, peak in results:
        made.add_row(
            loss.name,
            f"{q.precision:.3f}" if q.predicted_per_row else "-",
            *(f"{value:.3f}" for value in (q.recall, q.f1, q.mean_average_precision)),
            f"{q.predicted_per_row:.2f}",
            f"{q.empty_rows:.1%}",
            f"{milliseconds:.1f}",
            "n/a" if peak is None else f"{peak / 2**20:.1f}",
        )
    return made


def answers(results: list[Result], labels: int) -> tuple[str, str]:
    """Does plain BCE collapse to zeros, does weighting flip everything to ones?"""
    plain = next(r.quality for r in results if r.loss.kind == "plain")
    verdict = "Yes" if plain.empty_rows > 0.9 else "Mostly" if plain.empty_rows > 0.5 else "No"
    ours = [r for r in results if r.loss.kind == "ours"]
    heaviest = max(ours, key=lambda r: r.weight)
    best = max(ours, key=lambda r: r.quality.f1)
    ones = heaviest.quality.predicted_per_row
    even = "Yes: at" if ones > labels / 2 else "No: even at"
    return (
        f"Does plain BCE collapse to zeros? {verdict}: it predicts {plain.predicted_per_row:.2f} "
        f"labels per row where {plain.true_per_row:.2f} are true, and leaves "
        f"{plain.empty_rows:.0%} of the rows empty.",
        f"Does weighting flip everything to ones? {even} "
        f"pos_weight {heaviest.weight:g} it predicts {ones:.1f} of {labels:,} labels per row "
        f"({ones / labels:.1%}); the best micro-F1, {best.quality.f1:.3f}, is at pos_weight "
        f"{best.weight:g} with {best.quality.predicted_per_row:.1f} labels per row.",
    )


def picture(results: list[Result], data: str, labels: int, out: Path) -> list[Path]:
    """Precision, recall and predicted labels against pos_weight, as PNG and SVG."""
    # Plain BCE is pos_weight 1.
    line = sorted((r for r in results if r.loss.kind in ("plain", "ours")), key=lambda r: r.weight)
    weights = [r.weight for r in line]
    paths = [out / "sparse_labels.png", out / "sparse_labels.svg"]
    with plt.rc_context({"font.size": 11, "lines.linewidth": 2, "svg.hashsalt": "weighted_bce"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
        _draw_quality(left, weights, [r.quality for r in line])
        _draw_counts(right, weights, [r.quality for r in line], labels)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.margins(x=0.12)
            axes.set_xticks(weights, [f"{w:g}" if w != 1 else "1\n(plain BCE)" for w in weights])
            axes.minorticks_off()
            axes.set_xlabel("pos_weight (log scale)")
            axes.grid(True, color="#DDDDDD", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(data, fontsize=10, color=GREY)
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    return paths


def _draw_quality(axes: Axes, weights: list[float], line: list[Quality]) -> None:
    # Without a prediction there is no precision: a gap, not a zero.
    precision = [q.precision if q.predicted_per_row else math.nan for q in line]
    axes.plot(weights, precision, "o-", color=BLUE, label="precision")
    axes.plot(weights, [q.recall for q in line], "s-", color=ORANGE, label="recall")
    axes.plot(weights, [q.f1 for q in line], "^--", color=GREEN, label="micro-F1")
    axes.set(ylim=(-0.02, 1.02), ylabel="held-out rows, threshold 0.5")
    axes.set_title("Precision and recall")
    axes.legend(frameon=False, loc="upper center", ncols=3)


def _draw_counts(axes: Axes, weights: list[float], line: list[Quality], labels: int) -> None:
    # A logarithm has no place for zero: it is drawn at the foot, with its true number next to it.
    true, counts = line[0].true_per_row, [q.predicted_per_row for q in line]
    foot = min(count or 0.001 for count in counts)
    axes.plot(weights, [count or foot for count in counts], "o-", color=BLUE)
    offset = {"textcoords": "offset points"}
    for weight, count in zip(weights, counts, strict=True):
        # Below and to the right of a rising line no other line is drawn.
        axes.annotate(f"{count:.3g}", (weight, count or foot), (7, -14), **offset)
    right = axes.get_yaxis_transform()
    for value, text, style in ((true, f"true: {true:.2f}", "--"), (labels, f"all {labels:,}", ":")):
        axes.axhline(value, color=GREY, linestyle=style, linewidth=1.5)
        axes.annotate(text, (0.01, value), (0, 5), color=GREY, xycoords=right, **offset)
    axes.set(yscale="log", ylim=(min(foot, true) / 4, labels * 4))
    axes.set(ylabel="predicted labels per row (log scale)", title="Predicted labels per row")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def save_json(results: list[Result], data: str, shape: Shape, path: Path) -> None:
    """The numbers of the table in full, for other programs."""
    losses = [
        {"loss": r.loss.name, "pos_weight": r.loss.pos_weight}
        | r.quality._asdict()
        | {"milliseconds": r.milliseconds, "peak_bytes": r.peak_bytes}
        for r in results
    ]
    comparison = {"data": data, "loss_step": shape._asdict(), "losses": losses}
    path.write_text(json.dumps(comparison, indent=2) + "\n")
