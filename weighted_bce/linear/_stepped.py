"""The loss of a linear layer with a fused step: the gradient of the weight is never held.

The forward pass computes the loss and, as they are small, the gradients of the input and the bias,
for the grad_output that is expected. Backward multiplies them by what came over what was expected.
The weight gets a `DeferredGrad`, which the optimizer computes chunk by chunk in its step().
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge

from .. import _dispatch
from .._eager import graph_is_kept, is_first_order
from .._options import NONE, Options, compute_dtype
from . import _deferred_ops as _deferred_ops  # operations on deferred gradients
from . import _ops, _passes
from ._chunks import ChunkOptions, Layer
from ._deferred import DeferredGrad, deferred_grad
from ._expectation import expectation_of
from ._fused_optimizer import FusedOptimizer, Group
from ._gradient_sum import Call, GradientSum
from ._gradients import Gradients
from ._not_compiled import not_compiled

# Called with the labels of a chunk and the gradients of their rows of the weight and the bias.
StepFunction = Callable[[slice, Tensor | None, Tensor | None], None]
Step = FusedOptimizer | StepFunction


class BoundStep(NamedTuple):
    """A step and the parameters that it updates."""

    step: Step
    weight: Tensor
    bias: Tensor | None

    @property
    def group(self) -> Any:
        """The processes whose gradients are averaged, or None."""
        group = getattr(self.step, "group", None)
        return None if group is Group.NOT_GIVEN else group

    def check_is_optimizer(self) -> None:
        """Raises NotImplementedError if it is a function, which would not be called."""
        if not isinstance(self.step, FusedOptimizer):
            raise NotImplementedError(
                "fused_step must be a FusedSGD or a FusedAdam for second derivatives and for "
                "gradients with respect to target, weight and pos_weight, got a function"
            )

    def check_accumulation(self) -> None:
        """Raises RuntimeError if gradients of earlier backward passes wait for their step."""
        step, deferred = self.step, deferred_grad(self.weight.grad)
        if deferred is None or not isinstance(step, FusedOptimizer):
            return
        most = step.accumulate
        if deferred.gradient_sum.passes >= most:
            passes = "1 backward pass" if most == 1 else f"{most} backward passes"
            raise RuntimeError(
                f"fused_step must take a step() after {passes}, as its argument accumulate says, "
                "got another backward pass. Call step() or zero_grad(), or make the optimizer with "
                "a larger accumulate"
            )


def bound(step: object, weight: Tensor, bias: Tensor | None) -> BoundStep | None:
    """Returns the step with the parameters of the layer, or None if no gradient is recorded.

    Raises:
        TypeError: if it is no step.
        ValueError: if it belongs to other parameters, or does not say which processes it concerns.
    """
    is_class, is_optimizer = isinstance(step, type), isinstance(step, FusedOptimizer)
    if is_class or not (step is None or callable(step) or is_optimizer):
        got = f"the class {step.__name__}" if isinstance(step, type) else type(step).__name__
        raise TypeError(f"fused_step must be a FusedSGD, a FusedAdam or a function, got {got}")
    if step is None or not torch.is_grad_enabled():
        return None
    held = None
    if isinstance(step, FusedOptimizer):
        held = {id(p) for group in step.param_groups for p in group["params"]}
    for name, parameter in (("linear_weight", weight), ("linear_bias", bias)):
        if parameter is None or not parameter.requires_grad:
            continue
        if held is not None and id(parameter) not in held:
            raise ValueError(
                f"fused_step must have {name} itself among its parameters, got an optimizer that "
                "does not. Make it anew after the parameters of the layer were replaced. Under "
                "fully_shard and with a parametrized layer, set fused_step to None"
            )
        if not parameter.is_leaf:
            raise ValueError(
                f"{name} must be a leaf tensor with fused_step, got the result of an operation"
            )
    names_group = getattr(step, "group", Group.NOT_GIVEN) is not Group.NOT_GIVEN
    if not names_group and _processes() > 1:
        raise ValueError(
            "fused_step must say which processes average its gradients, by the argument group of "
            "FusedSGD and FusedAdam or the attribute group of a function: a process group, or None "
            "for this process alone, got neither"
        )
    return BoundStep(cast(Step, step), weight, bias)


def _processes() -> int:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


class _Destination(Enum):
    """What a backward pass does with a gradient: it adds it to .grad, returns it, or neither."""

    ADDED = 1
    RETURNED = 2
    NONE = 3


class SteppedLinearLoss(Function):
    """Computes the loss, the gradients of the input and the bias, and defers that of the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        options: Options,
        chunk_options: ChunkOptions,
        step: BoundStep,
    ) -> Tensor:
        layer = Layer(input, linear_weight, linear_bias)
        options.save(ctx, *layer)
        ctx.chunk_options, ctx.step, ctx.gradients = chunk_options, step, None
        of_input, _, of_bias, *_ = ctx.needs_input_grad
        loss, is_observed = None, _dispatch.is_observed() or not layer.has_numbers
        # A checkpoint would compute gradients for nothing, and those of rows have many factors.
        if (of_input or of_bias) and options.reduction != NONE and not is_observed:
            ctx.expectation = expectation_of(layer)
            ctx.used_grad_output = ctx.expectation.grad_output.clone()
            loss, ctx.gradients = _of_input_and_bias(
                layer, options, chunk_options, ctx.used_grad_output, (of_input, of_bias)
            )
        if loss is None:
            # Who observes operations may keep their results, which the chunks write over.
            compute = _ops.loss if is_observed else _passes.loss
            loss = compute(layer, options, chunk_options)
        ctx.loss = loss.detach()
        return loss

    @staticmethod
    @not_compiled
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        options, saved = Options.saved(ctx)
        layer, step = Layer(*saved), ctx.step
        of_input, of_weight, of_bias, *others = ctx.needs_input_grad
        needs = of_input, of_weight, of_bias
        call = layer, options, ctx.chunk_options
        if not is_first_order(grad_output):
            step.check_is_optimizer()
            return *_ops.gradients(grad_output, *call, needs), *(None for _ in others)
        weight_goes, bias_goes = _destination(step.weight), _destination(step.bias)
        if weight_goes is _Destination.ADDED:
            step.check_accumulation()
        of_bias = bias_goes is not _Destination.NONE
        x_grad, _, bias_grad = _scaled(ctx, grad_output, call, (of_input, of_bias))
        if bias_grad is not None and step.group is not None:
            distributed.all_reduce(bias_grad, group=step.group)
            bias_grad.div_(distributed.get_world_size(step.group))
        weight_grad: Tensor | None = None
        if weight_goes is not _Destination.NONE:
            one_call = Call.of(*call, grad_output, ctx.loss)
            weight_grad = DeferredGrad(layer.weight, GradientSum([one_call], step.group))
            if weight_goes is _Destination.RETURNED:
                weight_grad = weight_grad.whole()
        if not isinstance(step.step, FusedOptimizer):
            of_bias = bias_goes is _Destination.ADDED
            weight_grad, bias_grad = _call(step.step, weight_grad, bias_grad, of_bias)
        return x_grad, weight_grad, bias_grad, *(None for _ in others)


