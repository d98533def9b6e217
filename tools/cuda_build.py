"""Builds the CUDA part for setup.py: finds nvcc, compiles each *.cu, extends the extension module.

It needs no CUDA build of torch and no GPU. The runtime is linked statically, so that one module
loads in every torch.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
DEFAULT = ("80", "90", "100", "120")  # and PTX of the last one, for GPUs to come
OLDEST = 80
LIKE = '"8.0;9.0+PTX"'
# The names that torch takes in TORCH_CUDA_ARCH_LIST; CMake's, and "native", leave the choice to us.
NAMED = {
    "Kepler": "3.5+PTX",
    "Kepler+Tesla": "3.7",
    "Maxwell": "5.0 5.2+PTX",
    "Maxwell+Tegra": "5.3",
    "Pascal": "6.0 6.1+PTX",
    "Volta": "7.0+PTX",
    "Volta+Tegra": "7.2",
    "Turing": "7.5+PTX",
    "Ampere": "8.0 8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0 10.3 12.0 12.1+PTX",
    "Blackwell+Tegra": "11.0",
}
NOTHING_LEFT = "nothing is left"
OURS_TO_CHOOSE = ("native", "Auto", "Common", "All")
USUAL = Path("/usr/local/cuda/bin/nvcc")
FLAGS = (
    *("-std=c++17", "-O3", f"-I{CSRC}", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    "-fmad=false",  # a multiplication and an addition round one by one, as on the CPU
    *("-Werror", "all-warnings", "-Wdefault-stream-launch"),
    # A kernel that spills, or keeps an array in local memory, is slow: not a build of ours.
    *("-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror"),
)
EXTRA = re.compile(r'"nvidia-cuda-nvcc==(\d+\.\d+)')  # pip has no nvcc of CUDA 12
TRIED = EXTRA.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[0]  # "13.0"


class Unavailable(Exception):
    """There is no toolkit here that can build the CUDA part; the message says why in one line."""


class Failed(Exception):
    """The toolkit is there, but a kernel does not compile."""


class Toolkit(NamedTuple):
    nvcc: Path
    version: str  # "13.0"
    cudart: Path
    architectures: tuple[str, ...]  # "sm_80", or "compute_80" for PTX
    left_out: str = ""  # what of TORCH_CUDA_ARCH_LIST, and why


def wanted() -> str:
    """The variable WEIGHTED_BCE_CUDA: "0", "1", or "" where the toolkits of this machine decide."""
    value = os.environ.get("WEIGHTED_BCE_CUDA", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"weighted_bce: WEIGHTED_BCE_CUDA must be 0, 1 or unset, got {value!r}")
    return value


def extend(extension: Extension, torch_cuda: str | None) -> None:
    """Adds the CUDA part to the extension module, or says why it cannot be added.

    Args:
        extension: that of the CPU; objects, C++ sources and macros join it.
        torch_cuda: `torch.version.cuda`, None for a torch without CUDA.

    Raises:
        SystemExit: if the part is required and cannot be built.
    """
    if wanted() == "0":
        return
    try:
        toolkit = find_toolkit(torch_cuda)
        if toolkit.left_out:
            print(f"weighted_bce: TORCH_CUDA_ARCH_LIST: {toolkit.left_out}", file=sys.stderr)
        objects = compile_all(toolkit)
    except (Unavailable, Failed) as error:
        line = f"weighted_bce: the CUDA kernels were not built: {error}"
        if wanted() == "1":
            raise SystemExit(line) from error
        if isinstance(error, Failed) and os.environ.get("WEIGHTED_BCE_REQUIRE_EXT") == "1":
            raise SystemExit(f"{line}; WEIGHTED_BCE_CUDA=0 builds without them") from error
        print(line, file=sys.stderr)
        return
    extension.sources += sorted(str(p.relative_to(ROOT)) for p in CSRC.glob("cuda/*.cpp"))
    extension.extra_objects += [*map(str, objects), str(toolkit.cudart)]
    extension.libraries += ["dl", "rt", "pthread"]
    # Otherwise a torch with CUDA would bind our calls to the runtime that it has loaded itself.
    extension.extra_link_args += [f"-Wl,--exclude-libs,{toolkit.cudart.name}"]
    extension.define_macros += [
        ("WEIGHTED_BCE_WITH_CUDA", "1"),
        ("WEIGHTED_BCE_CUDA_ARCHS", f'"{", ".join(toolkit.architectures)}"'),
        ("WEIGHTED_BCE_CUDA_VERSION", f'"{toolkit.version}"'),
    ]


def find_toolkit(torch_cuda: str | None) -> Toolkit:
    """The first toolkit that fits.

    Raises:
        Unavailable: if none does.
    """
    errors: dict[str, None] = {}
    for nvcc in candidates():
        try:
            return examined(nvcc, torch_cuda)
        except Unavailable as error:
            errors[str(error)] = None
    nowhere = "no nvcc by CUDA_HOME, on PATH, in Python's packages or in /usr/local/cuda"
    major, tried = ((version or TRIED).split(".")[0] for version in (torch_cuda, TRIED))
    how = f"install the toolkit of CUDA {major}"
    if any(NOTHING_LEFT in error for error in errors):
        how = f"unset TORCH_CUDA_ARCH_LIST, or set it like {LIKE},"
    elif major == tried:
        how += ", or pip's as docs/building.md says,"
    raise Unavailable(f"{'; '.join(errors) or nowhere}; to get them, {how} and build again")


def candidates() -> list[Path]:
    """That of CUDA_HOME alone where it is set; else that on PATH, those installed by pip, and the
    one where NVIDIA's installer puts it."""
    if home := os.environ.get("CUDA_HOME"):
        return [Path(home) / "bin" / "nvcc"]
    paths = [Path(on_path)] if (on_path := shutil.which("nvcc")) else []
    for folder in site_folders():
        paths += sorted(folder.glob("nvidia/cu[0-9]*/bin/nvcc"), reverse=True)
    return [*paths, USUAL] if USUAL.is_file() else paths


