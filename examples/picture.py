"""A picture of the results: what pos_weight does, and what each loss reaches."""

from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tools.files import write_whole

from .report import Result

# Okabe and Ito's colours, which stay apart for colour-blind readers; the line styles differ too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
CURVES = {"precision": (BLUE, "o-"), "recall": (ORANGE, "s-"), "f1": (GREEN, "^--")}


def draw(results: list[Result], data: str, true: float, labels: int, out: Path) -> list[Path]:
    """What pos_weight does from a bias of 0, and all losses from both starts, as PNG and SVG."""
    # Plain BCE is pos_weight 1.
    line = [r for r in results if r.kind in ("plain", "weighted") and not r.prior]
    line.sort(key=lambda r: r.pos_weight)
    paths = [out / "sparse_labels.png", out / "sparse_labels.svg"]
    with plt.rc_context({"font.size": 11, "lines.linewidth": 2, "svg.hashsalt": "weighted_bce"}):
        panels = 3 if line else 1
        size = (5.6 * panels, 4.8)
        figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
        *by_weight, by_loss = axes[0]
        if line:
            _draw_curves(by_weight[0], line)
            _draw_predicted(by_weight[1], line, true, labels)
        _draw_losses(by_loss, results)
        for ax in axes[0]:
            ax.grid(True, color="#DDDDDD", linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
        figure.suptitle(data, fontsize=10, color=GREY)
        for path, more in zip(paths, ({"dpi": 150}, {"metadata": {"Date": None}}), strict=True):
            image = BytesIO()
            figure.savefig(image, format=path.suffix[1:], **more)
            write_whole(path, image.getvalue())
        plt.close(figure)
    return paths


def _draw_curves(ax: Axes, line: list[Result]) -> None:
    weights, at = [r.pos_weight for r in line], [r.quality.at_half for r in line]
    for name, (color, style) in CURVES.items():
        # Without a prediction there is no precision: a gap, not a zero.
        has = [one.per_row > 0 or name != "precision" for one in at]
        drawn = np.where(has, [getattr(one, name) for one in at], np.nan)
        ax.plot(weights, drawn, style, color=color, label=name.replace("f1", "micro-F1"))
    ax.set(ylim=(-0.02, 1.02), ylabel="test rows, threshold 0.5")
    ax.set_title("Precision and recall, bias from 0")
    _set_weights(ax, weights)


def _draw_predicted(ax: Axes, line: list[Result], true: float, labels: int) -> None:
    weights, counts = [r.pos_weight for r in line], [r.quality.at_half.per_row for r in line]
    ax.plot(weights, counts, "o-", color=BLUE)
    for at in zip(weights, counts, strict=True):
        # Below and to the right of a rising line; the line of the true ones may pass there.
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.annotate(f"{at[1]:.3g}", at, (7, -14), textcoords="offset points", bbox=white)
    ax.axhline(true, color=GREY, linestyle="--", label=f"true: {true:.2f}")
    ax.axhline(labels, color=GREY, linestyle=":", label=f"all {labels:,}")
    # A logarithm has no place for zero: below this it is a straight line.
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set(ylim=(0, labels * 4), ylabel="predicted labels per row (log scale)")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.set_title("Predicted labels per row, bias from 0")
    _set_weights(ax, weights)


def _set_weights(ax: Axes, weights: list[float]) -> None:
    ax.set_xscale("log")
    ax.margins(x=0.12)
    ax.set_xticks(weights, [f"{w:g}" if w != 1 else "1\n(plain BCE)" for w in weights])
    ax.minorticks_off()
    ax.set_xlabel("pos_weight (log scale)")
    ax.legend(frameon=False, loc="upper center", ncols=3)


def _draw_losses(ax: Axes, results: list[Result]) -> None:
    """A line for each loss, from the one start of the bias to the other."""
    for prior, color, fill, name in ((False, GREY, "none", "0"), (True, BLUE, BLUE, "the prior")):
        some = [r for r in results if r.prior == prior]
        values = [r.quality.at_best.f1 for r in some]
        names = [r.loss for r in some]
        ax.scatter(values, names, c=fill, edgecolors=color, zorder=2, label=f"bias from {name}")
    for zero, prior in zip(results[::2], results[1::2], strict=True):
        values = [r.quality.at_best.f1 for r in (zero, prior)]
        ax.plot(values, [zero.loss] * 2, color=GREY, linewidth=1, zorder=1)
    ax.invert_yaxis()
    ax.set_xlabel("micro-F1, test rows")
    ax.set_title("At the best threshold of each", pad=24)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
