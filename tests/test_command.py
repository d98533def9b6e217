"""The benchmark and the examples say in one line what they miss, and show no reference as ours."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

import bench.__main__
from examples import extreme_labels, sparse_labels
from tools import command
from weighted_bce import _kernels

ROOT = Path(__file__).parent.parent
PROGRAMS = [bench.__main__, sparse_labels, extreme_labels]
OWN = ("examples", "tools")
REMEDY = "To build them, run: this"


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"on_cpu": None, "extension": None, "why_missing": "it is gone"}.items():
        monkeypatch.setattr(_kernels, name, value)
    monkeypatch.setattr(_kernels, "remedy", REMEDY)


def refusal(program: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert program.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_figures_of_the_reference(
    program: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where there are no kernels nor where the variable chooses it."""
    said = refusal(program, capsys)
    assert "weighted_bce would be plain PyTorch, which --reference allows: " in said
    assert said.endswith(f"it is gone. {REMEDY}\n")
    monkeypatch.setenv("WEIGHTED_BCE_BACKEND", "reference")
    assert "WEIGHTED_BCE_BACKEND" in refusal(program, capsys)


@pytest.mark.usefixtures("no_kernels")
def test_figures_of_the_reference_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = "--quick --shapes 8x50 --passes forward --rounds 1 --against bce --reference"
    assert bench.__main__.main(given.split()) == 0
    assert "Time of weighted_bce" in capsys.readouterr().out
    assert command.obstacle((), reference=True) == ""


def test_with_kernels_nothing_is_in_the_way() -> None:
    for program in PROGRAMS:
        assert command.obstacle(program.PACKAGES, reference=False) == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_packages_that_are_missing(
    program: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once, with the command that installs them, before anything is imported."""
    monkeypatch.setattr(command, "find_spec", lambda name: None if name != "torch" else name)
    names = [name for name in program.PACKAGES if name != "torch"]
    pip = f"{sys.executable} -m pip install {' '.join(names)}\n"
    extra = "bench" if program is bench.__main__ else "examples"
    needs = f"it needs {', '.join(names)}, which weighted_bce[{extra}] has"
    needs += f". To install what is missing, run: {pip}"
    assert refusal(program, capsys).endswith(needs)


def test_pictures_need_one_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would be missed at the end of the run."""
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "matplotlib" else name)
    said = refusal(bench.__main__, capsys, "--out", str(tmp_path))
    assert "it needs matplotlib" in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_packages_are_those_that_are_imported(program: ModuleType) -> None:
    file = program.__file__
    assert file is not None
    names = {command.MODULES.get(name, name) for name in program.PACKAGES}
    if program is bench.__main__:  # where they are installed; pictures are checked above
        names |= {"matplotlib", "numpy", "timm", "torchvision"}
    imported = _imports(Path(file), set())
    others = imported - set(sys.stdlib_module_names) - {"weighted_bce"}
    assert others <= names
    assert set(program.PACKAGES) <= {_on_index(name) for name in others}


def _on_index(module: str) -> str:
    return next((name for name, other in command.MODULES.items() if other == module), module)


def _imports(file: Path, seen: set[Path]) -> set[str]:
    """The packages that a file imports, and those that the files of ours that it imports do."""
    if file in seen or not file.is_file():
        return set()
    seen.add(file)
    packages: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            top, *inner = (node.module or "").split(".")
            if node.level == 0 and top not in OWN:
                packages.add(top)
                continue
            folder = (ROOT / top).joinpath(*inner[:-1]) if node.level == 0 else file.parent
            name = inner[-1:] if node.level == 0 else [top][: bool(top)]
            for one in name or [alias.name for alias in node.names]:
                packages |= _imports(folder / f"{one}.py", seen)
    return packages
