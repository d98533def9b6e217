"""The fused loss in eager mode: one pass that yields the loss and its gradient.

The gradient written in the forward pass is already multiplied by the upstream gradient that
backward is expected to bring: 1 at first, then what it brought the last time. Backward compares,
and recomputes from the logits where the expectation was wrong, so a result never depends on it.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from . import reference
from ._ops import kernels, ops
from .reference import Options, compute_dtype

_graph_is_kept: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph
_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor

# Upstream gradients by kind of input, 0-d. Each is replaced as a whole, never changed.
_expected: dict[Any, Tensor] = {}
_MOST_KINDS = 256


def _expectation(input: Tensor) -> Tensor:
    known = _expected.get((input.dtype, input.shape[1:]))
    return known if known is not None else _expect(input, 1.0)


def _expect(input: Tensor, value: float) -> Tensor:
    if len(_expected) >= _MOST_KINDS:
        _expected.clear()
    expected = torch.tensor(value, dtype=compute_dtype(input.dtype), device=input.device)
    _expected[input.dtype, input.shape[1:]] = expected
    return expected


class FusedLoss(Function):
    """Loss of `input`: reduced to a sum over `divisor`, or of each element."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        options: Options,
        divisor: float | None,
        reduced: bool,
        inplace: bool,
    ) -> Tensor:
        grad = expected = None
        if reduced and not inplace:
            expected = _expectation(input)
            loss, grad = kernels.loss_and_grad(input, *options, divisor, expected)
        elif reduced:
            loss = kernels.loss(input, *options, divisor)
        else:
            loss = kernels.unreduced(input, *options)
        # Both together: a checkpoint computes them a second time, with another expectation.
        ctx.save_for_backward(input, *options[:3], grad, expected)
        ctx.rest, ctx.divisor, ctx.inplace = options[3:], divisor, inplace
        return cast(Tensor, loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, target, weight, pos_weight, grad, expected = ctx.saved_tensors
        plain = not (torch.is_grad_enabled() or _transforms_active() or _is_batched(grad_output))
        if grad is not None and plain:
            # A kept graph comes back for the same gradient: what it holds is not given away.
            if _as_expected(expected, input, grad_output) and not _graph_is_kept():
                return grad, None, None, None, None
            # Otherwise its memory is free for the right one.
            ctx.maybe_clear_saved_tensors()
            del grad
        options = Options(target, weight, pos_weight, *ctx.rest)
        if not plain:
            result = reference.grad(grad_output, input, options, ctx.divisor)
        elif ctx.inplace:
            result = _write_over(input, grad_output, options, ctx.divisor)
        else:
            result = ops.grad.default(grad_output, input, *options, ctx.divisor)
        return result, None, None, None, None


def _as_expected(expected: Tensor, input: Tensor, grad_output: Tensor) -> bool:
    value = grad_output.item()
    if value == expected.item():
        return True
    if value != 0:  # which has two signs, and needs no gradient in advance
        _expect(input, value)
    return False


def _write_over(
    input: Tensor, grad_output: Tensor, options: Options, divisor: float | None
) -> Tensor:
    logits = input.detach()
    if _overlaps(logits):  # elements that share their memory cannot each hold a gradient
        return cast(Tensor, ops.grad.default(grad_output, logits, *options, divisor))
    ops.grad_.default(grad_output, logits, *options, divisor)
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
