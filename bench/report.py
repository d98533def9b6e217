"""The tables of a run, for the terminal and for the documentation."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console

from tools.terminal import say, show

from .baselines import BASELINES
from .names import BCE, OURS
from .records import Change, Row

SHOWN = (
    *("GPU", "driver", "CUDA", "CUDA kernels", "CPU", "threads"),
    *("torch", "weighted_bce", "commit", "SIMD level in use"),
)
FASTER = "*"

CAPTION = (
    "A training step (step) goes from the logits to logits.grad; a forward pass (forward) goes "
    "from the logits to the loss, under torch.no_grad(). In names such as 1024x16384 float32 bool "
    "0.5% 2t step, bool is the target, 0.5% the share of positives, and 2t means 2 threads.",
    "- ms or µs, p20 to p80: the median time, and the 20th and 80th percentiles. All rows of a "
    "table take turns in each round, and an untimed call of the same kind comes before each timed "
    "one. Inputs of 2^17 elements or more are not in the caches.",
    "- times weighted_bce, times copy_: the time of the row over that of weighted_bce or copy_, as "
    "the median of the ratios within each round. A * marks what is faster than weighted_bce.",
    "- GB/s: the bytes that must move (logits, target and gradient once each; the logits twice "
    "for copy_), over the time. % of copy_ is this number over that of copy_.",
    "- peak memory, in gradients: the peak memory beyond the inputs, over the size of a gradient. "
    "On the CPU it is measured for steps of 2^20 to 2^27 elements.",
    "- loss error, gradient error: relative errors against float64. The gradient's is the largest "
    "among its first 2^24 elements.",
    "After empty_cache(), weighted_bce takes new memory for the gradient. With a changing loss "
    "scale, its backward computes the gradient again. The baselines convert the target in each "
    "call, except with 'float target', where it is converted before. 'No pos_weight' computes "
    "less. torchvision's loss has alpha = p / (1 + p) for a pos_weight of p, and is multiplied by "
    "1 + p; its gamma is 0 for bce.",
)
BUSY = (
    "Other processes kept cores busy while the rounds were timed, and did not run otherwise. Their "
    "number is part of the names, such as 2b. A timed call is then a single step, except of CUDA "
    "graphs.",
    "- mean, 95th percentile, worst: of the times of all rounds, in the unit of the median. There "
    "is no 95th percentile of fewer than 20 rounds.",
    "- rounds: how many were timed before the time of the group was over.",
)
OVERVIEW = "Time of weighted_bce, and the times of the baselines relative to it"
LAYERS = (
    "Linear layer and loss: a step goes from the input and the weight to their gradients. Only "
    "weighted_bce computes the logits in chunks, unless they are few; all others hold all of them. "
    "With sparse labels, the others get a bool target, except 'zeros().scatter_' and 'F.linear, "
    "then weighted_bce'.",
    "- times products: the time of the row over that of the matrix products that every way needs: "
    "three in a step, one in a forward pass.",
    "- memory beyond inputs and gradients: the peak memory minus the inputs and the gradients that "
    "a step leaves.",
    "- gradient error: relative to the largest element of the gradient.",
    "With fused_step, a step also updates the weight by FusedSGD, and the weight gets no gradient.",
)


def number(value: float) -> str:
    """Formats a number with three digits or more, but at most two decimals."""
    digits = 0 if value >= 999.5 else 1 if value >= 99.95 else 2
    return f"{value:.{digits}f}"


BEYOND = "memory beyond inputs and gradients, MiB"
# The columns of a group's table, with their fields, and what is shown of one that is not None.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("rounds", "timed_rounds", str),
    ("times copy_", "times_copy", lambda value: f"{number(value)}x"),
    ("times products", "times_products", lambda value: f"{number(value)}x"),
    ("GB/s", "gigabytes_per_second", number),
    ("% of copy_", "share_of_copy", "{:.0%}".format),
    ("peak memory, in gradients", "peak_gradients", number),
    (BEYOND, "beyond_bytes", lambda value: number(value / 2**20)),
    ("loss error", "loss_error", "{:.0e}".format),
    ("gradient error", "gradient_error", "{:.0e}".format),
)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the head and a line for each row of a group, without columns that are empty."""
    fast = min((row.seconds for row in rows if row.seconds), default=1.0) < 1e-3
    unit, scale = ("µs", 1e6) if fast else ("ms", 1e3)
    head = ["", unit, "p20 to p80", "mean", "95th percentile", "worst", "times weighted_bce"]
    lines = [[*head, *(head for head, *_ in COLUMNS)]]
    for row in rows:
        times = ["failed" if row.fits else "does not fit", "-"]
        if row.seconds is not None:
            low, middle, high = (number(scale * t) for t in (row.p20, row.seconds, row.p80))
            times = [middle, f"{low} to {high}"]
        times += ["-" if t is None else number(scale * t) for t in (row.mean, row.p95, row.worst)]
        values = ((getattr(row, field), cell) for _, field, cell in COLUMNS)
        cells = ("-" if value is None else cell(value) for value, cell in values)
        lines.append([row.name, *times, ratio(row), *cells])
    return _without_empty_columns(lines)