def site_folders() -> list[Path]:
    # pip's isolated builds hide the environment's own packages from sys.path.
    folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [Path(folder) for folder in dict.fromkeys(folders) if folder]


def examined(nvcc: Path, torch_cuda: str | None) -> Toolkit:
    release = re.search(r"release (\d+\.\d+)", ask(nvcc, "--version"))
    if release is None:
        raise Unavailable(f"{nvcc} --version names no release")
    version = release.group(1)
    if torch_cuda and torch_cuda.split(".")[0] != version.split(".")[0]:
        raise Unavailable(f"{nvcc} is of CUDA {version}, but torch is built for CUDA {torch_cuda}")
    known = re.findall(r"sm_(\d+)", ask(nvcc, "--list-gpu-code"))
    return Toolkit(nvcc, version, find_cudart(nvcc), *architectures(known))


def ask(nvcc: Path, *arguments: str) -> str:
    try:
        result = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{nvcc} does not run: {error.strerror}") from error
    if result.returncode != 0:
        lines = (result.stderr + result.stdout).strip().splitlines() or ["no message"]
        raise Unavailable(f"{nvcc} does not run: {lines[0]}")
    return result.stdout + result.stderr


def find_cudart(nvcc: Path) -> Path:
    """The static runtime of the toolkit; nvcc itself may be a link or a script that leads there."""
    plan = ask(nvcc, "--dryrun", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    folders = re.findall(r'"-L([^"]+)"', plan)
    if top:  # pip's layout has a lib that nvcc does not name
        folders += [f"{top.group(1)}/lib64", f"{top.group(1)}/lib"]
    for folder in folders:
        library = Path(folder, "libcudart_static.a")
        if library.is_file():
            return library.resolve()
    raise Unavailable(f"the toolkit of {nvcc} has no libcudart_static.a")


def architectures(known: list[str]) -> tuple[tuple[str, ...], str]:
    """What to compile for, and what of TORCH_CUDA_ARCH_LIST is left out.

    Container images set that list for torch, whose GPUs and names are not all ours: of a list we
    build what we can.

    Args:
        known: the architectures that nvcc knows, as "80".

    Raises:
        Unavailable: if nothing is left, of the list or without one of the default.
    """
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    items = [item for word in re.split(r"[;,\s]+", text) for item in NAMED.get(word, word).split()]
    if all(item in OURS_TO_CHOOSE for item in items):
        numbers = [f"sm_{number}" for number in DEFAULT if number in known]
        if not numbers:
            raise Unavailable("nvcc is too old for GPUs of compute capability 8.0")
        return (*numbers, numbers[-1].replace("sm", "compute")), ""
    machine, ptx = [], []
    left_out: dict[str, list[str]] = {}
    for item in items:
        # Instructions of one GPU alone ("9.0a") are not needed here.
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", item)
        number = match.group(1) + match.group(2) if match else ""
        if match is None:
            left_out.setdefault(f"not like {LIKE}", []).append(item)
        elif int(number) < OLDEST:
            left_out.setdefault("the kernels need 8.0 or newer", []).append(item)
        elif number not in known:
            left_out.setdefault("this nvcc does not know it", []).append(item)
        else:
            machine.append(f"sm_{number}")
            ptx += [f"compute_{number}"] * bool(match.group(3))
    said = ", ".join(f"{', '.join(some)} left out ({why})" for why, some in left_out.items())
    if not machine:
        raise Unavailable(f"TORCH_CUDA_ARCH_LIST: {said}, {NOTHING_LEFT}")
    return tuple(dict.fromkeys(machine + ptx)), said


def compile_all(toolkit: Toolkit) -> list[Path]:
    """One object of each *.cu, under build/; those that are up to date are kept.

    Raises:
        Failed: if one does not compile; what nvcc said is on stderr.
    """
    numbers = [(name.split("_")[1], name) for name in toolkit.architectures]
    targets = [f"-gencode=arch=compute_{number},code={name}" for number, name in numbers]
    sources = sorted(CSRC.glob("cuda/*.cu"))
    headers = [path.stat().st_mtime for path in CSRC.rglob("*.*h")]
    flags = flags_for(toolkit.version)
    digest = hashlib.sha256(repr((toolkit.version, flags, targets)).encode()).hexdigest()[:12]
    folder = ROOT / "build" / "cuda" / digest
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{source.stem}.o" for source in sources]
    pairs = zip(sources, objects, strict=True)
    stale = [
        (source, at)
        for source, at in pairs
        if not at.exists() or at.stat().st_mtime <= max(*headers, source.stat().st_mtime)
    ]
    processes, threads = share_of_work(len(stale), len(targets))
    command = [str(toolkit.nvcc), *flags, *targets, f"--threads={threads}"]
    with ThreadPoolExecutor(processes) as pool:
        for failure in list(pool.map(lambda pair: compile_one(command, *pair), stale)):
            if failure:
                raise Failed(failure)
    return objects


def flags_for(version: str) -> tuple[str, ...]:
    """Warnings are errors only for the nvcc that gives none: another one may warn of more, or keep
    less in registers, and slower kernels are better than no kernels."""
    if version == TRIED:
        return FLAGS
    kept = (flag for flag in FLAGS if flag not in ("-Werror", "all-warnings"))
    return tuple(flag.removesuffix(",-Werror") for flag in kept)


def share_of_work(files: int, targets: int) -> tuple[int, int]:
    """How many nvcc run at once, and the threads of each: two processes, or MAX_JOBS in all."""
    given = os.environ.get("MAX_JOBS", "")
    most = int(given) if given.isdecimal() else 0
    processors = most or os.cpu_count() or 1
    processes = max(1, min(most or 2, processors, files))
    return processes, max(1, min(processors // processes, targets))


def compile_one(command: list[str], source: Path, at: Path) -> str:
    """Compiles; returns why it failed, or nothing. What ptxas counted stays next to the object."""
    start = time.time()
    unfinished = at.with_suffix(".unfinished.o")
    print(f"weighted_bce: nvcc {source.relative_to(ROOT)}", file=sys.stderr)
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(unfinished)], capture_output=True, text=True
    )
    said = result.stdout + result.stderr
    if result.returncode != 0:
        print(said, file=sys.stderr)
        reasons = [line for line in said.splitlines() if "error" in line or "fatal" in line]
        reason = (reasons or said.splitlines() or ["no message"])[0]
        return f"nvcc fails on {source.relative_to(ROOT)}: {reason}"
    at.with_suffix(".log").write_text(said, encoding="utf-8")
    os.utime(unfinished, (start, start))  # a source that changed meanwhile is newer
    unfinished.replace(at)
    return ""
