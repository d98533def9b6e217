"""The tables that are printed, from rows as records.py makes them."""

from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .losses import BY_KEY, LOSSES, NAMES, YARDSTICKS
from .records import Row, setting_of

SHOWN = (
    *("GPU", "driver", "CUDA", "CUDA kernels", "CPU", "threads"),
    *("torch", "weighted_bce", "extension", "SIMD level in use"),
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
replaces the logits, of which an untimed copy is made for each single step. masked multiply and
F.binary_cross_entropy_with_logits convert the target in each call, but for 'float target'.
torchvision's focal loss is without focus: alpha = p / (1 + p), gamma = 0, times 1 + p. 'no
pos_weight', 'no positives' compute less."""
LAYERS = """\
Linear layer and loss: a step is from the input and the weight to their gradients, which are
dropped after it, and follows an untimed one. Those that are not ours hold the logits, of F.linear;
of sparse labels they get a bool target, but for zeros().scatter_ and weighted_bce_with_logits.
times products: of the three products that no way can leave out, in a forward pass one, to memory
that is there already. Others make their gradients in new memory, as in a training loop.
beyond: the peak of the memory, less the inputs and the gradients that a step leaves. Errors of
gradients are relative to the largest of the first 2^24 elements.
fused_step: FusedSGD updates the weight within the backward pass, which makes the logits once more;
the weight has no gradient."""


def show_head(console: Console, known: dict[str, str], rounds: int) -> None:
    text = ", ".join(f"{name} {known[name]}" for name in SHOWN if name in known)
    console.print(f"{text}\nMedians of up to {rounds} rounds.", highlight=False, soft_wrap=True)


def show_group(console: Console, title: str, rows: list[Row], taken: float) -> None:
    fast = min((r["seconds"] for r in rows if r["seconds"]), default=1.0) < 1e-3
    unit, factor = ("µs", 1e6) if fast else ("ms", 1e3)

    def column(field: str, shown: Callable[[Any], str]) -> list[str]:
        return ["-" if row[field] is None else shown(row[field]) for row in rows]

    def time(seconds: float) -> str:
        return number(seconds * factor)

    columns = {
        "contender": [NAMES[row["contender"]] for row in rows],
        f"median\n{unit}": [_median(row, factor) for row in rows],
        "p20": column("p20", time),
        "p80": column("p80", time),
        "times\ncopy_": column("times_copy", lambda x: f"{number(x)}x"),
        "times\nproducts": column("times_products", lambda x: f"{number(x)}x"),
        "times\nours": [ratio(row) for row in rows],
        "GB/s": column("gigabytes_per_second", number),
        "% of\ncopy_": column("share_of_copy", lambda x: f"{100 * x:.0f}%"),
        "peak": column("peak_gradients", number),
        "beyond\nMiB": column("beyond_bytes", mebibytes),
        "loss\nerror": column("loss_error", "{:.0e}".format),
        "gradient\nerror": column("gradient_error", "{:.0e}".format),
    }
    show(console, title, columns)
    if taken > BUSY:
        text = f"Other programs took {taken:.0%} of the CPU: short times say little."
        console.print(text, style="bold", highlight=False)
    for row in rows:
        if row["failed"] is not None:
            verb = "failed" if row["fits"] else "does not fit"
            text = f"{NAMES[row['contender']]} {verb}: {row['failed']}"
            console.print(text, highlight=False, markup=False)


def show_summary(console: Console, groups: Iterable[list[Row]]) -> None:
    """How many times as long as ours each other one takes, and the yardstick."""
    groups = list(groups)
    keys = [*YARDSTICKS, *(loss.key for loss in LOSSES if not loss.is_own)]
    columns = {"": [short_name(rows[0]) for rows in groups]}
    for key in keys:
        cells = ({row["contender"]: row for row in rows}.get(key) for rows in groups)
        columns[key.replace("-", "-\n")] = ["-" if row is None else ratio(row) for row in cells]
    show(console, "Times of ours", columns)
    console.print(CAPTION, style="dim", highlight=False)
    if any(rows[0]["features"] for rows in groups):
        console.print(LAYERS, style="dim", highlight=False)


def short_name(row: Row) -> str:
    """Of its group."""
    setting = setting_of(row)
    density = f"{setting.density:.1%}" if setting.density >= 0.001 else f"{setting.density:.0e}"
    what = row["pass"] + " graph" * row["graphs"]
    return (
        f"{'x'.join(map(str, setting.sizes))} {setting.dtype} {setting.target} {density} "
        f"{setting.threads}t {what}"
    )


def ratio(row: Row) -> str:
    """Times ours, marked where it is faster."""
    return times(row) + FASTER * loses(row)


def times(row: Row) -> str:
    value = row["times_ours"]
    if value is None:
        return "failed" if row["failed"] and row["fits"] else "-"
    return f"{number(value)}x"


def loses(row: Row) -> bool:
    """Whether it is another way to compute the loss, or less than it, and faster than ours."""
    value, loss = row["times_ours"], BY_KEY.get(row["contender"])
    return loss is not None and not loss.is_own and value is not None and value < 1


def _median(row: Row, factor: float) -> str:
    if not row["fits"]:
        return "does not fit"
    return "failed" if row["seconds"] is None else number(row["seconds"] * factor)


def number(value: float) -> str:
    """Three digits or more, but no more than two decimals."""
    digits = 0 if value >= 999.5 else 1 if value >= 99.95 else 2
    return f"{value:.{digits}f}"


def mebibytes(value: int) -> str:
    return number(value / 2**20)


def show(console: Console, title: str, columns: dict[str, list[str]]) -> None:
    """Without the columns in which nobody has a value."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    for place, name in enumerate(shown):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(f"[bold red]{c}[/]" if c.endswith(FASTER) else c for c in row))
    console.print()
    console.print(title, style="bold", highlight=False)
    console.print(table)