def _without_empty_columns(lines: list[list[str]]) -> list[list[str]]:
    columns = zip(*lines, strict=True)
    return [*map(list, zip(*(c for c in columns if {*c[1:]} != {"-"}), strict=True))]


def overview(groups: Iterable[Sequence[Row]], keys: Sequence[str]) -> list[list[str]]:
    """Returns the time of weighted_bce for each group, and the times of others relative to it."""
    lines = [["", "weighted_bce, ms", *keys]]
    for rows in groups:
        by_key = {row.key: row for row in rows}
        ours = by_key[OURS].seconds
        cells = [ratio(by_key[key]) if key in by_key else "-" for key in keys]
        lines.append([short_name(rows[0]), "-" if ours is None else f"{1e3 * ours:.3g}", *cells])
    return _without_empty_columns(lines)


def ratio(row: Row) -> str:
    """Formats the time relative to weighted_bce, with a star if it is faster."""
    if row.times_ours is None:
        return "failed" if row.failed and row.fits else "-"
    return f"{number(row.times_ours)}x{FASTER * row.loses}"


def short_name(row: Row) -> str:
    """Returns a short name of the group of a row."""
    setting = row.setting
    density = f"{setting.density:.1%}" if setting.density >= 0.001 else f"{setting.density:.0e}"
    words = ["x".join(map(str, setting.sizes)), setting.dtype, setting.target, density]
    busy = [f"{setting.busy}b"] if setting.busy else []
    words += [f"{setting.threads}t", *busy, row.pass_, *["graph"] * row.graphs]
    return " ".join(words if setting.loss == BCE else [setting.loss, *words])


def shown_facts(known: dict[str, str]) -> str:
    return ", ".join(f"{name} {known[name]}" for name in SHOWN if name in known)


def show_group(console: Console, rows: Sequence[Row]) -> None:
    _show(console, table(rows))
    for row in rows:
        if row.failed is not None:
            why = "failed" if row.fits else "does not fit"
            say(console, f"{row.name} {why}: {row.failed}")


def show_summary(console: Console, groups: Sequence[list[Row]]) -> None:
    """Prints the times of all groups, and what the words in the tables mean."""
    keys = [baseline.key for baseline in BASELINES if not baseline.is_own]
    settings = [rows[0].setting for rows in groups]
    busy = BUSY if any(setting.busy for setting in settings) else ()
    layers = LAYERS if any(setting.features for setting in settings) else ()
    legend = "\n".join(("", *CAPTION, *busy, *layers))
    _show(console, overview(groups, keys), f"\n{OVERVIEW}", legend)


def show_changes(console: Console, changes: Sequence[Change], tolerance: float) -> None:
    """Prints a table for each group in which something has changed."""
    if changes:
        say(console, f"\nChanged by more than {tolerance:.0%}", "bold")
    for group, changed in groupby(changes, lambda change: short_name(change.row)):
        lines = [["", "measured", "before", "now", "change"]]
        for row, field, before, now, is_worse in changed:
            judgement = "worse" if is_worse else "better"
            values = f"{before:.3g}", f"{now:.3g}"
            lines.append([row.name, field.replace("_", " "), *values, judgement])
        _show(console, lines, f"\n{group}")


def _show(console: Console, lines: list[list[str]], title: str = "", legend: str = "") -> None:
    head, *others = lines
    show(console, head, others, title, legend)
