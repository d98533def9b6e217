"""The registered ops: their shapes for tracing, and their derivatives.

The kernels and schemas are in csrc/. `loss` and `unreduced` are differentiable in `input`, `grad`
in `grad_output` as well, so that torch.compile, torch.export and those who call
torch.ops.weighted_bce directly get gradients. `loss_and_grad` is not: it is the forward pass of
the eager path in autograd.py, and an autograd kernel in Python would double the cost of the call.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from . import _batching, _installation, reference
from ._extension import extension
from .reference import TENSORS, Options, compute_dtype

# The target dtypes that the kernels read themselves.
TARGET_DTYPES = frozenset(
    {
        torch.bool,
        *(torch.uint8, torch.int8, torch.uint16, torch.int16),
        *(torch.uint32, torch.int32, torch.uint64, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    }
)

# Of logits. The kernels take 40, of which levels of torch.vmap may add some.
MOST_DIMENSIONS = 32

REDUCTION = len(Options._fields) - TENSORS  # its place among the arguments that are no tensors

ops = torch.ops.weighted_bce


def refuse_gradients(ctx: Any, others: slice, function: str = "weighted_bce_with_logits") -> None:
    """Of these arguments, which that function gives."""
    if any(ctx.needs_input_grad[others]):
        raise NotImplementedError(
            "torch.ops.weighted_bce has no gradient with respect to target, weight or pos_weight; "
            f"weighted_bce.{function} has"
        )


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    refuse_gradients(ctx, slice(1, 1 + TENSORS))
    ctx.save_for_backward(*inputs[: 1 + TENSORS])
    ctx.rest = inputs[1 + TENSORS :]


def _gradient(*args: Any) -> Any:
    from . import transforms  # which is made of the ops

    return transforms.gradient(*args) if transforms.active() else ops.grad(*args)


def _loss_backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    gradient = _gradient(grad_output, *ctx.saved_tensors, *ctx.rest)
    return gradient, *(None,) * (len(ctx.needs_input_grad) - 1)


def _unreduced_backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    # The reduction, which is none, becomes the sum that has this gradient.
    before, after = ctx.rest[:REDUCTION], ctx.rest[REDUCTION + 1 :]
    gradient = _gradient(grad_output, *ctx.saved_tensors, *before, reference.SUM, *after)
    return gradient, *(None,) * (len(ctx.needs_input_grad) - 1)


def _save_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    refuse_gradients(ctx, slice(2, 2 + TENSORS))
    ctx.save_for_backward(*inputs[: 2 + TENSORS])
    ctx.rest = inputs[2 + TENSORS :]


def grad_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    grad_output, input, *tensors = ctx.saved_tensors
    options, reduction = reference.unpacked((*tensors, *ctx.rest))
    both = reference.grad_vjp(upstream, grad_output, input, options, reduction)
    return *both, *(None,) * (len(ctx.needs_input_grad) - 2)


def fake_loss(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty((), dtype=compute_dtype(input.dtype))


def _fake_loss_and_grad(expected: Tensor, input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_loss(input), torch.empty_like(input), fake_loss(input)


def _fake_loss_and_grad_in_place(expected: Tensor, input: Tensor, *_: Any) -> Tensor:
    return fake_loss(input)


def _fake_grad(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _fake_in_place(*_: Any) -> None:
    return None


def _fake_unreduced(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


_FAKES: dict[str, Callable[..., Any]] = {
    "loss": fake_loss,
    "loss_and_grad": _fake_loss_and_grad,
    "loss_and_grad_": _fake_loss_and_grad_in_place,
    "update_grad_": _fake_in_place,
    "grad": _fake_grad,
    "grad_": _fake_in_place,
    "unreduced": _fake_unreduced,
    "empty_grad": torch.empty_like,
}


def _register() -> None:
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"weighted_bce::{name}", fake)
    for name, backward, save in (
        ("loss", _loss_backward, _save_loss),
        ("unreduced", _unreduced_backward, _save_loss),
        ("grad", grad_backward, _save_grad),
    ):
        torch.library.register_autograd(f"weighted_bce::{name}", backward, setup_context=save)
    for name, rule in _batching.RULES.items():
        torch.library.register_vmap(f"weighted_bce::{name}", rule)  # type: ignore[arg-type]


if extension is not None:
    _register()


class Kernels:
    """The ops without the dispatcher's way to them, which costs as much as a small loss.

    For those who have seen that the inputs are plain tensors of one device, that no mode, transform
    or compiler needs to see the op, and that no gradient is recorded.
    """

    def __init__(self, key: str) -> None:
        self._keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = partial(getattr(ops, name).default._handle.redispatch_boxed, self._keys)
        setattr(self, name, kernel)
        return kernel


on_cpu = Kernels("CPU") if extension is not None else None
_on_cuda = Kernels("CUDA")


def why_not_on_cuda(device: int) -> str | None:
    """Why the kernels do not run on this GPU; None where they do."""
    return _why_not_on_cuda(device)


why_not_on_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _why_not_on_cuda(device: int) -> str | None:
    if torch.version.cuda is None:
        return "the kernels are for CUDA, which this torch does not use"
    if extension is None or not extension.cuda_archs:
        return f"none is built for CUDA. {_installation.how_to_build_cuda(torch.version.cuda)}"
    needed = int(extension.cuda_version.split(".")[0])
    driver: int = extension.cuda_driver() // 1000
    if driver < needed:
        return f"the kernels need a driver for CUDA {needed}, got one for {driver}"
    capability = torch.cuda.get_device_capability(device)
    if not runs_on(extension.cuda_archs, capability):
        return f"the kernels are for {extension.cuda_archs}, got sm_{capability[0]}{capability[1]}"
    return None


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs one of "sm_80, compute_120": machine code of its own generation and not of
    a later member, or PTX that is not newer than itself."""
    for name in architectures.split(", "):
        kind, number = name.split("_")
        major, minor = int(number[:-1]), int(number[-1])
        if capability >= (major, minor) and (kind == "compute" or capability[0] == major):
            return True
    return False


def on_cuda(input: Tensor) -> Kernels | None:
    """The kernels for the GPU of these logits; None where they do not run."""
    return _on_cuda if input.is_cuda and why_not_on_cuda(input.get_device()) is None else None
