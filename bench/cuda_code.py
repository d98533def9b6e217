"""Reads by cuobjdump what a built extension has for each GPU: kernels, resources, hot paths."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from weighted_bce._extension import extension, why_missing

from . import hot_path

TOOLS = "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"  # the packages; the first calls the second
# csrc/problem.h, with whether losses are added up and whether gradients are written.
MODES = {
    "loss": (True, False),
    "loss and gradient": (True, True),
    "gradient": (False, True),
    "unreduced loss": (False, False),
}
# csrc/cuda/targets.h, with the bytes of a target: several where the kernel finds out.
TARGETS = {"sparse labels": (0,), "1-byte targets": (1,), "larger targets": (2, 4, 8)}
DTYPES = {"f": "float32", "d": "float64", "NS_4HalfE": "float16", "NS_8BFloat16E": "bfloat16"}
LOSSES = {"": "", "NS_3BceE": "", "NS_5FocalE": "focal"}  # csrc/terms.h
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
NAME = re.compile(
    rf"_ZN12weighted_bce4cuda\d+([a-z_]+)I((?:{'|'.join(LOSSES)})??)((?:{'|'.join(DTYPES)})+)"
    r"(?:LNS0_7TargetsE(\d)E)?(?:LNS_4ModeE(\d)E)?EEv"
)


class Unreadable(Exception):
    """The extension or the tools are not there; the message says what to do."""


class Kernel(NamedTuple):
    name: str
    loss: str = ""  # for binary cross-entropy nothing
    dtype: str = ""  # of the logits, or in which sums are stored
    target: str = ""  # one of TARGETS, where logits are read
    mode: str = ""
    facts: Mapping[str, int] = {}
    hot: Mapping[int, hot_path.HotPath] = {}  # by the bytes of a target
    unclear: str = ""  # why there is none

    @property
    def lanes(self) -> int:
        """Logits in 16 bytes."""
        return 16 // SIZES[self.dtype]

    @property
    def is_hot(self) -> bool:
        return self.name == "on_vectors" and self.loss == "" and self.mode != "unreduced loss"

    def __str__(self) -> str:
        words = [f"{self.name} {self.dtype}".strip(), self.loss, self.target, self.mode]
        return ", ".join(word for word in words if word)


class Code(NamedTuple):
    nvcc: str  # "13.0.88"
    architectures: tuple[str, ...]  # as the build names them: "sm_80", "compute_120" for PTX
    kernels: dict[str, list[Kernel]]  # by architecture


def built() -> Code:
    """Reads the CUDA code of the extension that is imported here.

    Raises:
        Unreadable: if it has no CUDA kernels, or no tool to read them is there.
    """
    if extension is None or not extension.cuda_archs:
        raise Unreadable(f"there are no CUDA kernels: {why_missing or 'built without'}")
    module = Path(str(extension.__file__))
    said = re.findall(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", module.read_bytes())
    parts = re.findall(r"(elf|ptx) code:\n=+\narch = sm_(\d+)", _cuobjdump(module, "-res-usage"))
    kinds = {"elf": "sm", "ptx": "compute"}
    parts = sorted(set(parts), key=lambda part: (part[0], int(part[1])))
    architectures = tuple(f"{kinds[kind]}_{number}" for kind, number in parts)
    kernels = {name: _kernels(module, name) for name in architectures if name.startswith("sm_")}
    return Code(", ".join(sorted({one.decode() for one in said})), architectures, kernels)


def _kernels(module: Path, architecture: str) -> list[Kernel]:
    text = _cuobjdump(module, "-sass", "-res-usage", "-arch", architecture)
    usages = dict(re.findall(r"Function (\w+):\n(.+)", text))
    kernels = {}  # the objects of several dtypes may hold the same one
    for function in text.split("Function : ")[1:]:
        name, _, code = function.partition("\n")
        kernel = with_facts(kernel_of(name), usages[name], hot_path.instructions_of(code))
        kernels[str(kernel)] = kernel
    return sorted(kernels.values(), key=lambda one: one[:5])


def kernel_of(mangled: str) -> Kernel:
    """The kernel of a mangled name; of one that is not known here, just the name."""
    match = NAME.match(mangled)
    if match is None:
        return Kernel(mangled)
    name, loss, types, target, mode = match.groups()
    dtypes = dict.fromkeys(DTYPES[one] for one in re.findall("|".join(DTYPES), types))
    words = [[*names][int(n)] if n else "" for names, n in ((TARGETS, target), (MODES, mode))]
    return Kernel(name, LOSSES[loss], " of ".join(dtypes), *words)


def with_facts(kernel: Kernel, usage: str, code: list[hot_path.Instruction]) -> Kernel:
    """Adds what cuobjdump says that a kernel uses, and counts of its instructions."""
    used = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", usage)}
    hot, unclear = {}, ""
    if kernel.is_hot:
        try:
            hot = hot_path.find(code, kernel.lanes, TARGETS[kernel.target], *MODES[kernel.mode])
        except ValueError as error:
            unclear = str(error)
    facts = {
        "registers": used["REG"],
        "shared bytes": used["SHARED"],
        "stack": used["STACK"],
        "local": used["LOCAL"],
        "spills": sum(i.name in ("STL", "LDL") for i in code),  # instructions
        "16-byte loads": sum(i.name in ("LDG", "LDGSTS") and i.width == 16 for i in code),
        "16-byte stores": sum(i.name == "STG" and i.width == 16 for i in code),
    }
    return kernel._replace(facts=facts, hot=hot, unclear=unclear)


def _cuobjdump(module: Path, *options: str) -> str:
    """What it prints of a module."""
    folders = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '')}/bin"]
    folders += map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))
    path = os.pathsep.join(folders)
    tool = shutil.which("cuobjdump", path=path)
    if not tool or not shutil.which("nvdisasm", path=path):
        raise Unreadable(f"cuobjdump and nvdisasm are not installed: pip install {TOOLS}")
    command, variables = [tool, *options, str(module)], {**os.environ, "PATH": path}
    return subprocess.check_output(command, text=True, env=variables)
