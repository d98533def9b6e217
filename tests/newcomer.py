"""A copy of the project and a fresh environment, for tests of what a newcomer types."""

import os
import re
import shutil
import stat
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

from weighted_bce._extension import extension

ROOT = Path(__file__).parent.parent
# What the environment has before README's commands; pip reports these as installed, and no index is
# asked for them.
PACKAGES = ("torch", "ninja", "pybind11", "setuptools", "pip", "rich", "psutil", "numpy", "scipy")
PACKAGES += ("sklearn", "matplotlib")
COMPILER = """#!/bin/sh
# Stands for the C++ compiler: objects are empty, and what is linked is the library of the tests.
case " $* " in
  *" -c "*) while [ "$1" != -o ]; do shift; done; : > "$2" ;;
  *" -shared "*) while [ "$1" != -o ]; do shift; done; cp '{library}' "$2" ;;
  *) exec c++ "$@" ;;
esac
"""


def commands(heading: str) -> list[str]:
    """The commands of a section of docs/building.md, with its subsections left out."""
    text = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    return commands_in(section)


def commands_in(text: str) -> list[str]:
    """The commands of the shell blocks, without comments and line breaks within a command."""
    code = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    lines = code.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line.partition("  #")[0]).strip() for line in lines]


class Newcomer:
    """Has a clone and a shell, in which a new environment is active.

    The clone has the name that git gives it. So in the folder around it Python meets a folder with
    the name of the package, which must not hide what was installed.
    """

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "weighted_bce"
        _copy_project(self.clone)
        self.environment = folder / "environment"
        venv.create(self.environment, with_pip=False)
        scripts = self.environment / "bin"
        site = next(self.environment.glob("lib/python*/site-packages"))
        folders = {str(_origin(name)) for name in PACKAGES if find_spec(name) is not None}
        (site / "of_the_tests.pth").write_text("\n".join(sorted(folders)), encoding="utf-8")
        _script(scripts / "pip", f'#!/bin/sh\nexec "{scripts}/python" -m pip "$@"\n')
        ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if ninja is not None:
            (scripts / "ninja").symlink_to(ninja)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "WEIG"))}
        self.variables = {
            **kept,
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.environment),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }

    def with_ready_kernels(self) -> None:
        """Compiling takes no time: the compiler is one that gives the library of the tests."""
        assert extension is not None
        script = self.environment / "c++"
        _script(script, COMPILER.format(library=extension.__file__))
        linker = f"{script} -shared"
        self.variables |= {"CXX": str(script), "LDCXXSHARED": linker, "WEIGHTED_BCE_CUDA": "0"}

    def run(self, command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command],
            cwd=folder or self.clone,
            env=self.variables,
            capture_output=True,
            text=True,
        )

    def succeed(self, command: str, folder: Path | None = None) -> str:
        ran = self.run(command, folder)
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        return ran.stdout


def _copy_project(to: Path) -> None:
    """Copies what git would give: the files that it has, and those that it would take."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("bench/results/"):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def _origin(package: str) -> Path:
    """The folder that a package is imported from."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def _script(at: Path, text: str) -> None:
    at.write_text(text, encoding="utf-8")
    at.chmod(at.stat().st_mode | stat.S_IXUSR)
