"""The tables of a run, for the terminal and for README."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .baselines import BASELINES
from .names import BCE, OURS
from .records import Change, Row

SHOWN = (
    *("GPU", "driver", "CUDA", "CUDA kernels", "CPU", "threads"),
    *("torch", "weighted_bce", "commit", "SIMD level in use"),
)
FASTER = "*"

CAPTION = """\
Step: from the logits to logits.grad. Forward: from the logits to the loss, under no_grad.
All take turns in each round, each after an untimed step of its kind. Ratios are medians of those
within a round; a * says what is faster than ours. Samples of 2^17 elements or more are not in the
caches.
GB/s, % of copy_: of the bytes that must move, logits, target and gradient once each (copy_: the
logits twice), over the time; and that over the same of copy_.
peak: memory beyond the inputs, in gradients; on the CPU of steps from 2^20 to 2^27 elements.
errors: relative, against float64; of the worst of the first 2^24 elements of the gradient.
memory released: of the last step's gradient, which ours else takes; loss scale that changes:
backward makes the gradient anew. The usual ways convert the target in each call, but for 'float
target'; 'no pos_weight' computes less. torchvision's loss has alpha = p / (1 + p) for a pos_weight
p, and is multiplied by 1 + p; its gamma is 0 for bce."""
LAYERS = """\
Linear layer and loss: a step is from the input and the weight to their gradients. Others than ours
hold the logits; of sparse labels they get a bool target, but for zeros().scatter_ and F.linear.
times products: of the three products that no way can leave out, in a forward pass one.
beyond: the peak of the memory, less the inputs and the gradients that a step leaves. Errors of
gradients are relative to the largest element.
fused_step: FusedSGD updates the weight in the backward pass; the weight has no gradient."""


def number(value: float) -> str:
    """Three digits or more, but no more than two decimals."""
    digits = 0 if value >= 999.5 else 1 if value >= 99.95 else 2
    return f"{value:.{digits}f}"


# The columns of a group's table, with their fields, and what is shown of one that is not None.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("times copy_", "times_copy", lambda value: f"{number(value)}x"),
    ("times products", "times_products", lambda value: f"{number(value)}x"),
    ("GB/s", "gigabytes_per_second", number),
    ("% of copy_", "share_of_copy", "{:.0%}".format),
    ("peak, gradients", "peak_gradients", number),
    ("beyond, MiB", "beyond_bytes", lambda value: number(value / 2**20)),
    ("loss error", "loss_error", "{:.0e}".format),
    ("gradient error", "gradient_error", "{:.0e}".format),
)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The head and a line for each row of a group, without columns that are empty."""
    fast = min((row.seconds for row in rows if row.seconds), default=1.0) < 1e-3
    unit, scale = ("µs", 1e6) if fast else ("ms", 1e3)
    lines = [["", unit, "p20 to p80", "times ours", *(head for head, *_ in COLUMNS)]]
    for row in rows:
        times = ["failed" if row.fits else "does not fit", "-"]
        if row.seconds is not None:
            low, middle, high = (number(scale * t) for t in (row.p20, row.seconds, row.p80))
            times = [middle, f"{low} to {high}"]
        values = ((getattr(row, field), cell) for _, field, cell in COLUMNS)
        cells = ("-" if value is None else cell(value) for value, cell in values)
        lines.append([row.name, *times, ratio(row), *cells])
    return _without_empty_columns(lines)


def _without_empty_columns(lines: list[list[str]]) -> list[list[str]]:
    columns = zip(*lines, strict=True)
    return [*map(list, zip(*(c for c in columns if {*c[1:]} != {"-"}), strict=True))]


def overview(groups: Iterable[Sequence[Row]], keys: Sequence[str]) -> list[list[str]]:
    """The time of ours, and how many times as long as ours these take, by group."""
    lines = [["", "ours, ms", *keys]]
    for rows in groups:
        by_key = {row.key: row for row in rows}
        ours = by_key[OURS].seconds
        cells = [ratio(by_key[key]) if key in by_key else "-" for key in keys]
        lines.append([short_name(rows[0]), "-" if ours is None else f"{1e3 * ours:.3g}", *cells])
    return _without_empty_columns(lines)


def ratio(row: Row) -> str:
    """Times ours, with a star where it is faster."""
    if row.times_ours is None:
        return "failed" if row.failed and row.fits else "-"
    return f"{number(row.times_ours)}x{FASTER * row.loses}"


def short_name(row: Row) -> str:
    """The name of its group."""
    setting = row.setting
    density = f"{setting.density:.1%}" if setting.density >= 0.001 else f"{setting.density:.0e}"
    words = ["x".join(map(str, setting.sizes)), setting.dtype, setting.target, density]
    words += [f"{setting.threads}t", row.pass_, *["graph"] * row.graphs]
    return " ".join(words if setting.loss == BCE else [setting.loss, *words])


def shown_facts(known: dict[str, str]) -> str:
    return ", ".join(f"{name} {known[name]}" for name in SHOWN if name in known)


def show_group(console: Console, rows: Sequence[Row]) -> None:
    _show(console, table(rows))
    for row in rows:
        if row.failed is not None:
            why = "failed" if row.fits else "does not fit"
            console.print(f"{row.name} {why}: {row.failed}", markup=False)


def show_summary(console: Console, groups: Sequence[list[Row]]) -> None:
    """The times of all groups, and what the words in the tables mean."""
    keys = [baseline.key for baseline in BASELINES if not baseline.is_own]
    _show(console, overview(groups, keys), "Times of ours")
    with_layers = any(rows[0].setting.features for rows in groups)
    console.print(CAPTION + f"\n{LAYERS}" * with_layers, style="dim")


def show_changes(console: Console, changes: Sequence[Change], tolerance: float) -> None:
    lines = [["", "baseline", "what", "before", "now", "is"]]
    for row, field, before, now, is_worse in changes:
        judgement = "worse" if is_worse else "better"
        values = f"{before:.3g}", f"{now:.3g}"
        lines.append([short_name(row), row.name, field.replace("_", " "), *values, judgement])
    if changes:
        _show(console, lines, f"Changed by more than {tolerance:.0%}")


def _show(console: Console, lines: list[list[str]], title: str = "") -> None:
    if title:
        console.print(f"\n{title}", style="bold")
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, name in enumerate(lines[0]):
        narrow = name.replace(" ", "\n", 1).replace("-", "-\n")  # as narrow as the cells
        shown.add_column(narrow, justify="right" if column else "left", no_wrap=True)
    for line in lines[1:]:
        shown.add_row(*(f"[bold red]{c}[/]" if c.endswith(FASTER) else c for c in line))
    console.print(shown)
