"""The results as a table, a picture, and the answers to two questions."""

import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from . import program

# Okabe and Ito's colours, which stay apart for colour-blind readers; the line styles differ too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
CURVES = {"precision": (BLUE, "o-"), "recall": (ORANGE, "s-"), "f1": (GREEN, "^--")}
HEADERS = ("loss", "preci-\nsion", "recall", "micro\nF1", "mAP", "labels\nper row")
HEADERS += ("rows\nempty", "step\nms", "peak\nMiB")
CAPTION = (
    "CE: cross-entropy; weight: pos_weight. Labels predicted: probability >= 0.5; softmax "
    "(categorical CE) >= 0.5 / {positives:.2f}, half of a positive's mean share of its target. "
    "mAP: average precision of each row's ranking, mean over rows (as sklearn's, "
    'average="samples").\n'
    "Step: loss and backward, from {rows} x {labels} float32 logits and sparse labels to the "
    "gradient of the logits. ms: median of rounds in which the losses take turns. Peak: rise of "
    "the resident-set high-water mark of a fresh process in its first step, inputs not counted; "
    "one gradient is {mib} MiB."
)


class Result(NamedTuple):
    """The worth of what one loss trained, and what a step of it costs."""

    loss: str
    kind: str
    pos_weight: float | None
    # Micro-averaged over all (row, label) pairs, except where a row is named.
    precision: float
    recall: float
    f1: float
    mean_average_precision: float  # of each row's ranking of the labels, averaged over rows
    predicted_per_row: float
    true_per_row: float
    empty_rows: float  # the share of rows without a predicted label
    milliseconds: float
    peak_bytes: int | None

    def cells(self) -> list[str]:
        return [
            self.loss,
            f"{self.precision:.3f}" if self.predicted_per_row else "-",
            *(f"{value:.3f}" for value in (self.recall, self.f1, self.mean_average_precision)),
            f"{self.predicted_per_row:.2f}",
            f"{self.empty_rows:.1%}",
            f"{self.milliseconds:.1f}",
            program.mebibytes(self.peak_bytes),
        ]


def table(results: list[Result], rows: int, labels: int, positives_per_row: float) -> Table:
    mib = program.mebibytes(4 * rows * labels)
    true = results[0].true_per_row
    return program.table(
        HEADERS,
        [result.cells() for result in results],
        title=f"Held-out fifth of the rows, {true:.2f} true labels per row",
        caption=CAPTION.format(positives=positives_per_row, mib=mib, rows=rows, labels=labels),
        caption_justify="left",
    )


def answers(results: list[Result], labels: int) -> tuple[str, str]:
    """Does plain BCE collapse to zeros, does weighting flip everything to ones?"""
    plain = next(r for r in results if r.kind == "plain")
    verdict = "Yes" if plain.empty_rows > 0.9 else "Mostly" if plain.empty_rows > 0.5 else "No"
    ours = [r for r in results if r.kind == "ours"]
    heaviest = max(ours, key=lambda r: r.pos_weight)
    best = max(ours, key=lambda r: r.f1)
    ones = heaviest.predicted_per_row
    even = "Yes: at" if ones > labels / 2 else "No: even at"
    return (
        f"Does plain BCE collapse to zeros? {verdict}: it predicts {plain.predicted_per_row:.2f} "
        f"labels per row where {plain.true_per_row:.2f} are true, and leaves "
        f"{plain.empty_rows:.0%} of the rows empty.",
        f"Does weighting flip everything to ones? {even} "
        f"pos_weight {heaviest.pos_weight:g} it predicts {ones:.1f} of {labels:,} labels per row "
        f"({ones / labels:.1%}); the best micro-F1, {best.f1:.3f}, is at pos_weight "
        f"{best.pos_weight:g} with {best.predicted_per_row:.1f} labels per row.",
    )


def picture(results: list[Result], data: str, labels: int, out: Path) -> list[Path]:
    """Precision, recall and predicted labels against pos_weight, as PNG and SVG."""
    # Plain BCE is pos_weight 1.
    line = [r for r in results if r.kind in ("plain", "ours")]
    line.sort(key=lambda r: r.pos_weight)
    weights, counts = [r.pos_weight for r in line], [r.predicted_per_row for r in line]
    paths = [out / "sparse_labels.png", out / "sparse_labels.svg"]
    with plt.rc_context({"font.size": 11, "lines.linewidth": 2, "svg.hashsalt": "weighted_bce"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
        for name, (color, style) in CURVES.items():
            # Without a prediction there is no precision: a gap, not a zero.
            has = [r.predicted_per_row > 0 or name != "precision" for r in line]
            drawn = np.where(has, [getattr(r, name) for r in line], np.nan)
            left.plot(weights, drawn, style, color=color, label=name.replace("f1", "micro-F1"))
        left.set(ylim=(-0.02, 1.02), ylabel="held-out rows, threshold 0.5")
        left.set_title("Precision and recall")
        right.plot(weights, counts, "o-", color=BLUE)
        for at in zip(weights, counts, strict=True):
            # Below and to the right of a rising line no other line is drawn.
            right.annotate(f"{at[1]:.3g}", at, (7, -14), textcoords="offset points")
        true = line[0].true_per_row
        right.axhline(true, color=GREY, linestyle="--", label=f"true: {true:.2f}")
        right.axhline(labels, color=GREY, linestyle=":", label=f"all {labels:,}")
        # A logarithm has no place for zero: below this it is a straight line.
        right.set_yscale("symlog", linthresh=0.1)
        right.set(ylim=(0, labels * 4), ylabel="predicted labels per row (log scale)")
        right.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        right.set_title("Predicted labels per row")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.margins(x=0.12)
            axes.set_xticks(weights, [f"{w:g}" if w != 1 else "1\n(plain BCE)" for w in weights])
            axes.minorticks_off()
            axes.set_xlabel("pos_weight (log scale)")
            axes.grid(True, color="#DDDDDD", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, loc="upper center", ncols=3)
        figure.suptitle(data, fontsize=10, color=GREY)
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    return paths


def save_json(results: list[Result], data: str, rows: int, labels: int, path: Path) -> None:
    """The numbers of the table in full, for other programs."""
    step = {"rows": rows, "labels": labels}
    comparison = {"data": data, "loss_step": step, "losses": [r._asdict() for r in results]}
    path.write_text(json.dumps(comparison, indent=2) + "\n")