def _of_input_and_bias(
    layer: Layer,
    options: Options,
    chunk_options: ChunkOptions,
    grad_output: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Gradients]:
    """Returns the loss, and the gradients of the input and the bias in the compute dtype."""
    dtype = compute_dtype(layer.input.dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    layer = layer._replace(bias=bias)
    of_layer = needs[0], False, needs[1]
    return _passes.loss_and_gradients(layer, options, chunk_options, grad_output, of_layer, dtype)


def _scaled(
    ctx: Any,
    grad_output: Tensor,
    call: tuple[Layer, Options, ChunkOptions],
    needs: tuple[bool, bool],
) -> Gradients:
    """Returns the gradients of the input and the bias for the grad_output that came."""
    of_layer = needs[0], False, needs[1]
    if not any(needs):
        return Gradients(None, None, None)
    if ctx.gradients is None:
        return _ops.gradients(grad_output, *call, of_layer)
    made: Gradients = ctx.gradients
    is_kept = graph_is_kept()
    if not is_kept:
        ctx.gradients = None  # they are given away
    ratio = grad_output / ctx.used_grad_output
    ctx.expectation.learn(grad_output)

    def scaled(gradient: Tensor, like: Tensor) -> Tensor:
        return (gradient * ratio if is_kept else gradient.mul_(ratio)).to(like.dtype)

    each = zip(made, call[0], of_layer, strict=True)
    return Gradients(
        *(scaled(g, cast(Tensor, t)) if n and g is not None else None for g, t, n in each)
    )


def _destination(parameter: Tensor | None) -> _Destination:
    """Returns what this backward pass does with the gradient of a leaf."""
    if parameter is None or not parameter.requires_grad:
        return _Destination.NONE
    node = get_gradient_edge(parameter).node
    try:
        adds = torch._C._will_engine_execute_node(node)
    except RuntimeError:  # so it says that torch.autograd.grad asks for this leaf
        return _Destination.RETURNED
    return _Destination.ADDED if adds else _Destination.NONE


def _call(
    function: StepFunction,
    weight_grad: Tensor | None,
    bias_grad: Tensor | None,
    of_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gives a function a deferred gradient, and that of the bias if it has it; returns others."""
    added, returned = (bias_grad, None) if of_bias else (None, bias_grad)
    with torch.no_grad():
        if isinstance(weight_grad, DeferredGrad):
            for labels, gradient in weight_grad.chunks():
                function(labels, gradient, None if added is None else added[labels])
            weight_grad = None
        elif added is not None:
            function(slice(0, len(added)), None, added)
    return weight_grad, returned


apply: Callable[..., Tensor] = SteppedLinearLoss.apply
