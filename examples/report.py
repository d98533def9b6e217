"""What came out: a table, a picture, and the answers to two questions."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from rich import box
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .losses import Loss
from .training import Quality

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers differ as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
PLAIN = "plain BCE"


class Result(NamedTuple):
    """One loss: what it learned and what a step of it costs."""

    loss: Loss
    quality: Quality
    milliseconds: float
    peak_bytes: int | None


class Shape(NamedTuple):
    """Of the logits on which the loss step was measured."""

    rows: int
    labels: int

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.rows * self.labels


def table(results: list[Result], shape: Shape, positives_per_row: float) -> Table:
    true = results[0].quality.true_per_row
    made = Table(
        title=f"Held-out fifth of the rows, {true:.2f} true labels per row",
        caption=_caption(shape, positives_per_row),
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
    for result in results:
        made.add_row(result.loss.name, *_cells(result))
    return made


def _cells(result: Result) -> list[str]:
    q, peak = result.quality, result.peak_bytes
    return [
        f"{q.precision:.3f}" if q.predicted_per_row else "-",
        f"{q.recall:.3f}",
        f"{q.f1:.3f}",
        f"{q.mean_average_precision:.3f}",
        f"{q.predicted_per_row:.2f}",
        f"{q.empty_rows:.1%}",
        f"{result.milliseconds:.1f}",
        "n/a" if peak is None else f"{peak / 2**20:.1f}",
    ]


def _caption(shape: Shape, positives_per_row: float) -> str:
    return (
        "CE: cross-entropy; weight: pos_weight. Labels predicted: probability >= 0.5; softmax "
        f"(categorical CE) >= 0.5 / {positives_per_row:.2f}, half of a positive's mean share of "
        "its target. mAP: average precision of each row's ranking, mean over rows (as sklearn's, "
        'average="samples").\n'
        f"Step: loss and backward, from {shape.rows} x {shape.labels} float32 logits and sparse "
        "labels to the gradient of the logits. ms: median of rounds in which the losses take "
        "turns. Peak: rise of the resident-set high-water mark of a fresh process in its first "
        f"step, inputs not counted; one gradient is {shape.gradient_bytes / 2**20:.1f} MiB."
    )


def answers(results: list[Result], labels: int) -> tuple[str, str]:
    """Does plain BCE collapse to zeros, does weighting flip everything to ones?"""
    plain = next(r.quality for r in results if r.loss.name == PLAIN)
    collapsed = ((0.9, "Yes"), (0.5, "Mostly"), (-1.0, "No"))
    verdict = next(word for least, word in collapsed if plain.empty_rows > least)
    first = (
        f"Does plain BCE collapse to zeros? {verdict}: it predicts {plain.predicted_per_row:.2f} "
        f"labels per row where {plain.true_per_row:.2f} are true, and leaves "
        f"{plain.empty_rows:.0%} of the rows empty."
    )
    heaviest = max((r for r in results if r.loss.kind == "ours"), key=_weight)
    best = max((r for r in results if r.loss.kind == "ours"), key=lambda r: r.quality.f1)
    ones = heaviest.quality.predicted_per_row / labels
    second = (
        f"Does weighting flip everything to ones? {'Yes' if ones > 0.5 else 'No'}: even at "
        f"pos_weight {_weight(heaviest):g} it predicts "
        f"{heaviest.quality.predicted_per_row:.1f} of {labels:,} labels per row ({ones:.1%}); the "
        f"best micro-F1, {best.quality.f1:.3f}, is at pos_weight {_weight(best):g} with "
        f"{best.quality.predicted_per_row:.1f} labels per row."
    )
    return first, second.replace("Yes: even at", "Yes: at")


def _weight(result: Result) -> float:
    return result.loss.pos_weight or 1.0


def picture(results: list[Result], data: str, shape: Shape, out: Path) -> list[Path]:
    """Precision, recall and predicted labels against pos_weight, as PNG and SVG."""
    # Plain BCE is pos_weight 1.
    line = sorted((r for r in results if r.loss.kind in ("plain", "ours")), key=_weight)
    with plt.rc_context({"font.size": 11, "lines.linewidth": 2, "svg.hashsalt": "weighted_bce"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
        _draw_quality(left, line)
        _draw_counts(right, line, shape.labels)
        for axes in (left, right):
            _draw_weights(axes, [_weight(r) for r in line])
        figure.suptitle(data, fontsize=10, color=GREY)
        paths = [out / f"sparse_labels.{kind}" for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    return paths


def _draw_weights(axes: Axes, weights: list[float]) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xticks(weights, [f"{w:g}" if w != 1 else "1\n(plain BCE)" for w in weights])
    axes.minorticks_off()
    axes.set_xlabel("pos_weight (log scale)")
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_quality(axes: Axes, line: list[Result]) -> None:
    weights = [_weight(r) for r in line]
    # Without a prediction there is no precision: a gap, not a zero.
    precision = [r.quality.precision if r.quality.predicted_per_row else math.nan for r in line]
    axes.plot(weights, precision, "o-", color=BLUE, label="precision")
    axes.plot(weights, [r.quality.recall for r in line], "s-", color=ORANGE, label="recall")
    axes.plot(weights, [r.quality.f1 for r in line], "^--", color=GREEN, label="micro-F1")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("held-out rows, threshold 0.5")
    axes.set_title("Precision and recall")
    axes.legend(frameon=False, loc="upper center", ncols=3)


def _draw_counts(axes: Axes, line: list[Result], labels: int) -> None:
    # A logarithm has no place for zero: it is drawn at the foot, with its true number beside it.
    true = line[0].quality.true_per_row
    foot = min(r.quality.predicted_per_row or 0.001 for r in line)
    counts = [r.quality.predicted_per_row or foot for r in line]
    axes.plot([_weight(r) for r in line], counts, "o-", color=BLUE)
    for result, count in zip(line, counts, strict=True):
        # Below and to the right of a rising line there is room.
        _write(axes, f"{result.quality.predicted_per_row:.3g}", (_weight(result), count), (7, -14))
    axes.set_yscale("log")
    axes.set_ylim(min(foot, true) / 4, labels * 4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    right = axes.get_yaxis_transform()
    for value, text, style in ((true, f"true: {true:.2f}", "--"), (labels, f"all {labels:,}", ":")):
        axes.axhline(value, color=GREY, linestyle=style, linewidth=1.5)
        _write(axes, text, (0.01, value), (0, 5), color=GREY, xycoords=right)
    axes.set_ylabel("predicted labels per row (log scale)")
    axes.set_title("Predicted labels per row")


def _write(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], **how: Any
) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", **how)


def save_json(results: list[Result], data: str, shape: Shape, path: Path) -> None:
    """The numbers of the table in full, for other programs."""
    losses: list[dict[str, Any]] = [
        {
            "loss": r.loss.name,
            "pos_weight": r.loss.pos_weight,
            **r.quality._asdict(),
            "milliseconds": r.milliseconds,
            "peak_bytes": r.peak_bytes,
        }
        for r in results
    ]
    found = {"data": data, "loss_step": shape._asdict(), "losses": losses}
    path.write_text(json.dumps(found, indent=2) + "\n")
