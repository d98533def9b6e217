"""The loss of a linear layer in eager mode: one pass computes the loss and all gradients.

The gradients are computed for the grad_output that backward is expected to bring. If it brings
another one, they are computed again. If that happens often, the pass computes the loss alone; see
_expectation.py. A layer with a fused step is in _stepped.py.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .._eager import is_first_order
from .._options import Options
from . import _ops, _passes
from ._chunks import ChunkOptions, Layer
from ._expectation import Prediction, predict
from ._gradients import Gradients


class FusedLinearLoss(Function):
    """Computes the loss and, in the same pass, its gradients if they are expected to be right."""

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
        ctx.prediction = prediction = predict(layer)
        if prediction.grad_output is None:
            return _passes.loss(layer, options, chunk_options)
        of_input, of_weight, of_bias, *_ = ctx.needs_input_grad
        needs = of_input, of_weight, of_bias
        loss, prediction.gradients = _passes.loss_and_gradients(
            layer, options, chunk_options, prediction.grad_output, needs
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
    prediction: Prediction | None
    prediction, ctx.prediction = ctx.prediction, None  # another backward pass makes its own
    # Compiled autograd traces this function.
    if prediction is not None and not torch.compiler.is_compiling():
        made = prediction.gradients_for(grad_output if is_first_order(grad_output) else None)
        if made is not None:
            return made
    return _ops.gradients(grad_output, *call, needs)


apply: Callable[..., Tensor] = FusedLinearLoss.apply
