"""tools/cuda_build.py and toolkits that only say what they are, for the tests of the CUDA part."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from setuptools import Extension

ROOT = Path(__file__).parent.parent
FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\nsm_120\\n' ;;
  --dryrun*) echo '#$ TOP={home}/bin/..' >&2 ;;
  *) case "$*" in *broken.cu*) echo "broken.cu(1): error: no"; exit 2 ;; esac
     while [ "$1" != -o ]; do shift; done; echo object > "$2"; echo "$2" >> {home}/compiled ;;
esac
"""


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """tools/cuda_build.py on a machine without any toolkit and without variables."""
    spec = spec_from_file_location("cuda_build", ROOT / "tools" / "cuda_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = ("WEIGHTED_BCE_CUDA", "WEIGHTED_BCE_REQUIRE_EXT")
    for variable in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", *ours):
        monkeypatch.delenv(variable, raising=False)
    folders = os.environ["PATH"].split(os.pathsep)
    without = [folder for folder in folders if not Path(folder, "nvcc").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "path"), *without]))
    monkeypatch.setattr(module, "site_folders", lambda: [tmp_path / "site-packages"])
    monkeypatch.setattr(module, "USUAL", tmp_path / "usual" / "bin" / "nvcc")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "CSRC", tmp_path / "csrc")
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    for name in ("kernel.cu", "other.cu", "kernel.h", "ops.cpp"):
        (tmp_path / "csrc" / "cuda" / name).touch()
    return module


def fake_toolkit(home: Path, version: str = "13.0", cudart: str | None = "lib") -> Path:
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC.format(version=version, home=home), encoding="utf-8")
    nvcc.chmod(0o755)
    if cudart:
        (home / cudart).mkdir()
        (home / cudart / "libcudart_static.a").touch()
    return nvcc


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The toolkit of CUDA_HOME."""
    fake_toolkit(tmp_path / "home")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def extension() -> Extension:
    return Extension("weighted_bce._C", ["csrc/ops.cpp"], define_macros=[("KEPT", "1")])
