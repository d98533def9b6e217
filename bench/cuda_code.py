"""What is in the built extension for each GPU: kernels, resources, hot paths; read by cuobjdump."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import hot_path, sass
from .hot_path import HotPaths

TOOLS = ("cuobjdump", "nvdisasm")  # the first one calls the second
HOW_TO_GET = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
MODES = ("loss", "loss and gradient", "gradient", "unreduced loss")  # csrc/problem.h
TARGETS = ("sparse labels", "1-byte targets", "larger targets")  # csrc/cuda/targets.h
TYPES = {"f": "float32", "d": "float64", "NS_4HalfE": "float16", "NS_8BFloat16E": "bfloat16"}
LOSSES = {"NS_3BceE": "", "NS_5FocalE": "focal"}  # csrc/terms.h
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LARGER = (2, 4, 8)  # bytes of a target, where the kernel finds out
NAME = re.compile(
    r"_ZN12weighted_bce4cuda\d+"
    r"(on_vectors|on_elements|count_targets|count_sparse_targets|finish|remember_grad_output)"
    r"I(\w+)Ev"
)
ARGUMENT = re.compile(r"NS_\w+?E|LNS0_7TargetsE(\d)E|LNS_4ModeE(\d)E|[fd]")


class Unreadable(Exception):
    """The extension or the tools are not there; the message says what to do."""


class Kernel(NamedTuple):
    name: str
    loss: str = ""  # for binary cross-entropy nothing
    dtype: str = ""  # of the logits, or in which sums are stored
    target: str = ""  # one of TARGETS, where logits are read
    mode: str = ""

    @property
    def lanes(self) -> int:
        """Logits in 16 bytes."""
        return 16 // SIZES[self.dtype]

    @property
    def is_hot(self) -> bool:
        return self.is_vectors and self.loss == "" and self.mode != "unreduced loss"

    @property
    def is_vectors(self) -> bool:
        return self.name == "on_vectors"

    @property
    def targets(self) -> tuple[int, ...]:
        """The bytes that a target may have; of sparse ones 0."""
        return {"sparse labels": (0,), "1-byte targets": (1,), "larger targets": LARGER}[
            self.target
        ]

    @property
    def sums(self) -> bool:
        return self.mode in ("loss", "loss and gradient")

    @property
    def slopes(self) -> bool:
        return self.mode in ("gradient", "loss and gradient")

    def __str__(self) -> str:
        words = [f"{self.name} {self.dtype}".strip(), self.loss, self.target, self.mode]
        return ", ".join(word for word in words if word)


class Facts(NamedTuple):
    registers: int
    shared: int  # bytes
    stack: int
    local: int
    spills: int  # instructions that touch local memory
    wide_loads: int  # instructions that load 16 bytes
    wide_stores: int
    hot: dict[int, HotPaths]  # by the bytes of a target
    unclear: str  # why there is none


class Code(NamedTuple):
    nvcc: str  # "13.0.88"
    architectures: tuple[str, ...]  # as the build names them: "sm_80", "compute_120" for PTX
    kernels: dict[str, dict[Kernel, Facts]]  # by architecture


def read(module: Path, nvcc: str) -> Code:
    """All about the CUDA code of a module.

    Args:
        module: the shared library.
        nvcc: the version of the compiler, where its code does not say so.

    Raises:
        Unreadable: if there is none, or no tool to read it.
    """
    machine = list(_listed(module, "-lelf", r"\.(sm_\w+)\.cubin"))
    virtual = [f"compute_{number}" for number in _listed(module, "-lptx", r"\.sm_(\w+)\.ptx")]
    if not machine:
        raise Unreadable("the extension was built without CUDA")
    patched = re.findall(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", module.read_bytes())
    versions = sorted({version.decode() for version in patched}) or [nvcc]
    return Code(", ".join(versions), tuple(machine + virtual), _kernels(module))


def tools() -> Path:
    """The folder with cuobjdump and nvdisasm."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep)]
    folders += [str(p) for p in sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))]
    folders += [f"{os.environ['CUDA_HOME']}/bin"] if os.environ.get("CUDA_HOME") else []
    for folder in folders:
        if all(shutil.which(tool, path=folder) for tool in TOOLS):
            return Path(folder)
    raise Unreadable(f"{' and '.join(TOOLS)} are not installed: {HOW_TO_GET}")


def _cuobjdump(module: Path, option: str) -> Iterator[str]:
    """The lines that it prints, while it prints them."""
    folder = tools()
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(folder / "cuobjdump"), option, str(module)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise Unreadable(f"cuobjdump {option} fails with {process.returncode}")


def _listed(module: Path, option: str, pattern: str) -> dict[str, None]:
    text = "".join(_cuobjdump(module, option))
    return dict.fromkeys(sorted(re.findall(pattern, text), key=lambda name: (len(name), name)))


def _kernels(module: Path) -> dict[str, dict[Kernel, Facts]]:
    resources = _resources(module)
    kernels: dict[str, dict[Kernel, Facts]] = {}
    for architecture, name, code in sass.functions(_cuobjdump(module, "-sass")):
        kernel = kernel_of(name)
        facts = _facts(kernel, code, resources[architecture, name])
        others = kernels.setdefault(architecture, {})
        # The objects of several dtypes may hold the same kernel.
        if kernel not in others or others[kernel].registers < facts.registers:
            others[kernel] = facts
    order = sorted(kernels, key=lambda name: (len(name), name))
    return {name: dict(sorted(kernels[name].items())) for name in order}


def kernel_of(mangled: str) -> Kernel:
    """The kernel of a mangled name; of one that is not known here, just the name."""
    match = NAME.match(mangled)
    if match is None:
        return Kernel(mangled)
    words = {"loss": "", "target": "", "mode": ""}
    dtypes = []
    for argument in ARGUMENT.finditer(match.group(2)):
        target, mode = argument.groups()
        if target is not None:
            words["target"] = TARGETS[int(target)]
        elif mode is not None:
            words["mode"] = MODES[int(mode)]
        elif argument.group() in LOSSES:
            words["loss"] = LOSSES[argument.group()]
        else:
            dtypes.append(TYPES[argument.group()])
    return Kernel(match.group(1), dtype=" of ".join(dict.fromkeys(dtypes)), **words)


def _resources(module: Path) -> dict[tuple[str, str], dict[str, int]]:
    """REG, STACK, SHARED and LOCAL by architecture and mangled name."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture, name = "", ""
    for line in _cuobjdump(module, "-res-usage"):
        words = line.split()
        if line.startswith("arch = "):
            architecture = words[2]
        elif words[:1] == ["Function"]:
            name = words[1].rstrip(":")
        elif words and words[0].startswith("REG:"):
            pairs = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)
            found[architecture, name] = {key: int(value) for key, value in pairs}
    return found


def _facts(kernel: Kernel, code: list[sass.Instruction], used: dict[str, int]) -> Facts:
    hot: dict[int, HotPaths] = {}
    unclear = ""
    if kernel.is_hot:
        try:
            hot = hot_path.find(code, kernel.lanes, kernel.targets, kernel.sums, kernel.slopes)
        except ValueError as error:
            unclear = str(error)
    return Facts(
        registers=used["REG"],
        shared=used["SHARED"],
        stack=used["STACK"],
        local=used["LOCAL"],
        spills=sum(i.name in ("STL", "LDL") for i in code),
        wide_loads=sum(i.name in ("LDG", "LDGSTS") and i.width == 16 for i in code),
        wide_stores=sum(i.name == "STG" and i.width == 16 for i in code),
        hot=hot,
        unclear=unclear,
    )
