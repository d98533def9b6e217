"""A warning says why there are no kernels, and the one command that helps, for each cause."""

import importlib
import json
import re
import sys
import tempfile
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.torch_version import TorchVersion

import weighted_bce
from weighted_bce import _config, _extension, _installation, backend, show_config

NEEDS = 'ninja "pybind11>=2.12" "setuptools>=77"'
SYMBOL = "undefined symbol: torch_new"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder of packages, the only one on sys.path; the package is not there."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    return folder


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Path) -> Path:
    """A source tree, from which the package is imported."""
    root = tmp_path / "a clone"
    for folder in ("csrc", "weighted_bce"):
        (root / folder).mkdir(parents=True)
    (root / "setup.py").touch()
    monkeypatch.setattr(_installation, "PACKAGE", root / "weighted_bce")
    return root


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, site: Path) -> Path:
    """A copy among the packages, from which the package is imported."""
    copy = site / "weighted_bce"
    copy.mkdir()
    monkeypatch.setattr(_installation, "PACKAGE", copy)
    return copy


def command(how: str) -> str:
    pip = "/env/bin/python -m pip install"
    return f"{pip} {NEEDS} && WEIGHTED_BCE_REQUIRE_EXT=1 {pip} --no-build-isolation {how}"


def in_place(clone: Path) -> str:
    return command(f"-e '{clone}'")


def again(source: object) -> str:
    return command(f"--no-cache-dir --force-reinstall --no-deps {source}")


def tell_pips_facts(installed: Path, direct_url: str) -> None:
    """Writes what pip leaves next to an installed copy."""
    facts = installed.parent / "weighted_bce-0.6.0.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text("Name: weighted_bce\nVersion: 0.6.0\n", encoding="utf-8")
    if direct_url:
        (facts / "direct_url.json").write_text(direct_url, encoding="utf-8")


def missing() -> tuple[str, str]:
    module, why, remedy = _extension._load()
    assert module is None
    return why, remedy


@pytest.fixture
def not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weighted_bce._C", None)


OTHER = "_C.cpython-39-x86_64-linux-gnu.so"


@pytest.mark.parametrize(
    ("loaded", "file", "expected"),
    [
        (None, "", "the package is imported from the source tree {clone}, which has no kernels"),
        (None, OTHER, f"{{package}} has kernels for another version of Python, {OTHER}"),
        (ImportError(SYMBOL), "", f"the kernels in {{package}} cannot be loaded ({SYMBOL})"),
        (
            SimpleNamespace(version="0.0.1"),
            "",
            "the kernels in {package} are of version 0.0.1, "
            f"but the package is of version {weighted_bce.__version__}",
        ),
    ],
)
def test_a_source_tree(
    clone: Path, monkeypatch: pytest.MonkeyPatch, loaded: object, file: str, expected: str
) -> None:
    """Building in place is what helps against all of these."""
    package = clone / "weighted_bce"
    (package / file).touch()
    monkeypatch.setitem(sys.modules, "weighted_bce._C", None)
    if loaded is not None:
        monkeypatch.setattr(_extension, "import_module", Mock(side_effect=[loaded]))
    assert missing() == (
        expected.format(clone=clone, package=package),
        f"To build the kernels with a C++ compiler, run: {in_place(clone)}",
    )


@pytest.mark.usefixtures("not_there")
def test_a_source_tree_that_hides_an_installed_copy(
    clone: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "weighted_bce").mkdir()
    assert "although" not in missing()[0]
    (site / "weighted_bce" / f"_C{EXTENSION_SUFFIXES[0]}").touch()
    why, remedy = missing()
    assert why.endswith(f"which has no kernels, although {site / 'weighted_bce'} has them")
    assert remedy.startswith("To build the kernels with")
    monkeypatch.chdir(clone)
    assert missing()[1] == (
        f"Import the package from another folder, or, to build the kernels here, run: "
        f"{in_place(clone)}"
    )


