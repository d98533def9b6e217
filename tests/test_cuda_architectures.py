"""The GPUs to build for: what is taken of TORCH_CUDA_ARCH_LIST, and what is said of the rest."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils.cpp_extension import _get_cuda_arch_flags

from .cuda_build import build, extension, fake_toolkit, home

__all__ = ["build", "home"]  # fixtures
KNOWN = ["75", "80", "86", "90", "100", "120"]


@pytest.mark.parametrize(
    ("variable", "expected", "left_out"),
    [
        ("", "sm_80 sm_90 sm_100 sm_120 compute_120", ""),
        ("native", "sm_80 sm_90 sm_100 sm_120 compute_120", ""),
        ("Common", "sm_80 sm_90 sm_100 sm_120 compute_120", ""),
        ("8.0;9.0+PTX", "sm_80 sm_90 compute_90", ""),
        ("8.0 9.0", "sm_80 sm_90", ""),
        ("8.0,8.6", "sm_80 sm_86", ""),
        (" 12.0+PTX; 8.6;8.6 ", "sm_120 sm_86 compute_120", ""),
        ("8.0+PTX;9.0", "sm_80 sm_90 compute_80", ""),
        ("Ampere", "sm_80 sm_86 compute_86", ""),
        ("Hopper;12.0", "sm_90 sm_120 compute_90", ""),
        ("7.5 8.0 9.0a", "sm_80 sm_90", "7.5 left out (the kernels need 8.0 or newer)"),
        ("8.0;10.1", "sm_80", "10.1 left out (this nvcc does not know it)"),
        (
            "Turing 6.1 sm_80 ? 9.0 15.0",
            "sm_90",
            "7.5+PTX, 6.1 left out (the kernels need 8.0 or newer), "
            'sm_80, ? left out (not like "8.0;9.0+PTX"), '
            "15.0 left out (this nvcc does not know it)",
        ),
    ],
)
def test_architectures(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str, expected: str, left_out: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", variable)
    assert build.architectures(KNOWN) == (tuple(expected.split()), left_out)


def test_names_of_architectures_are_torchs(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, and what torch makes of each."""
    body = inspect.getsource(_get_cuda_arch_flags)
    names = set(re.findall(r"\('([A-Z][a-z]+(?:\+[A-Z][a-z]+)?)', '", body))
    assert names >= {"Ampere", "Blackwell+Tegra", "Hopper", "Turing"}
    monkeypatch.setattr(build, "OLDEST", 0)
    for name in names:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", name)
        torchs = {flag.split(",code=")[1] for flag in _get_cuda_arch_flags()}
        targets, left_out = build.architectures([str(number) for number in range(150)])
        assert left_out == ""
        assert torchs <= set(targets), name  # an older torch may know fewer of a name


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("6.1;7.5", "6.1, 7.5 left out (the kernels need 8.0 or newer), nothing is left"),
        ("15.0", "15.0 left out (this nvcc does not know it), nothing is left"),
        ("sm_80", 'sm_80 left out (not like "8.0;9.0+PTX"), nothing is left'),
        ("Turing", "7.5+PTX left out (the kernels need 8.0 or newer), nothing is left"),
    ],
)
def test_where_nothing_is_left_the_cpu_kernels_are_built(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    words: str,
) -> None:
    """One line says why, and what to set; where the CUDA kernels are asked for it is an error."""
    (tmp_path / "path").symlink_to(fake_toolkit(tmp_path / "home").parent)
    fake_toolkit(tmp_path / "site-packages" / "nvidia" / "cu13")  # of two it is said once
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", variable)
    remedy = 'unset TORCH_CUDA_ARCH_LIST, or set it like "8.0;9.0+PTX", and build again'
    line = f"the CUDA kernels were not built: TORCH_CUDA_ARCH_LIST: {words}; to get them, {remedy}"
    cpu = extension()
    build.extend(cpu, "13.0")
    assert vars(cpu) == vars(extension())
    assert capsys.readouterr().err == f"weighted_bce: {line}\n"
    monkeypatch.setenv("WEIGHTED_BCE_CUDA", "1")
    with pytest.raises(SystemExit) as error:
        build.extend(cpu, "13.0")
    assert str(error.value) == f"weighted_bce: {line}"


@pytest.mark.parametrize("asked_for", ["", "1"])
def test_what_is_left_out_is_one_line(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    asked_for: str,
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;8.0;10.1")
    monkeypatch.setenv("WEIGHTED_BCE_CUDA", asked_for)
    both = extension()
    build.extend(both, "13.0")
    assert dict(both.define_macros)["WEIGHTED_BCE_CUDA_ARCHS"] == '"sm_80"'
    lines = [line for line in capsys.readouterr().err.splitlines() if "nvcc csrc" not in line]
    assert lines == [
        "weighted_bce: TORCH_CUDA_ARCH_LIST: 7.5 left out (the kernels need 8.0 or newer), "
        "10.1 left out (this nvcc does not know it)"
    ]


def test_an_old_nvcc_leaves_newer_gpus_to_its_newest_ptx(build: ModuleType) -> None:
    assert build.architectures(["75", "80", "90"]) == (("sm_80", "sm_90", "compute_90"), "")
    with pytest.raises(build.Unavailable, match="too old"):
        build.architectures(["60", "70"])
