"""Whether a run is as good as an earlier one: by ratios and bytes, not by milliseconds."""

from typing import NamedTuple

import torch

from .losses import LOSSES
from .records import WHAT, Records, Row

# The fields, and whether they are those of ours, which are worse where they grow; the others' times
# of ours are worse where they fall.
COMPARED = {
    "times_ours": False,
    "peak_gradients": True,
    "beyond_bytes": True,
    "loss_error": True,
    "gradient_error": True,
}
FLOORS = {"peak_gradients": 0.1, "beyond_bytes": 2.0**20}
ERRORS = 2.0  # roundings, that much larger, are no longer the same


class Change(NamedTuple):
    """What was and is found of a row of both runs."""

    row: Row
    field: str
    before: float
    now: float
    is_worse: bool


def changes(now: Records, before: Records, tolerance: float) -> list[Change]:
    """Those beyond the tolerance, a share such as 0.25.

    Against the other contenders of the same round ours may have become slower; its memory and its
    errors larger. What only one of the runs has is left out.
    """
    own = {loss.key for loss in LOSSES if loss.is_own}
    earlier = {_name(row): row for row in before.rows}
    found = []
    for row in now.rows:
        old = earlier.get(_name(row))
        if old is None:
            continue
        mine = row["contender"] in own
        for field in (name for name, of_ours in COMPARED.items() if of_ours == mine):
            if old[field] is None or row[field] is None:
                continue
            floor = _floor(field, row["dtype"])
            a, b = old[field] + floor, row[field] + floor
            allowed = ERRORS if field.endswith("error") else 1 + tolerance
            if max(a / b, b / a) > allowed:
                found.append(Change(row, field, old[field], row[field], (b > a) == mine))
    return found


def common(now: Records, before: Records) -> int:
    """How many rows both have."""
    return len({_name(row) for row in now.rows} & {_name(row) for row in before.rows})


def _name(row: Row) -> tuple[object, ...]:
    return tuple(row[field] for field in WHAT)


def _floor(field: str, dtype: str) -> float:
    """Differences far below it are nothing."""
    if field.endswith("error"):
        return torch.finfo(getattr(torch, dtype)).eps
    return FLOORS.get(field, 0.0)
