"""Counts what the compiled CUDA kernels consist of, without a GPU.

Run as: python -m bench.inspect_cuda --help
"""

import argparse
import difflib
import re
import sys
from collections.abc import Container, Iterable, Sequence
from itertools import compress
from pathlib import Path

from weighted_bce._extension import extension, why_missing

from .cuda_code import SIZES, Code, Facts, Kernel, Unreadable, read
from .prediction import COPY, GPU, RUN, predict

PREDICTED = "sm_90"
HEADER = re.compile(r"^nvcc (.+) for (.+)$", re.MULTILINE)
GPUS = re.compile(r"\bsm_\d+[af]?\b")
INTRODUCTION = """\
# The code of the CUDA kernels

Written by `python -m bench.inspect_cuda`, from what nvcc made of csrc/cuda. All here is counted in
machine code, or a prediction from these counts. **Nothing is a measurement; no GPU was used.**
"""
EXPLANATION = f"""
The hot path is one iteration of the main loop of on_vectors, for binary cross-entropy, in which all
targets are 0 or 1; of sparse labels, one in which all are 0. Counts are instructions of a warp for
each element of a thread:

- *instructions*: all of them, pos_weight a single number; *sums*: what the logarithms, taken once
  in {RUN} elements, add to that; *p varies*: all, with a pos_weight for each label and no positive;
- *MUFU*: exponentials and reciprocals; *memory*: loads and stores; *float64*: instructions in
  double precision in one iteration; *branches*: those with a condition in one iteration;
- *ahead*: how many iterations after they have started the copies of logits, and of 1-byte targets,
  to shared memory are waited for.

The prediction is for an {GPU.name}: {GPU.processors} multiprocessors at {GPU.clock / 1e9:.2f} GHz,
its highest clock. Each of them starts {GPU.issue} instructions of warps in a clock and completes
{GPU.mufu} special functions. A copy is taken to read and write {COPY / 1e12:.1f} TB/s in all, of
{GPU.memory / 1e12:.1f} by the data sheet.
*Issue* and *MUFU rate* are the shares of these rates that a kernel needs to move its bytes as fast;
above 100% it cannot. *First limit* is what bounds it; *of a copy* is the bandwidth that is left.
Latency, the float64 units and the narrower pipes of single instructions are not in it.
"""


def report(code: Code) -> str:
    """The whole text."""
    parts = [INTRODUCTION, f"\n{header(code)}\n"]
    if PREDICTED in code.kernels:
        kernels = code.kernels[PREDICTED]
        parts += [f"\n## Hot paths, {PREDICTED}\n", EXPLANATION, _hot_paths(kernels)]
        parts += [f"\n## Resources of the kernels on vectors, {PREDICTED}\n", _resources(kernels)]
    parts += ["\n## Instructions per element of the hot paths\n", _instructions(code)]
    parts += ["\n## Registers of all kernels\n", _registers(code)]
    return "".join(parts)


def header(code: Code) -> str:
    """Compiler and architectures: reports with another one are not comparable."""
    return f"nvcc {code.nvcc} for {', '.join(code.architectures)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n" + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _hot_name(kernel: Kernel, target: int) -> str:
    targets = f"{target}-byte targets" if target else "sparse labels"
    return f"{kernel.dtype}, {targets}, {kernel.mode}"


def _hot_paths(kernels: dict[Kernel, Facts]) -> str:
    head = "logits, targets, mode|bytes|instructions|sums|p varies|MUFU|memory|float64|branches"
    head += "|ahead|issue|MUFU rate|first limit|of a copy"
    rows: list[list[object]] = []
    for kernel, facts in kernels.items():
        for target, paths in facts.hot.items():
            path, lanes = paths.uniform, kernel.lanes
            said = predict(paths, lanes, SIZES[kernel.dtype], target, kernel.slopes)
            by_label = paths.by_label and f"{paths.by_label.instructions / lanes:.2f}"
            rows.append(
                [
                    *(_hot_name(kernel, target), said.bytes),
                    f"{path.instructions / lanes:.2f}",
                    f"{said.instructions - path.instructions / lanes:.2f}",
                    by_label or "none",
                    f"{path.count('MUFU') / lanes:.2f}",
                    f"{path.count('LDG', 'LDGSTS', 'STG') / lanes:.2f}",
                    *(path.doubles, path.branches, path.ahead),
                    *(f"{said.issue:.0%}", f"{said.mufu:.0%}", said.limit, f"{said.speed:.0%}"),
                ]
            )
    return _table(head.split("|"), rows)


