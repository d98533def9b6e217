"""What is known of the GPU, the tools and the sources before anything runs."""

import json
import os
import platform
import shutil
import subprocess
import sys
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools.program import Refusal

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0  # a first import of torch may take it, from a disk that is cold

PROBE = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} finds no GPU")
known = torch.cuda.get_device_properties(0)
print(json.dumps({
    "GPU": known.name,
    "compute capability": f"{known.major}.{known.minor}",
    "memory": f"{known.total_memory / 2**30:.1f} GiB",
    "multiprocessors": known.multi_processor_count,
    "L2 cache": f"{known.L2_cache_size / 2**20:.0f} MiB",
    "torch": torch.__version__,
    "CUDA": torch.version.cuda,
}))
"""
CLOCKS = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu"
CLOCK_FIELDS = ("time", "SM MHz", "memory MHz", "W", "degrees C")
USUAL = {
    "nvcc": "/usr/local/cuda/bin/nvcc",
    "compute-sanitizer": "/usr/local/cuda/bin/compute-sanitizer",
    "nvidia-smi": "/usr/local/nvidia/bin/nvidia-smi",
    "ncu": "/opt/nvidia/nsight-compute/*/ncu",
}


class Machine:
    """This machine and its first GPU. Tests put another one in its place."""

    device = "cuda"

    def probe(self) -> dict[str, Any]:
        """The GPU as torch sees it, by name of the fact; raises Refusal without one."""
        command = [sys.executable, "-c", PROBE]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise Refusal(f"no GPU: torch did not find a GPU within {SECONDS:.0f} s") from None
        if ran.returncode != 0:
            raise Refusal(f"no GPU: {last_line(ran.stderr) or ran.returncode}")
        return dict(json.loads(last_line(ran.stdout)))

    def tool(self, name: str) -> str | None:
        """The path of one of CUDA's programs, or None."""
        usual = sorted(glob(USUAL.get(name, "")))
        return shutil.which(name) or (usual[-1] if usual else None)

    def has(self, package: str) -> bool:
        """Whether this Python has a package."""
        return find_spec(package) is not None

    def clocks(self) -> list[str] | None:
        """The command that prints the GPU's clocks each second; None where it is not there."""
        smi = self.tool("nvidia-smi")
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
        query = [f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits", f"--id={first}"]
        return None if smi is None else [smi, *query, "--loop=1"]


def facts(machine: Machine, commit: str) -> dict[str, Any]:
    """All that the reports name; raises Refusal without a GPU."""
    known = machine.probe()
    smi, nvcc = (machine.tool(name) or name for name in ("nvidia-smi", "nvcc"))
    driver = output(smi, "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        **known,
        "driver": last_line(driver),
        "nvcc": last_line(output(nvcc, "--version")).partition("cuda_")[2].partition("/")[0],
        "python": platform.python_version(),
        "CPU cores": cores(),
        "commit": commit or of_git() or of_file() or "unknown",
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def output(*command: str) -> str:
    """What a program prints; nothing where it is not there, fails or takes too long."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout if ran.returncode == 0 else ""


def text_of(log: Path) -> str:
    """What a program has printed so far; nothing before it starts."""
    return log.read_text(errors="replace") if log.exists() else ""


def last_line(text: str) -> str:
    """The last line that says something, or nothing."""
    lines = (line.strip(" =\t") for line in reversed(text.splitlines()))
    return next(filter(None, lines), "")


def of_git(root: Path = ROOT) -> str:
    """The commit of the sources, with a + where they were changed; nothing where git knows none."""
    if not (root / ".git").exists():  # or it would tell of a repository around this one
        return ""
    options = ("--always", "--abbrev=10", "--dirty=+", "--exclude=*")
    return output("git", "-C", str(root), "describe", *options).strip()


def of_file(root: Path = ROOT) -> str:
    """The first word of the file COMMIT, which those write who copy sources without git."""
    return next(iter(text_of(root / "COMMIT").split()), "")
