"""The build of the CUDA part: which nvcc is taken, what it compiles, and what is said without."""

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from weighted_bce import _config, show_config

from .cuda_build import build, extension, fake_toolkit, home

__all__ = ["build", "home"]  # fixtures


def test_nvcc_by_cuda_home_then_on_path_then_of_pip(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    last = fake_toolkit(tmp_path / "usual", "13.1", "lib64")
    assert build.find_toolkit(None).nvcc == last
    fake_toolkit(tmp_path / "site-packages" / "nvidia" / "cu12", "12.9")
    of_pip = fake_toolkit(tmp_path / "site-packages" / "nvidia" / "cu13")
    assert build.find_toolkit(None) == build.Toolkit(
        of_pip,
        "13.0",
        tmp_path / "site-packages" / "nvidia" / "cu13" / "lib" / "libcudart_static.a",
        ("sm_80", "sm_90", "sm_100", "sm_120", "compute_120"),
    )
    on_path = fake_toolkit(tmp_path / "system", "12.8", "lib64")
    (tmp_path / "path").symlink_to(tmp_path / "system" / "bin")
    toolkit = build.find_toolkit(None)
    assert (toolkit.nvcc, toolkit.version) == (tmp_path / "path" / on_path.name, "12.8")
    assert toolkit.cudart == tmp_path / "system" / "lib64" / "libcudart_static.a"
    at_home = fake_toolkit(tmp_path / "home", "13.2")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build.find_toolkit(None).nvcc == at_home


def test_a_toolkit_of_the_major_version_of_torch_is_taken(
    build: ModuleType, tmp_path: Path
) -> None:
    fake_toolkit(tmp_path / "site-packages" / "nvidia" / "cu13")
    old = fake_toolkit(tmp_path / "system", "12.8")
    (tmp_path / "path").symlink_to(old.parent)
    assert build.find_toolkit("13.2").version == "13.0"
    assert build.find_toolkit("12.6").version == "12.8"
    with pytest.raises(build.Unavailable) as error:
        build.find_toolkit("14.0")
    assert "path/nvcc is of CUDA 12.8, but torch is built for CUDA 14.0; " in str(error.value)
    assert str(error.value).endswith("install the toolkit of CUDA 14 and build again")


def test_reasons_why_a_toolkit_does_not_fit(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(build.Unavailable, match="no nvcc by CUDA_HOME, on PATH, in"):
        build.find_toolkit(None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    with pytest.raises(build.Unavailable, match="home/bin/nvcc does not run: No such file"):
        build.find_toolkit(None)
    nvcc = fake_toolkit(tmp_path / "home", cudart=None)
    with pytest.raises(build.Unavailable, match=r"home/bin/nvcc has no libcudart_static\.a"):
        build.find_toolkit(None)
    nvcc.chmod(0o644)
    with pytest.raises(build.Unavailable, match="does not run: Permission denied"):
        build.find_toolkit(None)
    nvcc.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n", encoding="utf-8")
    nvcc.chmod(0o755)
    with pytest.raises(build.Unavailable, match="does not run: it is broken"):
        build.find_toolkit(None)
    nvcc.write_text("#!/bin/sh\necho hello\n", encoding="utf-8")
    with pytest.raises(build.Unavailable, match="names no release"):
        build.find_toolkit(None)


@pytest.mark.parametrize("value", ["2", "yes", "ON", "01"])
def test_the_variable_is_0_or_1(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WEIGHTED_BCE_CUDA", value)
    with pytest.raises(SystemExit, match=f"WEIGHTED_BCE_CUDA must be 0, 1 or unset, got '{value}'"):
        build.wanted()


def test_no_toolkit_is_one_line_or_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = vars(extension())
    cpu = extension()
    monkeypatch.setenv("WEIGHTED_BCE_REQUIRE_EXT", "1")  # asks for a working build, not for CUDA
    build.extend(cpu, None)
    assert vars(cpu) == plain
    said = capsys.readouterr().err
    assert said.startswith("weighted_bce: the CUDA kernels were not built: no nvcc by CUDA_HOME")
    assert said.count("\n") == 1
    assert (
        "install the toolkit of CUDA 13, or pip's as docs/building.md says, and build again" in said
    )
    monkeypatch.setenv("WEIGHTED_BCE_CUDA", "1")
    with pytest.raises(SystemExit, match="the CUDA kernels were not built: no nvcc"):
        build.extend(cpu, None)
    monkeypatch.setenv("WEIGHTED_BCE_CUDA", "0")
    build.extend(cpu, None)
    assert vars(cpu) == plain
    assert capsys.readouterr().err == ""


def test_the_cuda_part_joins_the_extension(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    both = extension()
    build.extend(both, "13.2")
    assert both.sources == ["csrc/ops.cpp", "csrc/cuda/ops.cpp"]
    assert [Path(path).name for path in both.extra_objects] == [
        *("kernel.o", "other.o", "libcudart_static.a")
    ]
    assert dict(both.define_macros) == {
        "KEPT": "1",
        "WEIGHTED_BCE_WITH_CUDA": "1",
        "WEIGHTED_BCE_CUDA_ARCHS": '"sm_80, sm_90, compute_90"',
        "WEIGHTED_BCE_CUDA_VERSION": '"13.0"',
    }


def test_a_kernel_that_does_not_compile(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (build.CSRC / "cuda" / "broken.cu").touch()
    words = r"not built: nvcc fails on csrc/cuda/broken\.cu: broken\.cu\(1\): error: no"
    cpu = extension()
    build.extend(cpu, None)
    assert vars(cpu) == vars(extension())
    assert "error: no" in capsys.readouterr().err
    monkeypatch.setenv("WEIGHTED_BCE_REQUIRE_EXT", "1")
    with pytest.raises(SystemExit, match=f"{words}; WEIGHTED_BCE_CUDA=0 builds without them"):
        build.extend(cpu, None)
    monkeypatch.delenv("WEIGHTED_BCE_REQUIRE_EXT")
    monkeypatch.setenv("WEIGHTED_BCE_CUDA", "1")
    with pytest.raises(SystemExit, match=words):
        build.extend(cpu, None)


def test_only_what_changed_is_compiled_again(build: ModuleType, home: Path, tmp_path: Path) -> None:
    nvcc, log, cuda = home / "bin" / "nvcc", home / "compiled", build.CSRC / "cuda"
    toolkit = build.Toolkit(nvcc, "13.0", nvcc, ("sm_80",))
    for path in cuda.iterdir():
        os.utime(path, (1, 1))

    def compiled(toolkit: tuple = toolkit) -> list[str]:
        log.write_text("", encoding="utf-8")
        build.compile_all(toolkit)
        names = log.read_text(encoding="utf-8").splitlines()
        return sorted(Path(name).name.split(".")[0] for name in names)

    assert compiled() == ["kernel", "other"]
    assert compiled() == []
    assert compiled(toolkit._replace(architectures=("sm_90",))) == ["kernel", "other"]
    assert compiled(toolkit._replace(version="13.2")) == ["kernel", "other"]
    assert compiled() == []
    later = max(path.stat().st_mtime for path in (tmp_path / "build").rglob("*.o")) + 60
    os.utime(cuda / "other.cu", (later, later))
    assert compiled() == ["other"]
    os.utime(cuda / "kernel.h", (later, later))
    assert compiled() == ["kernel", "other"]


@pytest.mark.parametrize(
    ("jobs", "processors", "files", "expected"),
    [
        *(("", 2, 5, (2, 1)), ("", 16, 5, (2, 5)), ("", 1, 5, (1, 1)), ("", 16, 0, (1, 5))),
        *(("1", 16, 5, (1, 1)), ("8", 2, 5, (5, 1)), ("8", 2, 2, (2, 4)), ("all", 16, 5, (2, 5))),
    ],
)
def test_share_of_work(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    jobs: str,
    processors: int,
    files: int,
    expected: tuple[int, int],
) -> None:
    """The number of targets is 5."""
    monkeypatch.setenv("MAX_JOBS", jobs)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert build.share_of_work(files, 5) == expected


ARRAY = """
__global__ void kernel(float* y, int n) {
  float a[64];
  for (int i = 0; i < 64; ++i) a[i] = y[i];
  for (int i = 0; i < n; ++i) a[i * 7 % 64] += 1;
  y[0] = a[n];
}
"""


def test_a_kernel_in_local_memory_does_not_build(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    try:
        toolkit = build.find_toolkit(None)._replace(architectures=("sm_80",))
    except build.Unavailable as error:
        pytest.skip(str(error))
    source, command = tmp_path / "array.cu", [str(toolkit.nvcc), *build.FLAGS, "-arch=sm_80"]
    source.write_text(ARRAY, encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    failure = build.compile_one(command, source, tmp_path / "array.o")
    assert failure.startswith("nvcc fails on array.cu: ptxas error")
    assert "Local memory used for function" in failure
    assert not (tmp_path / "array.o").exists()


def test_another_nvcc_may_warn(build: ModuleType) -> None:
    """The one that CI uses may not: so nothing gets slower unseen."""
    strict, other = build.flags_for("13.0"), build.flags_for("13.2")
    assert strict == build.FLAGS
    assert [flag for flag in strict if "-Werror" in flag] != []
    assert [flag for flag in other if "error" in flag or "warnings" in flag] == []
    assert set(other) - set(strict) == {"-v,-warn-spills,-warn-lmem-usage"}
    assert {"-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-Xcompiler"} <= set(other)


def test_show_config_tells_what_was_built_and_which_gpus_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = SimpleNamespace(**vars(_config.extension)) if _config.extension else None
    if built:
        built.cuda_archs, built.cuda_version = "sm_80, compute_80", "13.0"
        monkeypatch.setattr(_config, "extension", built)
        assert "CUDA kernels: sm_80, compute_80 (nvcc 13.0)\n" in show_config()
        built.cuda_archs = built.cuda_version = ""
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        assert (
            "CUDA kernels: none: the extension was built without them. To build them, run: "
            in show_config()
        )
        monkeypatch.setattr(torch.version, "cuda", None)
        assert "CUDA kernels: none: this torch does not use CUDA" in show_config()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    both = "GPU: card 0 (compute capability 9.0), card 1 (compute capability 9.1)\n"
    assert both in show_config()
