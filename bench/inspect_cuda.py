"""Counts the instructions of the compiled CUDA kernels and predicts their speed, without a GPU.

Run as: python -m bench.inspect_cuda --help
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.files import check_folder, write_whole
from tools.program import Parser, Refusal, run
from weighted_bce._extension import extension, why_missing

from . import hot_path

PROGRAM = "python -m bench.inspect_cuda"
MODES = ("loss", "loss and gradient", "gradient", "unreduced loss")  # csrc/problem.h
# csrc/cuda/targets.h, with the bytes of a target: several where the kernel finds out.
TARGETS = {"sparse labels": (0,), "1-byte targets": (1,), "larger targets": (2, 4, 8)}
DTYPES = {"f": "float32", "d": "float64", "NS_4HalfE": "float16", "NS_8BFloat16E": "bfloat16"}
LOSSES = {"": "", "NS0_8BceAloneE": "", "NS0_9AllOthersE": "other losses"}  # csrc/cuda/loss_sets.h
LANES = {"float16": 8, "bfloat16": 8, "float32": 4}  # logits in 16 bytes
NAME = re.compile(
    rf"_ZN12weighted_bce4cuda\d+([a-z_]+)I((?:{'|'.join(LOSSES)})??)((?:{'|'.join(DTYPES)})+)"
    r"(?:LNS0_7TargetsE(\d)E)?(?:LNS_4ModeE(\d)E)?EEv"
)
# The predictions are for an H200, by NVIDIA's documents.
PREDICTED = "sm_90"
CLOCKS = 132 * 1.98e9  # of its processors in a second: the highest
ISSUE = 4 * 32  # instructions of threads, in warps, that a processor starts in a clock
MUFU = 16  # special functions of threads that a processor completes in a clock
COPY = 4.3e12  # bytes a second that a copy is taken to read and write, of 4.8e12 by the data sheet
REPORT = Path(__file__).parent / "results" / "cuda_code.md"  # tables, and what they mean
BUILD = re.compile("^nvcc (.+) for (.+)$", re.MULTILINE)  # compiler and architectures


class Unreadable(Refusal):
    """The extension or the tools are not there; the message says what to do."""


class Kernel(NamedTuple):
    name: str
    loss: str = ""  # for binary cross-entropy nothing
    dtype: str = ""  # of the logits, or in which sums are stored
    target: str = ""  # one of TARGETS, where logits are read
    mode: str = ""
    facts: Mapping[str, int] = {}
    hot: Mapping[int, Mapping[str, float]] = {}  # counts of the hot path, by the bytes of a target

    def __str__(self) -> str:
        words = [f"{self.name} {self.dtype}".strip(), self.loss, self.target, self.mode]
        return ", ".join(word for word in words if word)


class Code(NamedTuple):
    nvcc: str  # "13.0.88"
    kernels: dict[str, list[Kernel]]  # by architecture: "sm_80"; "compute_120" is PTX and has none


def built() -> Code:
    """Reads the CUDA code of the imported extension; raises Unreadable if that is impossible."""
    if extension is None or not extension.cuda_archs:
        raise Unreadable(
            f"there are no CUDA kernels: {why_missing or 'the extension was built without them'}"
        )
    module = Path(str(extension.__file__))
    versions = re.findall(rb"Cuda compilation tools, release .+?, V([\d.]+)", module.read_bytes())
    code: dict[str, dict[str, Kernel]] = {}
    for part in _cuobjdump(module).split("\nFatbin ")[1:]:
        kind, number = re.findall(r"^(elf|ptx) code:\n=+\narch = sm_(\d+)", part)[0]
        kernels = code.setdefault(f"{'sm' if kind == 'elf' else 'compute'}_{number}", {})
        usages = dict(re.findall(r"Function (\w+):\n(.+)", part))
        for function in part.split("Function : ")[1:]:
            name, _, text = function.partition("\n")
            if name not in kernels:  # the objects of several dtypes may hold the same one
                instructions = hot_path.instructions_of(text)
                kernels[name] = with_facts(kernel_of(name), usages[name], instructions)
    ordered = sorted(code, key=lambda name: (len(name), name))  # sm_90 before sm_100, PTX last
    nvcc = b", ".join(sorted({*versions})).decode()
    return Code(nvcc, {name: sorted(code[name].values()) for name in ordered})


def _cuobjdump(module: Path) -> str:
    """Returns the output of cuobjdump: the kernels of each part, with resources and code."""
    folders = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '')}/bin"]
    folders += map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))
    path = os.pathsep.join(folders)
    if not all(shutil.which(tool, path=path) for tool in ("cuobjdump", "nvdisasm")):
        packages = "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        raise Unreadable(f"cuobjdump and nvdisasm are not installed: pip install {packages}")
    command = [str(shutil.which("cuobjdump", path=path)), "-sass", "-res-usage", str(module)]
    environment = {**os.environ, "PATH": path}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise Unreadable(f"{command[0]} has failed: {ran.stderr.strip()}", 1)
    return ran.stdout


def kernel_of(mangled: str) -> Kernel:
    """Returns the kernel of a mangled name; if it is unknown, one with just the name."""
    if (match := NAME.match(mangled)) is None:
        return Kernel(mangled)
    name, loss, types, target, mode = match.groups()
    dtypes = dict.fromkeys(DTYPES[one] for one in re.findall("|".join(DTYPES), types))
    targets = [*TARGETS][int(target)] if target else ""
    return Kernel(
        name, LOSSES[loss], " of ".join(dtypes), targets, MODES[int(mode)] if mode else ""
    )


def with_facts(kernel: Kernel, usage: str, code: list[hot_path.Instruction]) -> Kernel:
    """Adds what cuobjdump says that a kernel uses, and counts of its instructions."""
    used = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", usage)}
    facts = {
        "registers": used["REG"],
        "shared bytes": used["SHARED"],
        "stack": used["STACK"],
        "local": used["LOCAL"],
        "spills": sum(i.name in ("STL", "LDL") for i in code),  # instructions
        "16-byte loads": sum(i.name in ("LDG", "LDGSTS") and i.width == 16 for i in code),
        "16-byte stores": sum(i.name == "STG" and i.width == 16 for i in code),
    }
    if (kernel.name, kernel.loss) != ("on_vectors", "") or kernel.mode == "unreduced loss":
        return kernel._replace(facts=facts)
    hot = hot_path.find(code, LANES[kernel.dtype], TARGETS[kernel.target], kernel.mode)
    return kernel._replace(facts=facts, hot=hot)


def cells_of(code: Code) -> dict[tuple[str, str, str], str]:
    """Returns the cells of the tables of this code, by title, row and column."""
    cells: dict[tuple[str, str, str], float | str] = {}
    for architecture, kernels in code.kernels.items():
        for kernel in kernels:
            cells["Registers of all kernels", str(kernel), architecture] = kernel.facts["registers"]
            if architecture == PREDICTED and kernel.name == "on_vectors":
                title = f"Resources of the kernels on vectors, {PREDICTED}"
                cells |= {(title, str(kernel), name): n for name, n in kernel.facts.items()}
            for target, counts in kernel.hot.items():
                targets = f"{target}-byte targets" if target else "sparse labels"
                row = f"{kernel.dtype}, {targets}, {kernel.mode}"
                cell = f"{counts['instructions']:.2f}"
                cell += f" + {counts['float64']}" if counts["float64"] else ""
                cells["Instructions per element of the hot paths", row, architecture] = cell
                if architecture == PREDICTED:
                    columns = {**counts, **_predicted(counts)}
                    cells |= {(f"Hot paths, {PREDICTED}", row, c): columns[c] for c in columns}
    return {one: f"{n:.2f}" if isinstance(n, float) else str(n) for one, n in cells.items()}


def _predicted(counts: Mapping[str, float]) -> dict[str, str]:
    """Predicts from its counts how fast a hot path can be."""
    elements = COPY / counts["bytes"] / CLOCKS  # of a processor in a clock
    issue = elements * (counts["instructions"] + counts["sums"]) / ISSUE
    sums = hot_path.SUMS / hot_path.RUN if counts["sums"] else 0
    special = elements * (counts["MUFU"] + sums) / MUFU
    share, limit = max((1.0, "memory"), (issue, "issue"), (special, "MUFU"))
    shares = {"issue": f"{issue:.0%}", "MUFU rate": f"{special:.0%}"}
    return {**shares, "first limit": limit, "of a copy": f"{1 / share:.0%}"}


def updated(text: str, code: Code) -> str:
    """Returns the text of a report with its tables replaced by those of this code."""
    cells = cells_of(code)
    text = BUILD.sub(f"nvcc {code.nvcc} for {', '.join(code.kernels)}", text)
    for title in dict.fromkeys(title for title, _, _ in cells):
        rows = dict.fromkeys(row for one, row, _ in cells if one == title)
        columns = dict.fromkeys(column for one, _, column in cells if one == title)
        lines = [["kernel", *columns], ["---"] + ["---:"] * len(columns)]
        lines += [[row, *(cells.get((title, row, c), "none") for c in columns)] for row in rows]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        text = re.sub(rf"(?<=## {title}\n)([^|]*)(?:\|.*\n)+", rf"\g<1>{table}", text)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    summary, _, _ = str(__doc__).partition("\n")
    parser = Parser(prog=PROGRAM, description=summary)
    text = "where to write the report with new tables; default: bench/results/cuda_code.md"
    parser.add_argument("--out", type=Path, default=REPORT, metavar="FILE", help=text)

    def work() -> None:
        options = parser.parse_args(arguments)
        check_folder("--out", options.out.parent)
        write_whole(options.out, updated(REPORT.read_text(encoding="utf-8"), built()))

    return run(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
