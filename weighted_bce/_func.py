"""The fused ops under torch.func and forward-mode AD: derivatives of every kind and order.

torch.library knows no forward-mode derivatives, and its backward does not work under torch.func; an
autograd.Function made like these has both. Under torch.vmap the ops follow the rules of _batching.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _reference
from ._ops import grad_backward, ops
from ._options import NONE, SUM, TENSORS, Options, compute_dtype, unpacked

_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_functorch: Any = torch._C._functorch
_kinds: Any = _functorch.TransformType


def active() -> bool:
    """Whether code runs under a transform of torch.func or a level of forward-mode AD."""
    return _transforms_active() or forward_ad._current_level >= 0


def lack(others: Iterable[Tensor | None]) -> bool:
    """Whether something is wanted that the functions here do not give: a derivative with respect to
    another tensor than the logits, or a transform that they do not bear."""
    return _unbearable() or any(map(_differentiated, others))


def _levels() -> list[Any]:
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


def _unbearable() -> bool:
    """In a jvp within a jvp, torch takes what a Function's jvp computes for a constant (seen in
    2.11 to 2.13), and it has no rule to functionalize a Function."""
    levels = _levels()
    return _kinds.Functionalize in levels or levels.count(_kinds.Jvp) > 1


def _differentiated(tensor: Tensor | None) -> bool:
    if tensor is None or not tensor.is_floating_point():
        return False
    while _functorch.is_functorch_wrapped_tensor(tensor):
        # Whether a jvp has given it a tangent cannot be seen from other levels.
        if tensor.requires_grad or (
            _functorch.is_gradtrackingtensor(tensor) and _kinds.Jvp in _levels()
        ):
            return True
        tensor = cast(Tensor, _functorch.get_unwrapped(tensor))
    dual: Any = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return tensor.requires_grad or dual.tangent is not None


def _save(tensors: int, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:tensors])
    ctx.save_for_forward(*inputs[:tensors])
    ctx.rest = inputs[tensors:]


class _Loss(Function):
    """The op `loss`, with its arguments."""

    generate_vmap_rule = True
    setup_context = staticmethod(partial(_save, 1 + TENSORS))

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return cast(Tensor, ops.loss.default(*args))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        own = gradient(grad_output, *ctx.saved_tensors, *ctx.rest)
        return own, *(None,) * (len(ctx.needs_input_grad) - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        input, *tensors = ctx.saved_tensors
        dtype = compute_dtype(input.dtype)  # products are not rounded before they are added
        return gradient(tangent.to(dtype), input.to(dtype), *tensors, *ctx.rest).sum()


class _Unreduced(Function):
    """The op `unreduced`, likewise."""

    generate_vmap_rule = True
    setup_context = staticmethod(partial(_save, 1 + TENSORS))

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return cast(Tensor, ops.unreduced.default(*args))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        own = gradient(grad_output, *ctx.saved_tensors, *ctx.rest, SUM)
        return own, *(None,) * (len(ctx.needs_input_grad) - 1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return gradient(tangent, *ctx.saved_tensors, *ctx.rest, SUM)


class _Gradient(Function):
    """The op `grad`. Its derivatives are plain torch, and so are all that follow."""

    generate_vmap_rule = True
    setup_context = staticmethod(partial(_save, 2 + TENSORS))
    backward = staticmethod(grad_backward)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return cast(Tensor, ops.grad.default(*args))

    @staticmethod
    def jvp(ctx: Any, to_output: Tensor, to_input: Tensor, *_: Any) -> Tensor:
        grad_output, input, *tensors = ctx.saved_tensors
        options, reduction = unpacked((*tensors, *ctx.rest))
        return _reference.grad_jvp((to_output, to_input), grad_output, input, options, reduction)


def loss(input: Tensor, options: Options, reduction: int) -> Tensor:
    """The loss after a reduction, of which only the logits are differentiated."""
    if reduction == NONE:
        return _applied(_Unreduced, input, *options)
    return _applied(_Loss, input, *options, reduction)


def gradient(grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
    """The gradient with respect to `input`, which may itself be differentiated."""
    options, reduction = unpacked(rest)
    # What torch.autograd maps over many vectors with has no rules for ops like these.
    mapped = any(map(_functorch.is_legacy_batchedtensor, (grad_output, input)))
    if mapped or _unbearable():
        return _reference.grad(grad_output, input, options, reduction)
    return _applied(_Gradient, grad_output, input, *rest)


def _applied(function: type[Function], *args: Any) -> Tensor:
    apply: Callable[..., Tensor] = function.apply
    return apply(*args)