@pytest.mark.usefixtures("not_there")
def test_folders_that_cannot_be_entered(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that the system refuses to look at is no error of an import."""
    refused = f"/{'x' * 300}"  # too long a name; even root may not look at it
    with pytest.raises(OSError, match="too long"):
        Path(refused).is_file()
    monkeypatch.setattr(sys, "path", [refused, *sys.path])
    for text in (f'{{"url": "file://{refused}"}}', '{"url": 1}', "[]", "{"):
        tell_pips_facts(installed, text)
        why, remedy = missing()
        assert why == f"the copy in {installed} was installed without kernels"
        assert remedy.endswith(f"run in a clone of the repository: {again('.')}")


def test_what_pip_has_unpacked_will_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    source = Path(tempfile.gettempdir()) / "pip-req-build-1"
    command = _installation.build_from(source, editable=False)
    assert command == f" in a clone of the repository: {again('.')}"


@pytest.mark.usefixtures("not_there")
@pytest.mark.parametrize("source", ["clone", "sdist.tar.gz", "wheel.whl", "gone", ""])
def test_an_installed_copy(installed: Path, tmp_path: Path, source: str) -> None:
    """The source of the copy is installed again, unless it is gone or has no sources."""
    origin = tmp_path / source
    if source == "clone":
        (origin / "csrc").mkdir(parents=True)
        (origin / "setup.py").touch()
    elif source not in ("gone", ""):
        origin.touch()
    tell_pips_facts(installed, json.dumps({"url": origin.as_uri()}) if source else "")
    why, remedy = missing()
    assert why == f"the copy in {installed} was installed without kernels"
    if source in ("clone", "sdist.tar.gz"):
        assert remedy == f"To build the kernels with a C++ compiler, run: {again(origin)}"
    else:
        where = "run in a clone of the repository"
        assert remedy == f"To build the kernels with a C++ compiler, {where}: {again('.')}"


def test_a_torch_that_is_too_old(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build would not help."""
    monkeypatch.setattr(_extension, "import_module", Mock(side_effect=ImportError(SYMBOL)))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0a0+container"))
    assert missing()[1].endswith(in_place(clone))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cpu"))
    why, remedy = missing()
    assert why.endswith("they need torch 2.11 or newer, and this is 2.9.1+cpu")
    assert remedy == 'To install a newer torch, run: /env/bin/python -m pip install "torch>=2.11"'


def test_the_warning_is_of_the_line_that_imports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However it imports; neither the package nor the import system counts."""
    text = "from weighted_bce import _extension\n_extension._warn()\n"
    (tmp_path / "inner.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(weighted_bce, "__path__", [*weighted_bce.__path__, str(tmp_path)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from weighted_bce import inner  # type: ignore[attr-defined]

        importlib.reload(inner)
    del sys.modules["weighted_bce.inner"], weighted_bce.inner
    assert [(w.category, w.filename) for w in caught] == [(RuntimeWarning, __file__)] * 2
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert "import inner" in lines[caught[0].lineno - 1]
    assert "importlib.reload" in lines[caught[1].lineno - 1]


def test_errors_and_show_config_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_config, weighted_bce._kernels):
        monkeypatch.setattr(module, "extension", None)
        monkeypatch.setattr(module, "why_missing", "it is gone")
        monkeypatch.setattr(module, "remedy", "To build them, run: this")
    monkeypatch.setattr(weighted_bce._kernels, "on_cpu", None)
    assert "extension: none: it is gone\nremedy: To build them, run: this\n" in show_config()
    words = "has no kernel for this input: it is gone. To build them, run: this"
    with backend("fused"), pytest.raises(RuntimeError, match=words):
        weighted_bce.weighted_bce_with_logits(torch.zeros(2), torch.zeros(2))


def test_cuda_kernels(clone: Path) -> None:
    with_toolkit = _installation.how_to_build_cuda("12.8")
    build = in_place(clone).replace("REQUIRE_EXT", "CUDA")
    assert with_toolkit == f"To build them with the toolkit of CUDA 12, run: {build}"
    needed, last = build.split(" && ")
    nvcc = "WEIGHTED_BCE_BUILD=0 /env/bin/python -m pip install --no-build-isolation -e "
    assert _installation.how_to_build_cuda("13.2") == (
        f"To build them, run: {needed} && {nvcc}'{clone}[cuda]' && {last}"
    )


def test_what_a_build_needs_is_what_pyproject_says() -> None:
    root = Path(__file__).parent.parent
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    requires = re.search(r'\[build-system\]\nrequires = \[(.+), "torch>=([\d.]+)"\]', text)
    assert requires is not None
    assert sorted(requires[1].replace(",", "").replace('"', "").split()) == sorted(
        _installation.BUILD_NEEDS.replace('"', "").split()
    )
    assert requires[2] == ".".join(map(str, _extension.OLDEST_TORCH))
    assert f"nvidia-cuda-nvcc=={_installation.CUDA_OF_THE_EXTRA}." in text
