"""The part that reads the GPU's counters, next to what the machine code let expect."""

import csv
import re
from pathlib import Path

from .machine import ROOT, text_of
from .part import Absent, Failed, Part, Row, Setup
from .processes import Command

EXPECTED = ROOT / "bench" / "results" / "cuda_code.md"
ELEMENTS = 2**26
# The kernels are in the order in which tools.gpu.launches starts them.
KERNELS = tuple(
    f"{dtype}, {targets}, loss and gradient"
    for dtype in ("float32", "bfloat16")
    for targets in ("1-byte targets", "sparse labels")
)
SECTIONS = (
    *("SpeedOfLight", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats"),
    *("LaunchStats", "Occupancy"),
)
METRICS = {
    "seconds": "gpu__time_duration.sum",
    "DRAM bytes/s": "dram__bytes.sum.per_second",
    "DRAM %": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "issue slots %": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "issue active %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "occupancy %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "occupancy limit %": "sm__maximum_warps_per_active_cycle_pct",
    "SM Hz": "sm__cycles_elapsed.avg.per_second",
}
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+?)_per_issue_active\.ratio")
NANOSECONDS = ("ns", "nsecond")  # the only base unit that is not one of METRICS
WANTED = ("issue", "MUFU rate", "first limit", "of a copy", "registers")
NO_STALLS = ("selected", "not_selected")


def steps(setup: Setup) -> str:
    tool = setup.machine.tool("ncu")
    if tool is None:
        raise Absent("Nsight Compute is not installed")
    options = [
        *("--clock-control", "none", "--kernel-name", "regex:^on_"),
        *("--launch-count", str(len(KERNELS))),
        *("--csv", "--page", "raw", "--print-units", "base"),
        *(word for section in SECTIONS for word in ("--section", section)),
        # Names without a dot are no counters: only sections give them.
        *("--metrics", ",".join(metric for metric in METRICS.values() if "." in metric)),
    ]
    program = setup.module("tools.gpu.launches", "--elements", ELEMENTS)
    ncu = Command("ncu", [tool, *options, *program])
    setup.run(ncu)
    rows = results(setup.folder)
    if ncu.succeeded and len(rows) < len(KERNELS):
        raise Failed(f"{len(rows)} of {len(KERNELS)} kernels were seen")
    return ""


def results(folder: Path) -> list[Row]:
    """What was counted of each kernel and what was expected."""
    lines = text_of(folder / "ncu.txt").splitlines()
    table = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(table) < 3:
        return []
    head, units, *launches = table
    rows = []
    for kernel, cells in zip(KERNELS, launches, strict=False):
        counts = dict(zip(head, map(_number, units, cells), strict=False))
        stalls = {m[1]: count or 0.0 for k, count in counts.items() if (m := STALL.fullmatch(k))}
        waits = {name: value for name, value in stalls.items() if name not in NO_STALLS}
        row: Row = {name: counts.get(metric) for name, metric in METRICS.items()}
        row["top stall"] = max(waits, key=waits.__getitem__, default="")
        name = dict(zip(head, cells, strict=False)).get("Kernel Name", "")
        row |= {"kernel": kernel, "name": name, "stalls": stalls, "expected": expected(kernel)}
        rows.append(row)
    return rows


def _number(unit: str, text: str) -> float | None:
    """A cell in the base unit of the metrics above; None where it is no number."""
    try:
        return float(text.replace(",", "")) * (1e-9 if unit in NANOSECONDS else 1.0)
    except ValueError:
        return None


def expected(kernel: str, path: Path = EXPECTED) -> dict[str, str]:
    """What the tables of the machine code say of a kernel."""
    head: list[str] = []
    cells: dict[str, str] = {}
    for line in text_of(path).splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = row
        elif row[0] in (kernel, f"on_vectors {kernel}"):
            cells |= zip(head, row, strict=True)
    return {key: cells[key] for key in WANTED if key in cells}


PART = Part("profile", 35, steps, results)
