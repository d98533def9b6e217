"""The kernels of each device, and which logits they take."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from . import _config, _installation
from ._extension import extension, remedy, why_missing
from ._warning import warn

# The largest number of dimensions of logits. The kernels take 40, since torch.vmap may add some.
MOST_DIMENSIONS = 32
OLDEST_CAPABILITY = (8, 0)

ops = torch.ops.weighted_bce


class Kernels:
    """Calls the ops without the dispatcher, which costs as much as a small loss.

    This is correct if the inputs are plain tensors on one device, no mode, transform or compiler
    needs to see the op, and no gradient is recorded.
    """

    def __init__(self, key: str) -> None:
        self._keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = partial(getattr(ops, name).default._handle.redispatch_boxed, self._keys)
        setattr(self, name, kernel)
        return kernel


class _RecordedKernels(Kernels):
    """Calls the ops by the dispatcher, which profilers watch."""

    def __init__(self) -> None:
        pass  # the dispatcher finds the device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(ops, name).default

        def call(*arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*arguments)

        return call


on_cpu = Kernels("CPU") if extension is not None else None
_on_cuda = Kernels("CUDA")
_recorded = _RecordedKernels()


def recorded(kernels: Kernels) -> Kernels:
    """Returns these kernels, or, while a profiler runs in any thread, some whose calls it records.

    The compiler must not trace this, since it would compile again for each profiler.
    """
    return _recorded if profiler._is_profiler_enabled else kernels


def why_not_on_cuda(device: int) -> str | None:
    """Returns why the kernels do not run on this GPU; None if they do."""
    return _why_not_on_cuda(device)


why_not_on_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _why_not_on_cuda(device: int) -> str | None:
    if torch.version.cuda is None:
        return "the GPU kernels need CUDA, which this torch does not use"
    how = _installation.how_to_build_cuda(torch.version.cuda)
    if extension is None or not extension.cuda_archs:
        return f"the extension was built without CUDA kernels. {how}"
    needed = int(extension.cuda_version.split(".")[0])
    driver: int = extension.cuda_driver() // 1000
    if driver < needed:
        return (
            f"the kernels need a driver for CUDA {needed} or newer, got one for CUDA {driver}. "
            f"Install a newer driver, or build the kernels with the toolkit of CUDA {driver}"
        )
    capability = torch.cuda.get_device_capability(device)
    if not runs_on(extension.cuda_archs, capability):
        number = f"{capability[0]}.{capability[1]}"
        if capability < OLDEST_CAPABILITY:
            oldest = ".".join(map(str, OLDEST_CAPABILITY))
            return (
                f"the kernels need a GPU of compute capability {oldest} or newer, got {number}. To "
                "choose plain PyTorch for it, set WEIGHTED_BCE_BACKEND=reference in the environment"
            )
        return (
            f"the CUDA kernels were built for {extension.cuda_archs}, and this GPU is of compute "
            f"capability {number}. Set TORCH_CUDA_ARCH_LIST={number} in the environment. {how}"
        )
    return None


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Tells whether a GPU runs one of "sm_80, compute_120".

    It runs machine code of its own generation that is not of a later member, and PTX that is not
    newer than itself.
    """
    for name in architectures.split(", "):
        kind, number = name.split("_")
        major, minor = int(number[:-1]), int(number[-1])
        if capability >= (major, minor) and (kind == "compute" or capability[0] == major):
            return True
    return False


def on_cuda(input: Tensor) -> Kernels | None:
    """Returns the kernels for the GPU of these logits; None if they do not run there."""
    return _on_cuda if input.is_cuda and why_not_on_cuda(input.get_device()) is None else None


def warn_on_cuda(device: int) -> None:
    """Warns, once for each reason, that the reference computes on a GPU that kernels could serve.

    Nothing is said where import has warned already, of other devices and of AMD's GPUs, for which
    there are no kernels, and of fake tensors where nothing uses a GPU.
    """
    uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if extension is None or torch.version.cuda is None or not uses_cuda:
        return
    reason = why_not_on_cuda(device)
    if reason is not None:
        _warn_once(reason)


warn_on_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _warn_once(reason: str) -> None:
    message = "weighted_bce computes on this GPU without its kernels, in plain PyTorch, which is "
    warn(f"{message}slower: {reason}", RuntimeWarning)


def kernels_for(input: Tensor) -> Kernels | None:
    """Returns the kernels that take these logits; None if the reference must compute.

    Raises:
        RuntimeError: under ``backend("fused")``, where no kernel takes them.
    """
    chosen = _config.current_backend
    if chosen == "reference":
        return None
    if input.layout is torch.strided and input.dim() <= MOST_DIMENSIONS:
        kernels = on_cpu if input.is_cpu else on_cuda(input)
        if kernels is not None:
            return kernels
    if chosen == "fused":
        raise RuntimeError(f"backend 'fused' has no kernel for this input: {_why_none(input)}")
    if input.is_cuda:
        warn_on_cuda(input.get_device())
    return None


def _why_none(input: Tensor) -> str:
    if extension is None:
        return f"{why_missing}. {remedy}"
    reason = why_not_on_cuda(input.get_device()) if input.is_cuda else None
    return reason or f"got {input.layout} on {input.device.type} with {input.dim()} dimensions"
