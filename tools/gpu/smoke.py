"""Compares the most telling cases with float64, in seconds: python -m tools.gpu.smoke --help."""

import json
import math
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tools import program
from tools.program import Parser, shortened
from weighted_bce import show_config

from .cases import Group, Skip, groups
from .device import add_device, check_device, elements, is_lost, synchronize

PROGRAM = "python -m tools.gpu.smoke"


class Tally:
    """What becomes of a group of cases."""

    def __init__(self, group: Group) -> None:
        self.checks = group.checks
        self.is_over = self.is_lost = False
        self.row: dict[str, Any] = {"group": group.name, "cases": 0, "failed": 0, "remark": ""}
        self.row |= {"cut": False, "seconds": 0.0}

    def step(self, end: float) -> None:
        """Runs the next case, unless it would begin after the end."""
        start, row = time.monotonic(), self.row
        remark = ""
        try:
            check = next(self.checks, None)
            if check is None:
                self.is_over = True
            elif start > end:
                self.is_over = row["cut"] = True
                remark = "ended early: no time left"
            else:
                row["cases"] += 1
                check()
                synchronize()
        except Skip as skip:
            row["cases"] -= 1
            remark = f"left out: {skip}"
        except Exception as error:  # what makes the cases runs on the device as well
            traceback.print_exc()
            row["failed"] += 1
            remark = shortened(f"{type(error).__name__}: {error}".splitlines()[0], 300)
            self.is_lost = is_lost()
        row["remark"] = row["remark"] or remark  # the first one tells most
        row["remark"] += "; the GPU takes no more work" * self.is_lost
        row["seconds"] = round(row["seconds"] + time.monotonic() - start, 3)


def run(tallies: Sequence[Tally], end: float) -> None:
    """Runs a case of each group in turn until they have no more or the end comes."""
    waiting = [*tallies]
    while waiting:
        for tally in waiting:
            tally.step(end)
            if tally.is_lost:
                return
        waiting = [tally for tally in waiting if not tally.is_over]


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add_device(parser)
    text = "run few, small cases, of each group in turn, for compute-sanitizer; it may end early"
    add("--small", action="store_true", help=text)
    text = "number of elements of the largest case"
    add("--far", type=elements, default=2**31 + 5, metavar="N", help=text)
    add("--seconds", type=float, default=math.inf, help="begin no case after so many seconds")
    add("--until", type=float, default=math.inf, help="the same, as seconds since 1970")
    add("--out", type=Path, help="a file for the results, with a line of JSON for each group")
    options = parser.parse_args(arguments)
    check_device(options.device)
    print(show_config(), flush=True)
    torch.manual_seed(0)
    seconds = min(options.seconds, options.until - time.time())
    end, rows = time.monotonic() + seconds, []
    each = (Tally(group) for group in groups(options.device, options.small, options.far))
    # Small cases of all groups take turns.
    together = [list(each)] if options.small else ([tally] for tally in each)
    for some in together:
        run(some, end)
        rows += [tally.row for tally in some]
        print("\n".join(json.dumps(tally.row) for tally in some), flush=True)
        if options.out is not None:
            options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if any(tally.is_lost for tally in some):
            break
    failed, cases, cut = (sum(row[key] for row in rows) for key in ("failed", "cases", "cut"))
    first = next((f"; {row['group']}: {row['remark']}" for row in rows if row["failed"]), "")
    print(f"{failed} of {cases} cases failed, {cut} of {len(rows)} groups cut short{first}")
    return int(failed > 0 or cases == 0 or (cut > 0 and not options.small))


if __name__ == "__main__":
    sys.exit(main())
