"""The tables of a run, for the terminal and for README."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .baselines import BASELINES
from .compare import Change
from .names import BCE, OURS
from .records import Row

SHOWN = (
    *("GPU", "driver", "CUDA", "CUDA kernels", "CPU", "threads"),
    *("torch", "weighted_bce", "commit", "SIMD level in use"),
)
BUSY = 0.1  # share of the CPU
FASTER = "*"

CAPTION = """\
Step: from the logits to logits.grad. Forward: from the logits to the loss, under no_grad.
All take turns in each round. Ratios are medians of those within a round; * marks what is faster
than ours. Caches are cold where a sample has 2^17 elements or more: so many samples take turns.
GB/s, % of copy_: of the bytes that must move, logits, target and gradient once each (copy_: the
logits twice), over the time; and that over the same of copy_.
peak: memory beyond the inputs, in gradients. On the CPU the rise of the resident set in a fresh
process, measured of steps from 2^20 to 2^27 elements; on a GPU what torch's allocator counts.
errors: relative, against float64, of the loss and of the worst of the first 2^24 elements of the
gradient.
ours takes the memory of the last step's gradient, as in any training loop; memory released:
weighted_bce.empty_cache() comes before each step; loss scale that changes: the untimed step before
each has another one, so that backward makes the gradient anew; inplace_backward: the gradient
replaces the logits, of which an untimed copy is made for each single step. The usual ways convert
the target in each call, but for 'float target'. torchvision's focal loss has alpha = p / (1 + p)
and is multiplied by 1 + p; for BCE its gamma is 0. 'no pos_weight', 'no positives' compute less."""
LAYERS = """\
Linear layer and loss: a step is from the input and the weight to their gradients, which are
dropped after it, and follows an untimed one. Those that are not ours hold the logits, of F.linear;
of sparse labels they get a bool target, but for zeros().scatter_ and F.linear before our loss.
times products: of the three products that no way can leave out, in a forward pass one, to memory
that is there already. Others make their gradients in new memory, as in a training loop.
beyond: the peak of the memory, less the inputs and the gradients that a step leaves. Errors of
gradients are relative to the largest of the first 2^24 elements.
fused_step: FusedSGD updates the weight within the backward pass, which makes the logits once more;
the weight has no gradient."""


def number(value: float) -> str:
    """Three digits or more, but no more than two decimals."""
    digits = 0 if value >= 999.5 else 1 if value >= 99.95 else 2
    return f"{value:.{digits}f}"


def _times(value: float) -> str:
    return f"{number(value)}x"


# The columns of a group's table, with their fields, and what is shown of one that is not None.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("times copy_", "times_copy", _times),
    ("times products", "times_products", _times),
    ("GB/s", "gigabytes_per_second", number),
    ("% of copy_", "share_of_copy", "{:.0%}".format),
    ("peak, gradients", "peak_gradients", number),
    ("beyond, MiB", "beyond_bytes", lambda value: number(value / 2**20)),
    ("loss error", "loss_error", "{:.0e}".format),
    ("gradient error", "gradient_error", "{:.0e}".format),
)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The head and a line for each row of a group, without columns in which nobody has a value."""
    fast = min((row.seconds for row in rows if row.seconds), default=1.0) < 1e-3
    unit, scale = ("µs", 1e6) if fast else ("ms", 1e3)

    def seconds(row: Row) -> list[str]:
        if row.seconds is None or row.p20 is None or row.p80 is None:
            return ["failed" if row.fits else "does not fit", "-", ratio(row)]
        times = [number(scale * value) for value in (row.seconds, row.p20, row.p80)]
        return [times[0], f"{times[1]} to {times[2]}", ratio(row)]

    lines = [["", unit, "p20 to p80", "times ours", *(head for head, *_ in COLUMNS)]]
    for row in rows:
        values = ((getattr(row, field), cell) for _, field, cell in COLUMNS)
        cells = ("-" if value is None else cell(value) for value, cell in values)
        lines.append([row.name, *seconds(row), *cells])
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
    return _times(row.times_ours) + FASTER * row.loses


def short_name(row: Row) -> str:
    """The name of its group."""
    setting = row.setting
    density = f"{setting.density:.1%}" if setting.density >= 0.001 else f"{setting.density:.0e}"
    loss = "" if setting.loss == BCE else f"{setting.loss} "
    return (
        f"{loss}{'x'.join(map(str, setting.sizes))} {setting.dtype} {setting.target} {density} "
        f"{setting.threads}t {row.pass_}{' graph' * row.graphs}"
    )


def shown_facts(known: dict[str, str]) -> str:
    return ", ".join(f"{name} {known[name]}" for name in SHOWN if name in known)


def show_head(console: Console, known: dict[str, str], rounds: int) -> None:
    text = shown_facts(known)
    console.print(f"{text}\nMedians of up to {rounds} rounds.", highlight=False, soft_wrap=True)


def show_group(console: Console, title: str, rows: list[Row], taken: float) -> None:
    _show(console, title, table(rows))
    if taken > BUSY:
        text = f"Other programs took {taken:.0%} of the CPU: short times say little."
        console.print(text, style="bold", highlight=False)
    for row in rows:
        if row.failed is not None:
            text = f"{row.name} {'failed' if row.fits else 'does not fit'}: {row.failed}"
            console.print(text, highlight=False, markup=False)


def show_summary(console: Console, groups: Sequence[list[Row]]) -> None:
    """The times of all groups, and what the words in the tables mean."""
    keys = [baseline.key for baseline in BASELINES if not baseline.is_own]
    _show(console, "Times of ours", overview(groups, keys))
    console.print(CAPTION, style="dim", highlight=False)
    if any(rows[0].setting.features for rows in groups):
        console.print(LAYERS, style="dim", highlight=False)


def show_changes(console: Console, changes: Iterable[Change], tolerance: float) -> None:
    lines = [["", "baseline", "what", "before", "now", "is"]]
    lines += [
        [
            *(short_name(change.row), change.row.name, change.field.replace("_", " ")),
            *(f"{change.before:.3g}", f"{change.now:.3g}"),
            "worse" if change.is_worse else "better",
        ]
        for change in changes
    ]
    if len(lines) > 1:
        _show(console, f"Changed by more than {tolerance:.0%}", lines)


def _show(console: Console, title: str, lines: list[list[str]]) -> None:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, name in enumerate(lines[0]):
        head = name.replace(" ", "\n", 1).replace(
            "-", "-\n"
        )  # columns are as narrow as their cells
        shown.add_column(head, justify="right" if place else "left", no_wrap=True)
    for line in lines[1:]:
        shown.add_row(*(f"[bold red]{c}[/]" if c.endswith(FASTER) else c for c in line))
    console.print()
    console.print(title, style="bold", highlight=False)
    console.print(shown)
