"""The fused loss in eager mode: one pass that yields the loss and its gradient.

The gradient written in the forward pass is already multiplied by the upstream gradient that
backward is expected to bring: 1 at first, then what it brought the last time. Backward compares, on
the device, and recomputes from the logits where the expectation was wrong, so a result never
depends on it.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from . import _func
from ._kernels import Kernels
from ._ops import ops
from ._options import NONE, SUM, TENSORS, Options, compute_dtype

_graph_is_kept: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph
_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor

# Upstream gradients by kind of input, 0-d, on its device. The ops change their values; a CUDA graph
# may hold the tensors themselves, so none is ever dropped.
_expected: dict[Any, Tensor] = {}
_MOST_KINDS = 256


def expectation(input: Tensor, *more: Any) -> Tensor:
    """The upstream gradient that losses of this kind of input are expected to receive."""
    kind = (input.get_device(), input.dtype, input.shape[1:], *more)
    known = _expected.get(kind)
    return known if known is not None else _new_expectation(input, kind)


def _new_expectation(input: Tensor, kind: Any) -> Tensor:
    if len(_expected) >= _MOST_KINDS:
        kind = (input.get_device(), input.dtype)  # all others share one
    if kind not in _expected:
        one = torch.ones((), dtype=compute_dtype(input.dtype), device=input.device)
        _expected.setdefault(kind, one)  # another thread may have been faster
    return _expected[kind]


class FusedLoss(Function):
    """The loss of `input` after a reduction; of each element where that is NONE."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        kernels: Kernels,
        options: Options,
        reduction: int,
        inplace: bool,
    ) -> Tensor:
        grad = None
        if reduction == NONE:
            loss = kernels.unreduced(input, *options)
        elif inplace:
            loss = kernels.loss(input, *options, reduction)
        else:
            expected = expectation(input)
            loss, grad, ctx.used = kernels.loss_and_grad(expected, input, *options, reduction)
        ctx.save_for_backward(input, *options.tensors, grad)
        ctx.rest, ctx.inplace = (*options[TENSORS:], reduction or SUM), inplace
        return cast(Tensor, loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, *tensors, grad = ctx.saved_tensors
        rest = input, *tensors, *ctx.rest
        if torch.compiler.is_compiling():  # compiled autograd traces this function
            return ops.grad.default(grad_output, *rest), None, None, None, None
        plain = not (torch.is_grad_enabled() or _func.active() or _is_batched(grad_output))
        # A kept graph comes back for the same gradient: what it holds is not given away.
        given_away = grad is not None and plain and not _graph_is_kept()
        # On the CPU a look at the numbers costs less than a call of the op.
        if given_away and grad_output.is_cpu and grad_output.item() == ctx.used.item():
            return grad, None, None, None, None
        if given_away:
            ops.update_grad_.default(grad_output, ctx.used, expectation(input), grad, *rest)
            result = grad
        elif not plain:
            result = _func.gradient(grad_output, *rest)
        elif ctx.inplace:
            result = _write_over(grad_output, *rest)
        else:
            result = ops.grad.default(grad_output, *rest)
        return result, None, None, None, None


def _write_over(grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
    logits = input.detach()
    if _overlaps(logits):  # elements that share their memory cannot each hold a gradient
        return cast(Tensor, ops.grad.default(grad_output, logits, *rest))
    ops.grad_.default(grad_output, logits, *rest)
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
apply_fused: Callable[..., Tensor] = super(Function, FusedLoss).apply
