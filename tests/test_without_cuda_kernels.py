"""Where the CUDA kernels do not run on a GPU, one warning says why, and what to do."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import _kernels, backend

ARCHS = "sm_90, compute_90"


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU of compute capability 8.0 with a driver for CUDA 13, for which nothing was built.

    Returns the extension, which a test may change.
    """
    extension = SimpleNamespace(cuda_archs="", cuda_version="13.0", cuda_driver=lambda: 13000)
    monkeypatch.setattr(_kernels, "extension", extension)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for known in (_kernels._why_not_on_cuda, _kernels._warn_once):
        known.cache_clear()
    yield extension
    for known in (_kernels._why_not_on_cuda, _kernels._warn_once):
        known.cache_clear()


def logits(device: str = "cuda", index: int = 0) -> Any:
    """Returns what the choice of kernels asks of logits on a device."""
    return SimpleNamespace(
        is_cuda=device == "cuda",
        is_cpu=False,
        device=torch.device(device, index),
        layout=torch.strided,
        dim=lambda: 2,
        get_device=lambda: index,
    )


def said(input: Any = None) -> list[str]:
    """Returns the warnings of a choice of kernels for two calls of the loss, which finds none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert _kernels.kernels_for(input or logits()) is None
    assert all(each.category is RuntimeWarning for each in caught)
    return [str(each.message) for each in caught]


def test_built_without_them() -> None:
    """One warning for all GPUs."""
    (text,) = said()
    assert text.startswith("weighted_bce computes on this GPU without its kernels")
    assert "the extension was built without CUDA kernels. To build them, run" in text
    assert said(logits(index=1)) == []


def test_a_gpu_that_they_were_not_built_for(gpu: Any) -> None:
    gpu.cuda_archs = ARCHS
    (text,) = said()
    words = (
        f"built for {ARCHS}, and this GPU is of compute capability 8.0. Set TORCH_CUDA_ARCH_LIST"
    )
    assert f"{words}=8.0 in the environment. To build them, run" in text


def test_a_gpu_that_is_too_old(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.cuda_archs = ARCHS
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    (text,) = said()
    assert "8.0 or newer, got 7.5. To choose plain PyTorch for it, set WEIGHTED_BCE_BACKEND" in text


def test_an_old_driver(gpu: Any) -> None:
    gpu.cuda_archs, gpu.cuda_driver = ARCHS, lambda: 12040
    (text,) = said()
    assert "need a driver for CUDA 13 or newer, got one for CUDA 12. Install a newer" in text


def test_nothing_to_say(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference was chosen, the error says it, there are no kernels for such a device, the
    import has said it, or there are but fake tensors."""
    with backend("reference"):
        assert said() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with backend("fused"), pytest.raises(RuntimeError, match="built without CUDA kernels"):
            _kernels.kernels_for(logits())
    for device in ("mps", "xpu"):
        assert said(logits(device)) == []
    for owner, name, value in (
        (torch.version, "cuda", None),
        (_kernels, "extension", None),
        (torch.cuda, "is_initialized", lambda: False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert said() == []
    gpu.cuda_archs = "sm_80"
    _kernels._why_not_on_cuda.cache_clear()
    assert _kernels.kernels_for(logits()) is not None


def test_the_compiler_breaks_no_graph() -> None:
    def choose(x: Tensor) -> Tensor:
        _kernels.warn_on_cuda(max(0, x.get_device()))
        return x + 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="without its kernels") as caught:
        result = compiled(torch.zeros(3))
    assert torch.equal(result, torch.ones(3))
    assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.zeros(3))
