"""Reads by cuobjdump what a built extension has for each GPU: kernels, resources, hot paths."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from . import hot_path
from .hot_path import HotPath

TOOLS = ("cuobjdump", "nvdisasm")  # the first one calls the second
HOW_TO_GET = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
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
    facts: Mapping[str, int] = MappingProxyType({})
    hot: Mapping[int, HotPath] = MappingProxyType({})  # by the bytes of a target
    unclear: str = ""  # why there is none

    @property
    def lanes(self) -> int:
        """Logits in 16 bytes."""
        return 16 // SIZES[self.dtype]

    @property
    def is_vectors(self) -> bool:
        return self.name == "on_vectors"

    @property
    def is_hot(self) -> bool:
        return self.is_vectors and self.loss == "" and self.mode != "unreduced loss"

    def __str__(self) -> str:
        words = [f"{self.name} {self.dtype}".strip(), self.loss, self.target, self.mode]
        return ", ".join(word for word in words if word)


class Code(NamedTuple):
    nvcc: str  # "13.0.88"
    architectures: tuple[str, ...]  # as the build names them: "sm_80", "compute_120" for PTX
    kernels: dict[str, list[Kernel]]  # by architecture


def read(module: Path, nvcc: str) -> Code:
    """Reads the CUDA code of a shared library.

    Args:
        module: the library.
        nvcc: the version of the compiler, where the code does not say so.

    Raises:
        Unreadable: if there is no tool to read it.
    """
    said = re.findall(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", module.read_bytes())
    parts = re.findall(r"(elf|ptx) code:\n=+\narch = sm_(\d+)", _cuobjdump(module, "-res-usage"))
    numbers = sorted({number for _, number in parts}, key=int)
    machine = [f"sm_{number}" for number in numbers if ("elf", number) in parts]
    ptx = [f"compute_{number}" for number in numbers if ("ptx", number) in parts]
    return Code(
        ", ".join(sorted({version.decode() for version in said})) or nvcc,
        (*machine, *ptx),
        {architecture: _kernels(module, architecture) for architecture in machine},
    )


def _kernels(module: Path, architecture: str) -> list[Kernel]:
    text = _cuobjdump(module, "-res-usage", "-arch", architecture)
    usages = dict(re.findall(r"Function (\w+):\n(.+)", text))
    kernels: dict[str, Kernel] = {}
    text = _cuobjdump(module, "-sass", "-arch", architecture)
    for function in text.split("Function : ")[1:]:
        name, _, code = function.partition("\n")
        kernel = with_facts(kernel_of(name), usages[name], hot_path.instructions_of(code))
        # The objects of several dtypes may hold the same kernel.
        other = kernels.get(str(kernel), kernel)
        kernels[str(kernel)] = max(kernel, other, key=lambda one: one.facts["registers"])
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
    if not all(shutil.which(tool, path=path) for tool in TOOLS):
        raise Unreadable(f"{' and '.join(TOOLS)} are not installed: {HOW_TO_GET}")
    command = [str(shutil.which(TOOLS[0], path=path)), *options, str(module)]
    environment = {**os.environ, "PATH": path}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return ran.stdout
