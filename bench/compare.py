"""Whether a run is as good as an earlier one: by ratios and bytes, not by milliseconds."""

from typing import NamedTuple

import torch

from .records import Records, Row

# Fields of ours, which are worse where they grow, and differences of them that are nothing: those
# of errors are the eps of the dtype. Of the others it is times ours, worse where it falls.
OF_OURS = {"peak_gradients": 0.1, "beyond_bytes": 2.0**20, "loss_error": 0, "gradient_error": 0}
OF_OTHERS = {"times_ours": 0}
ERRORS = 2.0  # roundings, that much larger, are no longer the same


class Change(NamedTuple):
    """A field of a row of both runs, which is better or worse now."""

    row: Row
    field: str
    before: float
    now: float
    is_worse: bool


def changes(now: Records, before: Records, tolerance: float) -> tuple[int, list[Change]]:
    """How many rows both have, and changes beyond the tolerance, a share such as 0.25.

    Against the other baselines of the same round ours may have become slower; its memory and its
    errors larger. What only one of the runs has is left out.
    """
    earlier, found = {row.identity: row for row in before.rows}, []
    pairs = [(row, earlier[row.identity]) for row in now.rows if row.identity in earlier]
    for row, old in pairs:
        is_own = row.baseline.is_own
        for field, floor in (OF_OURS if is_own else OF_OTHERS).items():
            was, value = getattr(old, field), getattr(row, field)
            if was is None or value is None:
                continue
            is_error = field.endswith("error")
            nothing = torch.finfo(row.setting.torch_dtype).eps if is_error else floor
            growth = (value + nothing) / (was + nothing)
            if max(growth, 1 / growth) > (ERRORS if is_error else 1 + tolerance):
                found.append(Change(row, field, was, value, (growth > 1) == is_own))
    return len(pairs), found
