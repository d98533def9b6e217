"""The results as tables, and the answers to three questions."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from tools.files import write_whole

from . import program
from .measures import Calibration, Predictions

OF_PREDICTIONS = ("preci-\nsion", "recall", "micro\nF1", "macro\nF1")
AT_HALF = ("loss", *OF_PREDICTIONS, "labels\na row", "rows\nempty", "step\nms", "peak\nMiB")
AT_BEST = ("loss", *OF_PREDICTIONS, "thres-\nhold", "mAP", "P@1", "P@5")
SUMS = ("sum of\nprob.", "calib.\nerror", "sum,\nundone", "error,\nundone")
PROBABILITIES = ("loss", *SUMS, *OF_PREDICTIONS[:3])
OF_HALF = (
    "CE: cross-entropy; weight: pos_weight; balanced: that of each label is its negatives / "
    "positives, or the square root of it. The last layer's bias starts at 0 or at the prior, the "
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
OF_PROBABILITIES = (
    "Sum of probabilities: per row; calibrated ones sum to the number of true labels. Calibration "
    "error: pairs of row and label are put into bins by their logit, and the sum over bins of "
    "|sum of probabilities - true labels| is divided by all true labels. Undone: with the "
    "logarithm of pos_weight subtracted from the logits, and so are the predictions at 0.5."
)
SPREAD = "\n±: the standard deviation over {seeds} seeds of split, start and order."


class Undone(NamedTuple):
    """Predictions at probability 0.5, and probabilities, with pos_weight's shift undone."""

    at_half: Predictions
    calibration: Calibration


class Quality(NamedTuple):
    """The worth of a trained network on the test rows."""

    at_half: Predictions
    at_best: Predictions
    threshold: float  # of the scores, the best one on the validation rows
    mean_average_precision: float  # of each label's ranking of the rows, mean over labels
    precision_at_1: float
    precision_at_5: float
    validation_f1: float  # micro-F1 at the threshold on the validation rows, to choose rates by
    calibration: Calibration | None  # None without probabilities
    undone: Undone | None  # None without pos_weight


class Result(NamedTuple):
    """The worth of what one loss trained, and what a step of it costs."""

    loss: str
    kind: str
    pos_weight: float | None
    prior: bool  # whether the bias started at the frequencies of the labels
    qualities: Sequence[Quality]  # with each seed
    milliseconds: float
    peak_bytes: int | None

    @property
    def quality(self) -> Quality:
        """The mean over the seeds."""
        made: Quality = averaged(self.qualities)
        return made


def averaged(some: Sequence[Any]) -> Any:
    """The means of the numbers at each place of equally nested tuples."""
    first = some[0]
    if not isinstance(first, tuple):
        return None if first is None else mean(some)
    means = map(averaged, zip(*some, strict=True))
    return type(first)(*means) if hasattr(first, "_fields") else tuple(means)


Values = Callable[[Quality], list[float | None]]


class Table(NamedTuple):
    """What tools.terminal.show prints of it."""

    headers: Sequence[str]
    rows: list[list[str]]
    title: str
    legend: str


def tables(
    results: list[Result], true: float, rows: int, labels: int, positives_per_row: float
) -> list[Table]:
    """Predictions at probability 0.5 and at the best threshold; probabilities, if there are some.

    true: true labels per row.
    """
    mib = program.mebibytes(4 * rows * labels)
    half = OF_HALF.format(positives=positives_per_row, mib=mib, rows=rows, labels=labels)
    seeds = len(results[0].qualities)
    spread = SPREAD.format(seeds=seeds) if seeds > 1 else ""
    at_half = [[*_cells(r, _at_half), *_cost(r)] for r in results]
    at_best = [_cells(r, _at_best) for r in results]
    probabilities = [_cells(r, _of_probabilities) for r in results if r.qualities[0].calibration]
    title = f"Test rows, {true:.2f} true labels per row"
    made = [
        Table(AT_HALF, at_half, title, half + spread),
        Table(AT_BEST, at_best, "Test rows, at the best threshold; ranking", OF_BEST + spread),
    ]
    if probabilities:
        title += ": probabilities"
        made.append(Table(PROBABILITIES, probabilities, title, OF_PROBABILITIES + spread))
    return made


def _cells(result: Result, values: Values) -> list[str]:
    """The name of a row, and the mean and the spread of each of its values."""
    of_seeds = zip(*map(values, result.qualities), strict=True)
    name = "  from the prior" if result.prior else result.loss
    return [name, *map(_cell, of_seeds, FORMATS[values])]


def _cell(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{mean(known):{form}}"
    # A zero before the point says nothing; below the mean there is room for a number as wide.
    return text if len(known) < 2 else f"{text}\n±{stdev(known):{form}}".replace("±0.", "±.")


def _at_half(quality: Quality) -> list[float | None]:
    at = quality.at_half
    return [*_of_predictions(at), at.per_row, at.empty_rows]


def _at_best(quality: Quality) -> list[float | None]:
    _, at, *ranking = quality[:6]
    return [*_of_predictions(at), *ranking]


def _of_probabilities(quality: Quality) -> list[float | None]:
    undone = quality.undone
    if undone is None:
        return [*quality.calibration[:2], *[None] * 5]
    at_half = _of_predictions(undone.at_half)
    return [*quality.calibration[:2], *undone.calibration[:2], *at_half[:3]]


FORMATS = {
    _at_half: (".3f", ".3f", ".3f", ".3f", ".2f", ".1%"),
    _at_best: (".3f", ".3f", ".3f", ".3f", ".2f", ".3f", ".3f", ".3f"),
    _of_probabilities: (".2f", ".2f", ".2f", ".2f", ".3f", ".3f", ".3f"),
}


def _of_predictions(at: Predictions) -> list[float | None]:
    return [at.precision if at.per_row else None, at.recall, at.f1, at.macro_f1]


def _cost(result: Result) -> list[str]:
    # The step is the same from both starts.
    if result.prior:
        return ["", ""]
    return [f"{result.milliseconds:.1f}", program.mebibytes(result.peak_bytes)]


def answers(results: list[Result], true: float, labels: int) -> list[str]:
    """Does plain BCE collapse, does weighting flip everything, does the initial bias matter?"""
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


def save_json(results: list[Result], run: dict[str, Any], path: Path) -> None:
    """The numbers of the tables and those of each seed, after the facts of the run."""
    losses = []
    for result in results:
        loss = result._asdict()
        loss["quality"] = _plain(result.quality)
        loss["qualities"] = [_without_bins(_plain(one)) for one in loss.pop("qualities")]
        losses.append(loss)
    text = json.dumps({**run, "losses": losses}, indent=2)
    # Lists of numbers take one line each.
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    write_whole(path, text + "\n")


def _without_bins(value: Any) -> Any:
    """Nested dictionaries without their lists, which would be most of the file."""
    if not isinstance(value, dict):
        return value
    some = {name: part for name, part in value.items() if not isinstance(part, list)}
    return {name: _without_bins(part) for name, part in some.items()}


def _plain(value: Any) -> Any:
    """Nested dictionaries, lists, and numbers of six digits."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
