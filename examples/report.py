"""The results as tables, and the answers to three questions."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.table import Table

from . import program
from .measures import Predictions

OF_PREDICTIONS = ("preci-\nsion", "recall", "micro\nF1", "macro\nF1")
AT_HALF = ("loss", *OF_PREDICTIONS, "labels\nper row", "rows\nempty", "step\nms", "peak\nMiB")
AT_BEST = ("loss", *OF_PREDICTIONS, "thres-\nhold", "mAP", "P@1", "P@5")
OF_HALF = (
    "CE: cross-entropy; weight: pos_weight. The last layer's bias starts at 0 or at the prior, the "
    "log-odds of each label (categorical CE: the logarithm of its share of the positives). "
    "Predicted: probability >= 0.5, which is logit >= 0, and the squared hinge, which has no "
    "probability, takes logit >= 0; softmax (categorical CE) >= 0.5 / {positives:.2f}, half of a "
    "positive's mean share of its target. Macro: mean over the labels that have a positive.\n"
    "Step: loss and backward, from {rows} x {labels} float32 logits and sparse labels to the "
    "gradient of the logits. ms: median of rounds in which the losses take turns. Peak: rise of "
    "the resident-set high-water mark in one step, inputs not counted; one gradient is {mib} MiB."
)
OF_BEST = (
    "Threshold: of the logits (categorical CE: of the logarithm of the softmax), the one with the "
    "best micro-F1 on validation rows. mAP: average precision of each label's ranking of the rows, "
    "mean over the labels that have a positive. P@k: the share of true ones among "
    "the first k labels of a row."
)


class Quality(NamedTuple):
    """The worth of a trained network on the test rows."""

    at_half: Predictions
    at_best: Predictions
    threshold: float  # of the scores, the best one on the validation rows
    mean_average_precision: float  # of each label's ranking of the rows, mean over labels
    precision_at_1: float
    precision_at_5: float


class Result(NamedTuple):
    """The worth of what one loss trained, and what a step of it costs."""

    loss: str
    kind: str
    pos_weight: float | None
    prior: bool  # whether the bias started at the frequencies of the labels
    quality: Quality
    milliseconds: float
    peak_bytes: int | None


Cells = Callable[[Result], list[str]]


def tables(
    results: list[Result], true: float, rows: int, labels: int, positives_per_row: float
) -> tuple[Table, Table]:
    """The predictions at probability 0.5, and at the best threshold; true: true labels per row."""
    mib = program.mebibytes(4 * rows * labels)
    half = OF_HALF.format(positives=positives_per_row, mib=mib, rows=rows, labels=labels)
    return (
        _table(AT_HALF, results, _at_half, f"Test rows, {true:.2f} true labels per row", half),
        _table(AT_BEST, results, _at_best, "Test rows, at the best threshold; ranking", OF_BEST),
    )


def _table(
    headers: Sequence[str], results: list[Result], cells: Cells, title: str, caption: str
) -> Table:
    rows = [["  from the prior" if r.prior else r.loss, *cells(r)] for r in results]
    return program.table(headers, rows, title=title, caption=caption, caption_justify="left")


def _at_half(result: Result) -> list[str]:
    at = result.quality.at_half
    # The step is the same from both starts.
    cost = (f"{result.milliseconds:.1f}", program.mebibytes(result.peak_bytes))
    return [
        *_of_predictions(at),
        f"{at.per_row:.2f}",
        f"{at.empty_rows:.1%}",
        *(("", "") if result.prior else cost),
    ]


def _at_best(result: Result) -> list[str]:
    _, at, threshold, *ranking = result.quality
    return [*_of_predictions(at), f"{threshold:.2f}", *(f"{value:.3f}" for value in ranking)]


def _of_predictions(at: Predictions) -> list[str]:
    precision = f"{at.precision:.3f}" if at.per_row else "-"
    return [precision, *(f"{value:.3f}" for value in (at.recall, at.f1, at.macro_f1))]


def answers(results: list[Result], true: float, labels: int) -> list[str]:
    """Does plain BCE collapse, does weighting flip everything, does the first bias matter?"""
    plain = [r for r in results if r.kind == "plain"]
    ours = [r for r in results if r.kind == "weighted" and not r.prior]
    made = [_collapse(*plain, true)] if plain else []
    made += [_flip(ours, labels)] if ours else []
    return [*made, _start(results)]


def _collapse(zero: Result, prior: Result, true: float) -> str:
    at, start = zero.quality.at_half, prior.quality.at_half
    verdict = "Yes" if at.empty_rows > 0.9 else "Mostly" if at.empty_rows > 0.5 else "No"
    return (
        f"Does plain BCE collapse to zeros? {verdict}: it predicts {at.per_row:.2f} labels per row "
        f"where {true:.2f} are true, and leaves {at.empty_rows:.0%} of the rows empty. From the "
        f"prior it predicts {start.per_row:.2f}, and leaves {start.empty_rows:.0%} empty."
    )


def _flip(ours: list[Result], labels: int) -> str:
    heaviest = max(ours, key=lambda r: r.pos_weight)
    best = max(ours, key=lambda r: r.quality.at_half.f1)
    ones, at = heaviest.quality.at_half.per_row, best.quality.at_half
    even = "Yes: at" if ones > labels / 2 else "No: even at"
    return (
        f"Does weighting flip everything to ones? {even} pos_weight {heaviest.pos_weight:g} it "
        f"predicts {ones:.1f} of {labels:,} labels per row ({ones / labels:.1%}); the best "
        f"micro-F1 at probability 0.5, {at.f1:.3f}, is at pos_weight {best.pos_weight:g} with "
        f"{at.per_row:.1f} labels per row."
    )


def _start(results: list[Result]) -> str:
    """What the prior adds to micro-F1 at the best threshold and to mAP, and what is best."""
    made = []
    for name, value in (
        ("micro-F1 at the best threshold", lambda r: r.quality.at_best.f1),
        ("mAP", lambda r: r.quality.mean_average_precision),
    ):
        pairs = zip(results[::2], results[1::2], strict=True)
        gains = [value(prior) - value(zero) for zero, prior in pairs]
        best = max(results, key=value)
        made.append(
            f"{name} rises for {sum(gain > 0 for gain in gains)} of {len(gains)} losses "
            f"({min(gains):+.3f} to {max(gains):+.3f}, median {median(gains):+.3f}) and is best, "
            f"{value(best):.3f}, with {best.loss}{' from the prior' * best.prior}"
        )
    return f"Does it matter where the bias starts? From the prior, {'; '.join(made)}."


def save_json(results: list[Result], data: str, step: dict[str, int], path: Path) -> None:
    """The numbers of the tables in full, for other programs."""
    losses = []
    for result in results:
        quality = result.quality._asdict()
        for name in ("at_half", "at_best"):
            quality[name] = quality[name]._asdict()
        losses.append({**result._asdict(), "quality": quality})
    comparison = {"data": data, "loss_step": step, "losses": losses}
    path.write_text(json.dumps(comparison, indent=2) + "\n")
