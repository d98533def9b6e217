"""The fused loss in eager mode: one pass computes the loss and its gradient.

The gradient written in the forward pass is already multiplied by the grad_output that backward is
expected to bring: 1 at first, then the one that it brought the last time. Backward compares the two
on the device, and computes the gradient again from the logits if they differ. So a result never
depends on what was expected.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from . import _transforms
from ._derivatives import differentiable_grad
from ._kernels import Kernels, recorded
from ._ops import ops
from ._options import NONE, SUM, Options, compute_dtype

graph_is_kept: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph

# The expected grad_output by kind of input, 0-d, on its device. The ops change the values; a CUDA
# graph may hold the tensors themselves, so none is ever dropped.
_expected: dict[Any, Tensor] = {}
_MOST_KINDS = 256


def expected_grad_output(input: Tensor, *more: Any) -> Tensor:
    """Returns the grad_output that losses of this kind of input are expected to receive."""
    key = (input.get_device(), input.dtype, input.shape[1:], *more)
    known = _expected.get(key)
    return known if known is not None else _new_expected(input, key)


def _new_expected(input: Tensor, key: Any) -> Tensor:
    if len(_expected) >= _MOST_KINDS:
        key = (input.get_device(), input.dtype)  # all others share one
    if key not in _expected:
        one = torch.ones((), dtype=compute_dtype(input.dtype), device=input.device)
        _expected.setdefault(key, one)  # another thread may have been faster
    return _expected[key]


def loss(
    input: Tensor, options: Options, kernels: Kernels | None, inplace_backward: bool
) -> Tensor:
    """Returns the loss after the reduction, by calling the kernels without the dispatcher."""
    assert kernels is not None
    kernels = recorded(kernels)
    if is_recorded(input):
        return _apply(input, options, kernels, inplace_backward)
    kernel = kernels.unreduced if options.reduction == NONE else kernels.loss
    return cast(Tensor, kernel(input, *options))


def is_recorded(tensor: Tensor) -> bool:
    """Tells whether autograd records operations on the tensor."""
    return (
        tensor.requires_grad and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    )


class FusedLoss(Function):
    """Computes the loss of `input` after the reduction and, in the same pass, its gradient."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, options: Options, kernels: Kernels, inplace_backward: bool
    ) -> Tensor:
        grad = ctx.used_grad_output = None
        if options.reduction == NONE:
            loss = kernels.unreduced(input, *options)
        elif inplace_backward:
            loss = kernels.loss(input, *options)
        else:
            expected = expected_grad_output(input)
            loss, grad, ctx.used_grad_output = kernels.loss_and_grad(expected, input, *options)
        options.save(ctx, input, grad)
        ctx.inplace_backward = inplace_backward
        return cast(Tensor, loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        # Compiled autograd traces this function.
        is_plain = not torch.compiler.is_compiling() and is_first_order(grad_output)
        input, grad, *_ = ctx.saved_tensors
        # A kept graph may need the same gradient again, so it is not given away.
        is_given_away = grad is not None and is_plain and not graph_is_kept()
        # On the CPU, comparing the numbers costs less than a call of the op.
        if (
            is_given_away
            and grad_output.is_cpu
            and grad_output.item() == ctx.used_grad_output.item()
        ):
            return grad, None, None, None
        options, _ = Options.saved(ctx)
        if is_given_away:
            expected = expected_grad_output(input)
            used = ctx.used_grad_output
            ops.update_grad_.default(grad_output, used, expected, grad, input, *options)
            result = grad
        elif is_plain and ctx.inplace_backward:
            result = _write_over(grad_output, input, options)
        else:
            result = differentiable_grad(grad_output, input, options)
        return result, None, None, None


def is_first_order(grad_output: Tensor) -> bool:
    """Tells whether a backward pass needs neither derivatives of the gradient nor many gradients at
    once."""
    if torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # it neither traces what follows nor has many gradients
        return True
    return not (_transforms.is_legacy_batched(grad_output) or _transforms.is_active())


def _write_over(grad_output: Tensor, input: Tensor, options: Options) -> Tensor:
    logits = input.detach()
    if _overlaps(logits):  # elements that share their memory cannot each hold a gradient
        return differentiable_grad(grad_output, logits, options)
    if options.reduction == NONE:
        options = options.undivided(SUM)
    ops.grad_.default(grad_output, logits, *options)
    increment_version(input)
    return logits


def _overlaps(tensor: Tensor) -> bool:
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


# Function.apply binds default arguments in Python first; this one starts in C++.
_apply: Callable[..., Tensor] = super(Function, FusedLoss).apply
