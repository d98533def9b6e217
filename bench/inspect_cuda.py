"""Counts what the compiled CUDA kernels consist of, without a GPU, and predicts their speed.

Run as: python -m bench.inspect_cuda --help
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from weighted_bce._extension import extension, why_missing

from .cuda_code import MODES, SIZES, Code, Kernel, Unreadable, read
from .hot_path import SUMS

# The predictions are for an H200, by NVIDIA's documents.
PREDICTED = "sm_90"
PROCESSORS = 132
CLOCK = 1.98e9  # Hz, the highest
ISSUE = 4  # instructions of warps that a processor starts in a clock
MUFU = 16  # special functions of threads that a processor completes in a clock
COPY = 4.3e12  # bytes a second that a copy is taken to read and write, of 4.8e12 by the data sheet
WARP = 32
RUN = 96  # elements of which a product takes the logarithms: Product::kFactors in cuda/scalar.h
REPORT = Path(__file__).parent / "results" / "cuda_code.md"  # tables, and what they mean
BUILD = re.compile(r"^nvcc (.+) for (.+)$", re.MULTILINE)
Table = dict[str, dict[str, str]]  # cells by the names of their row and column


def built() -> Code:
    """The code of the extension that is imported here.

    Raises:
        Unreadable: if it has no CUDA kernels, or no tool to read them is there.
    """
    if extension is None:
        raise Unreadable(f"there is no extension: {why_missing}")
    if not extension.cuda_archs:
        raise Unreadable("the extension was built without CUDA")
    return read(Path(str(extension.__file__)), extension.cuda_version)


def build_of(code: Code) -> str:
    """Compiler and architectures: the tables of another build are not comparable."""
    return f"nvcc {code.nvcc} for {', '.join(code.architectures)}"


def tables_of(code: Code) -> dict[str, Table]:
    """The tables by their titles."""
    instructions: Table = {}
    registers: Table = {}
    for architecture, kernels in code.kernels.items():
        for kernel in kernels:
            used = {name: kernel.facts[name] for name in ("stack", "local", "spills")}
            cell = str(kernel.facts["registers"])
            cell += "".join(f", {name} {count}" for name, count in used.items() if count)
            cell += f", no hot path: {kernel.unclear}" if kernel.unclear else ""
            registers.setdefault(str(kernel), {})[architecture] = cell
            for target, path in kernel.hot.items():
                cell = f"{path.instructions / kernel.lanes:.2f}"
                cell += f" + {path.doubles}" if path.doubles else ""
                instructions.setdefault(_name(kernel, target), {})[architecture] = cell
    vectors = [kernel for kernel in code.kernels.get(PREDICTED, []) if kernel.is_vectors]
    return {
        f"Hot paths, {PREDICTED}": {
            _name(kernel, target): _predicted(kernel, target)
            for kernel in vectors
            for target in kernel.hot
        },
        f"Resources of the kernels on vectors, {PREDICTED}": {
            str(kernel): {name: str(count) for name, count in kernel.facts.items()}
            for kernel in vectors
        },
        "Instructions per element of the hot paths": instructions,
        "Registers of all kernels": registers,
    }


def _name(kernel: Kernel, target: int) -> str:
    targets = f"{target}-byte targets" if target else "sparse labels"
    return f"{kernel.dtype}, {targets}, {kernel.mode}"


def _predicted(kernel: Kernel, target: int) -> dict[str, str]:
    """Counts of a hot path per element, and how fast it can be by them."""
    path, lanes = kernel.hot[target], kernel.lanes
    instructions = path.instructions / lanes + path.sums / RUN
    sums, slopes = MODES[kernel.mode]
    mufu = 1 + slopes + SUMS * sums / RUN
    size = SIZES[kernel.dtype] * (1 + slopes) + target
    elements = COPY / size / PROCESSORS / CLOCK  # of a processor in a clock
    issue = elements * instructions / (ISSUE * WARP)
    limits = {"memory": 1.0, "issue": issue, "MUFU": elements * mufu / MUFU}
    limit = max(limits, key=limits.__getitem__)
    return {
        "bytes": str(size),
        "instructions": f"{path.instructions / lanes:.2f}",
        "sums": f"{path.sums / RUN:.2f}",
        "p varies": f"{path.by_label / lanes:.2f}" if path.by_label else "none",
        "MUFU": f"{1 + slopes:.2f}",
        "memory": f"{path.memory / lanes:.2f}",
        "float64": str(path.doubles),
        "branches": str(path.branches),
        "ahead": str(path.ahead[0]),
        "issue": f"{issue:.0%}",
        "MUFU rate": f"{limits['MUFU']:.0%}",
        "first limit": limit,
        "of a copy": f"{1 / limits[limit]:.0%}",
    }


def updated(text: str, code: Code) -> str:
    """A report with the tables of this code in place of its own."""
    text = BUILD.sub(build_of(code), text)
    for title, table in tables_of(code).items():
        if table:
            place = rf"(## {re.escape(title)}\n[^|]*)(?:\|.*\n)*"
            lines = _markdown(table)
            text = re.sub(place, lambda match, lines=lines: match[1] + lines, text)
    return text


def _markdown(table: Table) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [["kernel", *columns], ["---"] + ["---:"] * len(columns)]
    for name, row in table.items():
        lines.append([name, *(row.get(column, "none") for column in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def differences(code: Code, text: str) -> list[str] | None:
    """Cells by which a report differs from the code; None if they cannot be compared.

    The report may be of more architectures than the code.
    """
    build = BUILD.search(text)
    architectures = set(build[2].split(", ")) if build else set()
    if build is None or build[1] != code.nvcc or not architectures.issuperset(code.kernels):
        return None
    written, now = _cells(text), _cells(updated(text, code))
    return [
        f"{', '.join(cell)}: {written.get(cell, 'none')}, now {now.get(cell, 'none')}"
        for cell in {**written, **now}
        if cell[2] not in architectures - {*code.kernels}
        and written.get(cell, "none") != now.get(cell, "none")
    ]


def _cells(text: str) -> dict[tuple[str, str, str], str]:
    """All cells by the title of their table and the names of their row and column."""
    cells = {}
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
        for name, *row in rows[2:]:
            for column, cell in zip(rows[0][1:], row, strict=True):
                cells[title, name, column] = cell
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.inspect_cuda", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help=f"write {REPORT.name} with new tables here")
    add("--check", type=Path, metavar="FILE", help="only compare: exit code 1 where it differs")
    options = parser.parse_args(arguments)
    try:
        code = built()
        if options.check:
            found = differences(code, options.check.read_text(encoding="utf-8"))
            if found is None:
                raise Unreadable(f"{options.check} is not of {build_of(code)}")
            print("".join(f"{line}\n" for line in found), end="")
            return int(bool(found))
        text = updated(REPORT.read_text(encoding="utf-8"), code)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    except (OSError, Unreadable) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
