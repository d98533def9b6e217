"""Counts what the compiled CUDA kernels consist of, without a GPU, and predicts their speed.

Run as: python -m bench.inspect_cuda --help
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from .cuda_code import MODES, SIZES, Code, Kernel, Unreadable, built
from .hot_path import SUMS

# The predictions are for an H200, by NVIDIA's documents.
PREDICTED = "sm_90"
PROCESSORS = 132
CLOCK = 1.98e9  # Hz, the highest
ISSUE = 4  # instructions of warps that a processor starts in a clock
MUFU = 16  # special functions of threads that a processor completes in a clock
COPY = 4.3e12  # bytes a second that a copy is taken to read and write, of 4.8e12 by the data sheet
WARP = 32
RUN = 96  # elements of which a product takes the logarithms: kFactors in cuda/thread_math.h
REPORT = Path(__file__).parent / "results" / "cuda_code.md"  # tables, and what they mean
BUILD = re.compile("^nvcc (.+) for (.+)$", re.MULTILINE)  # compiler and architectures
Cells = dict[tuple[str, str, str], str]  # by the title of their table, their row and column


def cells_of(code: Code) -> Cells:
    """All that the tables say of this code."""
    cells = {}
    for architecture, kernels in code.kernels.items():
        for kernel in kernels:
            registers = str(kernel.facts["registers"])
            cells["Registers of all kernels", str(kernel), architecture] = registers
            for target, path in kernel.hot.items():
                cell = f"{path.instructions / kernel.lanes:.2f}"
                cell += f" + {path.doubles}" if path.doubles else ""
                title = "Instructions per element of the hot paths"
                cells[title, _name(kernel, target), architecture] = cell
    for kernel in code.kernels.get(PREDICTED, []):
        if kernel.name == "on_vectors":
            title = f"Resources of the kernels on vectors, {PREDICTED}"
            cells |= {(title, str(kernel), name): str(n) for name, n in kernel.facts.items()}
        for target in kernel.hot:
            row = f"Hot paths, {PREDICTED}", _name(kernel, target)
            cells |= {(*row, name): cell for name, cell in _predicted(kernel, target).items()}
    return cells


def _name(kernel: Kernel, target: int) -> str:
    targets = f"{target}-byte targets" if target else "sparse labels"
    return f"{kernel.dtype}, {targets}, {kernel.mode}"


def _predicted(kernel: Kernel, target: int) -> dict[str, str]:
    """Counts of a hot path per element, and how fast it can be by them."""
    path, lanes = kernel.hot[target], kernel.lanes
    sums, slopes = MODES[kernel.mode]
    size = SIZES[kernel.dtype] * (1 + slopes) + target
    elements = COPY / size / PROCESSORS / CLOCK  # of a processor in a clock
    limits = {
        "memory": 1.0,
        "issue": elements * (path.instructions / lanes + path.sums / RUN) / (ISSUE * WARP),
        "MUFU": elements * (1 + slopes + SUMS * sums / RUN) / MUFU,
    }
    limit = max(limits, key=limits.__getitem__)
    return {
        "bytes": str(size),
        "instructions": f"{path.instructions / lanes:.2f}",
        "sums": f"{path.sums / RUN:.2f}",
        "p varies": f"{path.by_label / lanes:.2f}",
        "MUFU": f"{1 + slopes:.2f}",
        "memory": f"{path.memory / lanes:.2f}",
        "float64": str(path.doubles),
        "branches": str(path.branches),
        "ahead": str(path.ahead[0]),
        "issue": f"{limits['issue']:.0%}",
        "MUFU rate": f"{limits['MUFU']:.0%}",
        "first limit": limit,
        "of a copy": f"{1 / limits[limit]:.0%}",
    }


def updated(text: str, code: Code) -> str:
    """A report with the tables of this code in place of its own."""
    cells = cells_of(code)
    build = f"nvcc {code.nvcc} for {', '.join(code.architectures)}"
    sections = BUILD.sub(build, text).split("\n## ")
    for number, section in enumerate(sections):
        title = section.partition("\n")[0]
        rows = dict.fromkeys(row for one, row, _ in cells if one == title)
        columns = dict.fromkeys(column for one, _, column in cells if one == title)
        lines = [["kernel", *columns], ["---"] + ["---:"] * len(columns)]
        lines += [[row, *(cells.get((title, row, c), "none") for c in columns)] for row in rows]
        if rows:
            table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
            sections[number] = section.partition("|")[0] + table
    return "\n## ".join(sections)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.inspect_cuda", description=__doc__)
    text = "gets the report with new tables; default: the one that is there"
    parser.add_argument("--out", type=Path, default=REPORT, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    try:
        code = built()
    except Unreadable as error:
        parser.error(str(error))
    report = updated(REPORT.read_text(encoding="utf-8"), code)
    options.out.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
