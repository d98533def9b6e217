"""Ours at all sizes in one table."""

from collections.abc import Iterable
from typing import Any

from .contenders import SCALED
from .losses import COMPILED, MASKED, OURS, TORCH, Setting
from .report import number, power

CAPTION = (
    "ours: bandwidth in % of copy_'s, for a training step, one with loss scale 65536, and the "
    "forward pass alone. Others: times of ours for a training step. From CUDA graphs where there "
    "are any; the masked multiply, which cannot be captured, from calls."
)

# For each column: the kind of group, the contender, and what is shown of it.
COLUMNS = {
    "ours\nstep": ("training", OURS, "share_of_copy"),
    "ours\nscaled": ("training", SCALED, "share_of_copy"),
    "ours\nforward": ("forward", OURS, "share_of_copy"),
    "masked\nmultiply": ("training", MASKED, "times_ours"),
    "F": ("training", TORCH, "times_ours"),
    "torch.\ncompile": ("training", COMPILED, "times_ours"),
}


def columns(timed: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """A row for each setting, of groups as report.group_json gives them, graphs after calls."""
    rows: dict[Setting, dict[tuple[str, str], dict[str, Any]]] = {}
    for group in timed:
        if group["kind"]:
            found = rows.setdefault(Setting(**group["setting"]), {})
            right = (row for row in group["results"] if row["failed"] is None)
            found |= {(group["kind"], row["contender"]): row for row in right}
    table = {
        "logits": [setting.dtype for setting in rows],
        "elements": [power(setting.elements) for setting in rows],
    }
    for title, (kind, contender, field) in COLUMNS.items():
        cells = (row.get((kind, contender), {}).get(field) for row in rows.values())
        table[title] = [_cell(value, field) for value in cells]
    return table


def _cell(value: float | None, field: str) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if field == "share_of_copy" else number(value, "x")
