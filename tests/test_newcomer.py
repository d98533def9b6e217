"""README, docs/building.md and the warning lead to kernels, in the clone and elsewhere."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from weighted_bce._extension import extension

from .newcomer import ROOT, Newcomer, commands, commands_in

pytestmark = [
    # To import or find it would make setuptools leave distutils to the standard library.
    pytest.mark.skipif(not list(metadata.distributions(name="pip")), reason="no pip"),
    pytest.mark.skipif(extension is None, reason="there is no library to copy"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone"),
]
# Fails where no kernels are used, and where anything warns.
USES_KERNELS = """python -W error -c '
import torch, weighted_bce
with weighted_bce.backend("fused"):
    weighted_bce.weighted_bce_with_logits(torch.zeros(2, 3), torch.ones(2, 3))
print(weighted_bce.__file__)
print(weighted_bce.show_config())
'"""
TINY = "--shapes 8x50 --passes step --rounds 1 --seconds 0.1 --against bce"


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


def of_readme() -> list[str]:
    """The commands that README shows first: two that install, and one that shows the result."""
    return commands_in((ROOT / "README.md").read_text(encoding="utf-8"))[:3]


def test_the_pages_have_the_commands() -> None:
    """The commands that the tests below run exist, and install the clone as it lies there."""
    needed, build = commands("Install")
    assert build == "pip install --no-build-isolation -e ."
    assert of_readme()[:2] == [needed.replace("install", 'install "torch>=2.11"'), build]
    assert commands("CUDA")[1] == f"WEIGHTED_BCE_CUDA=1 {build}"
    assert commands("Wheels") == ["make wheel", "pip install dist/*.whl"]


def test_the_command_of_the_warning_gives_the_kernels(newcomer: Newcomer, tmp_path: Path) -> None:
    """The warning alone leads from a clone without kernels to kernels in it and elsewhere."""
    newcomer.with_ready_kernels()
    (newcomer.clone / "user.py").write_text("import os\n\nimport weighted_bce\n", encoding="utf-8")
    ran = newcomer.run("python user.py")
    assert ran.returncode == 0, ran.stderr
    where, said = ran.stderr.splitlines()[0].split(" RuntimeWarning: ")
    assert where == f"{newcomer.clone}/user.py:3:"
    assert f"is imported from the source tree {newcomer.clone}, which has no kernels" in said
    newcomer.succeed(said.split(", run: ")[1])
    for folder in (newcomer.clone, tmp_path):
        printed = newcomer.succeed(USES_KERNELS, folder)
        assert printed.startswith(f"{newcomer.clone}/weighted_bce/__init__.py\n")
        assert "none" not in printed.partition("CUDA kernels")[0]


@pytest.mark.exhaustive
def test_readme_from_a_clone_to_figures(newcomer: Newcomer, tmp_path: Path) -> None:
    """README's own commands, with the real compiler; then what it says can be run."""
    newcomer.variables["WEIGHTED_BCE_CUDA"] = "0"  # the next test has the CUDA kernels
    _is_refused(newcomer.run("python -m bench --quick"), newcomer)
    *_, shown = map(newcomer.succeed, of_readme())
    assert "extension: none" not in shown
    for folder in (newcomer.clone, tmp_path):
        newcomer.succeed(USES_KERNELS, folder)
    newcomer.succeed("python -m bench --help")
    printed = newcomer.succeed(f"python -m bench {TINY} --out {tmp_path / 'figures'}")
    assert "Time of weighted_bce" in printed
    made_up = "--labels 50 --rows 200 --steps 2"
    assert "precision" in newcomer.succeed(f"python -m examples.extreme_labels {made_up}")


@pytest.mark.exhaustive
def test_readme_with_cuda(newcomer: Newcomer) -> None:
    packages, build = commands("CUDA")[:2]
    newcomer.variables["TORCH_CUDA_ARCH_LIST"] = "9.0"  # one GPU, to save time
    ran = newcomer.run(packages)
    if ran.returncode != 0:
        pytest.skip("nvcc is not of pip in the environment of the tests")
    newcomer.succeed(build)
    assert "CUDA kernels: sm_90 (nvcc" in newcomer.succeed(USES_KERNELS)


@pytest.mark.exhaustive
def test_a_plain_install_gives_the_clone_its_kernels_too(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    newcomer.with_ready_kernels()
    *_, build = commands("Install")
    assert build.endswith("-e .")
    newcomer.succeed(build.removesuffix("-e .") + ".")
    in_clone, elsewhere = (newcomer.succeed(USES_KERNELS, at) for at in (newcomer.clone, tmp_path))
    assert in_clone.startswith(str(newcomer.clone))
    assert elsewhere.startswith(str(newcomer.environment))
    # Another clone has none; the message names the copy that has.
    library = next((newcomer.clone / "weighted_bce").glob("_C.*.so"))
    library.unlink()
    ran = newcomer.run("python -c 'import weighted_bce'")
    installed = next(newcomer.environment.glob("lib/python*/site-packages")) / "weighted_bce"
    assert (
        f"the source tree {newcomer.clone}, which has no kernels, although {installed}"
        in ran.stderr
    )
    assert (
        "Import the package from another folder, or, to build the kernels here, run: " in ran.stderr
    )
    # Installed without kernels, it tells where it was installed from.
    newcomer.succeed(f"WEIGHTED_BCE_BUILD=0 {build.removesuffix('-e .')} .")
    ran = newcomer.run("python -c 'import weighted_bce'", tmp_path)
    assert f"the copy in {installed} was installed without kernels" in ran.stderr
    newcomer.succeed(ran.stderr.splitlines()[0].split(", run: ")[1], tmp_path)
    assert newcomer.succeed(USES_KERNELS, tmp_path).startswith(str(newcomer.environment))


def _is_refused(ran: subprocess.CompletedProcess[str], newcomer: Newcomer) -> None:
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "--reference" in ran.stderr
    assert ran.stderr.endswith(f"--no-build-isolation -e {newcomer.clone}\n")
