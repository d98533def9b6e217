"""Draws the pictures of the documentation: python -m docs.pictures, from the root of the project.

Drawing twice with the same matplotlib gives the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from weighted_bce import (
    BCE,
    Asymmetric,
    Focal,
    Hill,
    Poly1,
    SquaredHinge,
    backend,
    multilabel_loss_with_logits,
)
from weighted_bce.losses import Loss

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "pictures"
STYLE = {
    "svg.fonttype": "path",  # no font of the reader's is needed
    "svg.hashsalt": "weighted_bce",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "axes.edgecolor": "0.6",
    "legend.frameon": False,
}
POSITIVE, NEGATIVE, OTHER = "#0072b2", "#d55e00", "0.55"
# The range of the values and of the slopes that a picture shows.
LOSSES: dict[str, tuple[Loss, tuple[float, float], tuple[float, float]]] = {
    "bce": (BCE(), (-0.2, 6.2), (-1.2, 1.2)),
    "focal": (Focal(), (-0.2, 6.2), (-1.4, 1.4)),
    "asymmetric": (Asymmetric(), (-0.2, 6.2), (-1.4, 1.4)),
    "hill": (Hill(), (-0.2, 6.2), (-1.4, 1.4)),
    "poly1": (Poly1(), (-0.2, 6.2), (-1.4, 1.4)),
    "squared_hinge": (SquaredHinge(), (-0.2, 6.2), (-6.2, 6.2)),
}
COLORS = ("0.35", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
DASHES = ("-", "-", "-", "-", "--", "-.")


def term(loss: Loss, target: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """The values and the slopes of a term at these logits: P for a target of 1, N for one of 0."""
    x = x.clone().requires_grad_()
    with backend("reference"):
        values = multilabel_loss_with_logits(x, torch.full_like(x, target), loss, reduction="none")
    (slopes,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), slopes


def logits(least: float, most: float) -> Tensor:
    return torch.linspace(least, most, 401, dtype=torch.float64)


def value_and_slope(
    loss: Loss, of_values: tuple[float, float], of_slopes: tuple[float, float]
) -> Figure:
    """Two panels: the two terms of a loss, and of binary cross-entropy for comparison."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
    x = logits(-8, 8)
    curves: list[tuple[Loss, float, str, str, str]] = [
        (loss, 1, POSITIVE, "-", "target 1: P"),
        (loss, 0, NEGATIVE, "-", "target 0: N"),
    ]
    if loss != BCE():
        curves = [(BCE(), 1, OTHER, ":", "BCE"), (BCE(), 0, OTHER, ":", ""), *curves]
    for kind, target, color, dashes, name in curves:
        for panel, heights in zip(panels, term(kind, target, x), strict=True):
            panel.plot(x, heights, color=color, linestyle=dashes, label=name or None)
    for panel, what, limits in zip(panels, ("value", "slope"), (of_values, of_slopes), strict=True):
        finish(panel, what, limits)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def slopes_of_negatives(losses: Sequence[Loss]) -> Figure:
    """The slopes of all negative terms: how strongly a negative lowers its logit."""
    figure, panel = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    x = logits(-8, 8)
    for loss, color, dashes in zip(losses, COLORS, DASHES, strict=True):
        _, slopes = term(loss, 0, x)
        panel.plot(x, slopes, color=color, linestyle=dashes, label=type(loss).__name__)
    finish(panel, "slope of N", (-0.1, 2.1))
    panel.legend(loc="upper left")
    return figure


def finish(panel: Axes, what: str, limits: tuple[float, float]) -> None:
    panel.set(xlabel="logit", ylabel=what, xlim=(-8, 8), ylim=limits)
    panel.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def pictures() -> dict[str, Callable[[], Figure]]:
    """What draws each picture, by the name of its file."""
    drawn: dict[str, Callable[[], Figure]] = {
        f"loss_{name}": lambda of=of: value_and_slope(*of) for name, of in LOSSES.items()
    }
    kinds = [loss for loss, *_ in LOSSES.values()]
    return drawn | {"loss_negative_slopes": lambda: slopes_of_negatives(kinds)}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in pictures().items():
            figure, file = draw(), FOLDER / f"{name}.svg"
            figure.savefig(file, facecolor="white", metadata={"Date": None})
            plt.close(figure)
            print(f"{file.relative_to(FOLDER.parent.parent)}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