def _resources(kernels: dict[Kernel, Facts]) -> str:
    head = "kernel|registers|shared bytes|stack|local|spills|16-byte loads|16-byte stores"
    rows = [[kernel, *facts[:7]] for kernel, facts in kernels.items() if kernel.is_vectors]
    return _table(head.split("|"), rows)


def _instructions(code: Code) -> str:
    """A row for each hot path, a column for each architecture."""
    text = "\nA number after + counts float64 instructions in an iteration.\n"
    cells: dict[str, dict[str, str]] = {}
    for architecture, kernels in code.kernels.items():
        for kernel, facts in kernels.items():
            for target, paths in facts.hot.items():
                path = paths.uniform
                doubles = f" + {path.doubles}" if path.doubles else ""
                cell = f"{path.instructions / kernel.lanes:.2f}{doubles}"
                cells.setdefault(_hot_name(kernel, target), {})[architecture] = cell
            if facts.unclear:
                text += f"\n{architecture}, {kernel}: {facts.unclear}.\n"
    return text + _by_architecture("logits, targets, mode", code, cells)


def _registers(code: Code) -> str:
    text = "\nStack, local memory and spills, where there are any, follow the registers.\n"
    cells: dict[str, dict[str, str]] = {}
    for architecture, kernels in code.kernels.items():
        for kernel, facts in kernels.items():
            extra = "".join(
                f", {name} {value}"
                for name, value in zip(facts._fields[2:5], facts[2:5], strict=True)
                if value
            )
            cells.setdefault(str(kernel), {})[architecture] = f"{facts.registers}{extra}"
    return text + _by_architecture("kernel", code, cells)


def _by_architecture(what: str, code: Code, cells: dict[str, dict[str, str]]) -> str:
    rows = [
        [name, *(row.get(architecture, "none") for architecture in code.kernels)]
        for name, row in cells.items()
    ]
    return _table([what, *code.kernels], rows)


def built() -> Code:
    """The code of the extension that is imported here.

    Raises:
        Unreadable: if there is none, or no tool to read it.
    """
    if extension is None:
        raise Unreadable(f"there is no extension: {why_missing}")
    return read(Path(str(extension.__file__)), extension.cuda_version)


def differences(code: Code, text: str) -> str | None:
    """Lines by which a report differs from that of the code; None if they cannot be compared.

    The report may be of more architectures than the code.
    """
    match = HEADER.search(text)
    if match is None or match.group(1) != code.nvcc or not {*code.kernels} <= {*GPUS.findall(text)}:
        return None
    written = _restricted(HEADER.sub(header(code), text), code.kernels)
    lines = difflib.unified_diff(written, report(code).splitlines(), "written", "built", n=0)
    return "\n".join(line.rstrip() for line in lines)


def _restricted(text: str, architectures: Container[str]) -> list[str]:
    """The lines of a report, without the columns of other architectures."""
    lines: list[str] = []
    kept: list[bool] = []
    for line in text.splitlines():
        cells = line.split(" | ")
        if not line.startswith("| "):
            kept = []
            lines.append(line)
            continue
        if not kept:
            names = [cell.strip("| ") for cell in cells]
            kept = [name in architectures or not GPUS.fullmatch(name) for name in names]
        chosen = " | ".join(compress(cells, kept))
        lines.append(chosen if chosen.endswith(" |") else f"{chosen} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.inspect_cuda",
        description="Counts registers, memory accesses and the instructions per element in the "
        "CUDA kernels of the built extension, and predicts which limit an H200 meets first.",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report to this file")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="only compare: exit code 1 if the report in this file is another",
    )
    options = parser.parse_args(arguments)
    try:
        text = options.check and options.check.read_text(encoding="utf-8")
        code = built()
        if options.check:
            return _check(code, text, options.check)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(report(code), encoding="utf-8")
        else:
            print(report(code), end="")
    except (OSError, Unreadable) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _check(code: Code, text: str, path: Path) -> int:
    differ = differences(code, text)
    if differ is None:
        raise Unreadable(f"{path} is not of {header(code)}")
    if differ:
        print(differ)
    return int(differ != "")


if __name__ == "__main__":
    sys.exit(main())
