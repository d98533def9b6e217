"""Tables of what the benchmark measured."""

import math
from collections.abc import Iterable, Sequence

from .part import Row

NAMES = {
    "copy": "copy",
    "ours": "ours",
    "scaled": "loss scale",
    "scaled-changing": "changing loss scale",
    "inplace": "in place",
    "fused-step": "with FusedSGD",
    "unfused": "linear, then ours",
    "masked": "masked multiply",
    "bce": "F with pos_weight",
    "bce-float": "F, float target",
    "bce-plain": "F without pos_weight",
    "scatter": "scatter, F",
    "compile": "torch.compile(F)",
    "products": "products alone",
}
OWN = ("copy", "ours", "scaled", "scaled-changing", "inplace")
OF_GROUP = ("rows", "features", "labels", "dtype", "target", "density", "pass", "graphs")
Group = dict[str, Row]  # the rows of one setting, by baseline


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def groups(rows: Iterable[Row]) -> list[Group]:
    """The baselines of each setting; what ran twice counts as it ran first."""
    of_setting: dict[tuple[object, ...], Group] = {}
    for row in rows:
        group = of_setting.setdefault(tuple(row.get(field) for field in OF_GROUP), {})
        group.setdefault(row["baseline"], row)
    return list(of_setting.values())


def setting(group: Group) -> str:
    """The setting has a name such as "2^28 float32 bool"."""
    row = next(iter(group.values()))
    count = row["rows"] * row["labels"]
    power = round(math.log2(count))
    sizes = f"2^{power}" if count == 2**power else f"{row['rows']} x {row['labels']}"
    if row.get("features"):
        sizes = f"{row['rows']} x {row['features']} x {row['labels']}"
    return f"{sizes} {row['dtype']} {row['target']}"


def of_losses(rows: Sequence[Row]) -> list[str]:
    """A table of each pass, as it is queued and as a graph: of ours the share of a copy's
    bandwidth, of others how many times as long as ours they take."""
    lines: list[str] = []
    for pass_, graphs in (("step", False), ("forward", False), ("step", True), ("forward", True)):
        some = groups(r for r in rows if r["pass"] == pass_ and r["graphs"] == graphs)
        some = [group for group in some if not next(iter(group.values())).get("features")]
        keys = [key for key in NAMES if any(key in group for group in some)]
        if some:
            title = "Training step" if pass_ == "step" else "Forward alone"
            lines += ["", f"### {title}{', as a CUDA graph' * graphs}", ""]
            head = ["logits, target", *(NAMES[key] for key in keys), "peak, gradients"]
            lines += markdown(head, [_losses(group, keys) for group in some])
    return lines


def _losses(group: Group, keys: Sequence[str]) -> list[str]:
    peak = group.get("ours", {}).get("peak_gradients")
    cells = [_loss(group[key]) if key in group else "-" for key in keys]
    return [setting(group), *cells, "-" if peak is None else f"{peak:.2f}"]


def _loss(row: Row) -> str:
    if row["seconds"] is None:
        return "failed" if row["fits"] else "does not fit"
    time = duration(row["seconds"])
    if row["baseline"] not in OWN:
        return time if row["times_ours"] is None else f"{time}, {times(row['times_ours'])}"
    if row["share_of_copy"] is None:
        return time
    return f"{time}, {row['gigabytes_per_second']:.0f} GB/s, {row['share_of_copy']:.0%}"


def of_layers(rows: Sequence[Row]) -> list[str]:
    """Times, and memory: all at the peak, and what of it is not a gradient."""
    table = [
        [setting(group), NAMES.get(key, key), *_layer(row)]
        for group in groups(row for row in rows if row.get("features"))
        for key, row in group.items()
    ]
    if not table:
        return []
    head = ("rows x features x labels", "way", "time", "times products", "peak MiB", "beyond MiB")
    return ["", "### Linear layer and loss, training step", "", *markdown(head, table)]


def _layer(row: Row) -> list[str]:
    if row["seconds"] is None:
        return ["failed" if row["fits"] else "does not fit", "-", "-", "-"]
    memory = (row.get(key) for key in ("peak_bytes", "beyond_bytes"))
    times = row.get("times_products")
    return [
        duration(row["seconds"]),
        "-" if times is None else f"{times:.2f}x",
        *("-" if value is None else f"{value / 2**20:.0f}" for value in memory),
    ]


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def times(value: float) -> str:
    return f"{value:.2f}x" if value < 1 else f"{value:.1f}x"


def lines(rows: Sequence[Row]) -> list[str]:
    """Returns lines for a terminal: training steps, the smaller sizes last."""
    steps = [row for row in rows if row["pass"] == "step" and not row["graphs"]]
    large = sorted(groups(steps), key=lambda group: next(iter(group.values()))["run"] == "small")
    return [_line(group) for group in large]


def _line(group: Group) -> str:
    """Returns rows by the keys of the benchmark, which are short."""
    own, others = [], []
    for key, row in group.items():
        if row["seconds"] is None:
            continue
        if row["share_of_copy"] is not None and key in OWN[1:]:
            own.append(f"{key} {row['share_of_copy']:.0%}")
        elif row["times_ours"] is not None and key not in OWN:
            others.append(f"{key} {times(row['times_ours'])}")
    ours = group.get("ours", {}).get("seconds")
    took = "failed" if ours is None else duration(ours)
    shares = f" ({', '.join(own)} of a copy's bandwidth)" if own else ""
    return f"{setting(group)}: {took}{shares}; {', '.join(others)}"
