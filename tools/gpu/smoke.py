"""The most telling cases in seconds, compared with float64: python -m tools.gpu.smoke --help."""

import argparse
import json
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from weighted_bce import show_config

from .cases import Group, Skip, groups


class Tally:
    """What became of a group of cases."""

    def __init__(self, group: str) -> None:
        self.row: dict[str, Any] = {"group": group, "cases": 0, "failed": 0, "remark": ""}

    def fails(self, error: Exception) -> None:
        traceback.print_exc()
        self.row["failed"] += 1
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self.row["remark"] = self.row["remark"] or text


def run(group: Group, end: float) -> dict[str, Any]:
    """Runs the cases of a group that begin before the end."""
    start, tally = time.monotonic(), Tally(group.name)
    try:
        for check in group.checks:
            if time.monotonic() > end:
                tally.row["remark"] = tally.row["remark"] or "ended early: no time left"
                break
            tally.row["cases"] += 1
            try:
                check()
            except Skip as skip:
                tally.row["cases"] -= 1
                tally.row["remark"] = tally.row["remark"] or f"left out: {skip}"
            except Exception as error:
                tally.fails(error)
                if _is_lost():
                    tally.row["remark"] += "; the GPU takes no more work"
                    break
    except Exception as error:  # what makes the cases runs on the device as well
        tally.fails(error)
    return {**tally.row, "seconds": round(time.monotonic() - start, 2)}


def _is_lost() -> bool:
    """Whether an error has left the GPU unusable for this process."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda")
    except RuntimeError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.smoke", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--small", action="store_true", help="few and small cases, for compute-sanitizer")
    add("--far", type=int, default=2**31 + 5, metavar="N", help="elements of the largest case")
    add("--seconds", type=float, default=20.0, help="after which no more cases begin")
    add("--out", type=Path, help="a file that gets a line of JSON for each group of cases")
    options = parser.parse_args()
    print(show_config(), flush=True)
    torch.manual_seed(0)
    end, rows = time.monotonic() + options.seconds, []
    for group in groups(options.device, options.small, options.far):
        rows.append(run(group, end))
        print(json.dumps(rows[-1]), flush=True)
        if options.out is not None:
            options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if _is_lost():
            break
    failed, cases = sum(row["failed"] for row in rows), sum(row["cases"] for row in rows)
    first = next((f"; {row['group']}: {row['remark']}" for row in rows if row["failed"]), "")
    print(f"{failed} of {cases} cases failed{first}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
