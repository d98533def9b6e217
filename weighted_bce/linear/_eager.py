"""The loss of a linear layer in eager mode: one pass computes the loss and all gradients.

The gradients are computed for the grad_output that backward is expected to bring. If it brings
another one, they are computed again. A layer with a fused step is in _stepped.py.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .._eager import expected_grad_output, is_first_order
from .._options import Options
from . import _ops, _passes
from ._chunks import ChunkOptions, Layer
from ._gradients import Gradients


class FusedLinearLoss(Function):
    """Computes the loss and, in the same pass, its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        options: Options,
        chunk_options: ChunkOptions,
    ) -> Tensor:
        layer = Layer(input, linear_weight, linear_bias)
        options.save(ctx, *layer)
        ctx.chunk_options = chunk_options
        ctx.used_grad_output = expected_of(layer).clone()
        of_input, of_weight, of_bias, *_ = ctx.needs_input_grad
        loss, ctx.gradients = _passes.loss_and_gradients(
            layer, options, chunk_options, ctx.used_grad_output, (of_input, of_weight, of_bias)
        )
        return cast(Tensor, loss)  # there is one after a reduction

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        options, layer = Options.saved(ctx)
        of_input, of_weight, of_bias, *others = ctx.needs_input_grad
        call = Layer(*layer), options, ctx.chunk_options
        all_three = _gradients(ctx, grad_output, call, (of_input, of_weight, of_bias))
        return *all_three, *(None for _ in others)


def _gradients(
    ctx: Any,
    grad_output: Tensor,
    call: tuple[Layer, Options, ChunkOptions],
    needs: tuple[bool, ...],
) -> Gradients:
    made: Gradients | None
    made, ctx.gradients = ctx.gradients, None  # they are given away, or wrong
    if torch.compiler.is_compiling():  # compiled autograd traces this function
        return _ops.gradients(grad_output, *call, needs)
    is_plain = is_first_order(grad_output)
    if made is not None and is_plain and _is_same(grad_output, ctx.used_grad_output):
        return made
    del made  # before there are others
    gradients = _ops.gradients(grad_output, *call, needs)
    if is_plain and grad_output.item() != 0:  # 0 needs no gradient in advance
        expected_of(call[0]).copy_(grad_output)
    return gradients


def expected_of(layer: Layer) -> Tensor:
    return expected_grad_output(layer.input, layer.weight.dtype, layer.weight.shape)


def _is_same(grad_output: Tensor, used: Tensor) -> bool:
    """Compares the two. On CUDA it waits for the forward pass: Python decides what follows."""
    return bool(grad_output.item() == used.item())


apply: Callable[..., Tensor] = FusedLinearLoss.apply
