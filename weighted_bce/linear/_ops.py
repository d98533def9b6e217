"""The ops of a linear layer with its loss, which tracing sees, and their derivatives.

One computes the loss, one the gradients, for which it computes the logits again, and one the
largest logits. They consist of torch's products and of the kernels for the loss of a chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .._derivatives import refuse_others
from .._eager import is_first_order
from .._ops import pos_weight_as_tensor
from .._options import NONE, Options, compute_dtype
from . import _passes
from ._chunks import ChunkOptions, Layer, topk
from ._flops import tell_counters
from ._gradients import Gradients
from ._unchunked import differentiable_gradients

_library: Any = torch.library.Library("weighted_bce", "FRAGMENT")  # type: ignore[no-untyped-call]

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    int: "int",
    int | None: "int?",
    Sequence[float] | None: "float[]?",
}
# Options with a default came after version 0.6. They and the reserved ones come last, so that
# programs that were exported before still load; see csrc/args.h.
_REQUIRED = tuple(name for name in Options._fields if name not in Options._field_defaults)
_DEFAULTED = (*Options._field_defaults, "values")
_LAYER_SCHEMA = "Tensor input, Tensor linear_weight, Tensor? linear_bias"
_REQUIRED_SCHEMA = ", ".join(f"{_SCHEMA_TYPES[Options.__annotations__[n]]} {n}" for n in _REQUIRED)
_CHUNK_SCHEMA = "ScalarType? product_dtype, int? chunk_labels"
_DEFAULTED_SCHEMA = (
    "int loss=0, float[]? parameters=None, Tensor? normalizer=None, Tensor? values=None"
)

ops = torch.ops.weighted_bce


def loss(layer: Layer, options: Options, chunk_options: ChunkOptions) -> Tensor:
    """Returns the loss after the reduction; that of each row without one."""
    tell_counters()
    options = pos_weight_as_tensor(options)
    required, defaulted = options[: len(_REQUIRED)], options[len(_REQUIRED) :]
    op = ops.linear_loss.default
    return cast(Tensor, op(*layer, *required, *chunk_options, *defaulted))


def gradients(
    grad_output: Tensor,
    layer: Layer,
    options: Options,
    chunk_options: ChunkOptions,
    needs: tuple[bool, ...],
) -> Gradients:
    """Returns the gradients of the layer's tensors, from logits that are computed again."""
    if not is_first_order(grad_output):
        return differentiable_gradients(grad_output, layer, options, needs)
    tell_counters()
    needs = tuple(n and t is not None for n, t in zip(needs, layer, strict=True))
    required, defaulted = options[: len(_REQUIRED)], options[len(_REQUIRED) :]
    op = ops.linear_grads.default
    each = iter(op(grad_output, *layer, *required, *chunk_options, needs, *defaulted))
    return Gradients(*(next(each) if needed else None for needed in needs))


def largest(layer: Layer, k: int, chunk_options: ChunkOptions) -> tuple[Tensor, Tensor]:
    """Returns the k largest logits of each row, largest first, and their labels."""
    tell_counters()
    values, indices = ops.linear_topk.default(*layer, k, *chunk_options)
    return values, indices


def _unpacked(names: tuple[str, ...], arguments: Sequence[Any]) -> tuple[Layer, Options, Any]:
    """Returns the layer, the options, and the arguments `names` between the options.

    The last arguments may be missing, since the dispatcher drops defaults.
    """
    input, weight, bias, *rest = arguments
    given = dict(zip((*_REQUIRED, *names, *_DEFAULTED), rest, strict=False))
    if given.pop("values", None) is not None:
        raise NotImplementedError("values must be None: they are reserved and not supported yet")
    between = [given.pop(name) for name in names]
    return Layer(input, weight, bias), Options(**given), between


def _unpacked_loss(arguments: Sequence[Any]) -> tuple[Layer, Options, ChunkOptions]:
    layer, options, between = _unpacked(ChunkOptions._fields, arguments)
    return layer, options, ChunkOptions(*between)


def _linear_loss(*arguments: Any) -> Tensor:
    with torch.no_grad():
        return _passes.loss(*_unpacked_loss(arguments))


def _linear_grads(grad_output: Tensor, *arguments: Any) -> list[Tensor]:
    layer, options, between = _unpacked((*ChunkOptions._fields, "needs"), arguments)
    *chunk_options, needs = between
    with torch.no_grad():
        _, all_three = _passes.loss_and_gradients(
            layer, options, ChunkOptions(*chunk_options), grad_output, needs
        )
    return [gradient for gradient in all_three if gradient is not None]


def _linear_topk(
    input: Tensor, weight: Tensor, bias: Tensor | None, k: int, *chunk_options: Any
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return topk(Layer(input, weight, bias), ChunkOptions(*chunk_options), k)


def _fake_linear_loss(input: Tensor, *arguments: Any) -> Tensor:
    _, options, _ = _unpacked_loss((input, *arguments))
    shape = input.shape[:1] if options.reduction == NONE else ()
    return input.new_empty(shape, dtype=compute_dtype(input.dtype))


def _fake_linear_grads(grad_output: Tensor, *arguments: Any) -> list[Tensor]:
    layer, _, (*_, needs) = _unpacked((*ChunkOptions._fields, "needs"), arguments)
    each = zip(layer, needs, strict=True)
    return [torch.empty_like(t) for t, needed in each if needed and t is not None]


def _fake_linear_topk(input: Tensor, linear_weight: Tensor, _: Any, k: int, *rest: Any) -> Any:
    values = input.new_empty((input.shape[0], k), dtype=compute_dtype(input.dtype))
    return values, torch.empty_like(values, dtype=torch.int64)


def _define(name: str, schema: str, implementation: Any, fake: Callable[..., Any]) -> None:
    _library.define(f"{name}({schema}")
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"weighted_bce::{name}", fake, lib=_library)


_ARGUMENTS = f"{_LAYER_SCHEMA}, {_REQUIRED_SCHEMA}, {_CHUNK_SCHEMA}"
_define(
    "linear_loss",  # 0-d, or without a reduction of shape (rows,)
    f"{_ARGUMENTS}, {_DEFAULTED_SCHEMA}) -> Tensor",
    _linear_loss,
    _fake_linear_loss,
)
_define(
    "linear_grads",  # those that are needed, of input, linear_weight and linear_bias
    f"Tensor grad_output, {_ARGUMENTS}, bool[3] needs, {_DEFAULTED_SCHEMA}) -> Tensor[]",
    _linear_grads,
    _fake_linear_grads,
)
_define(
    "linear_topk",
    f"{_LAYER_SCHEMA}, int k, {_CHUNK_SCHEMA}) -> (Tensor, Tensor)",
    _linear_topk,
    _fake_linear_topk,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, _, *others = ctx.needs_input_grad
    refuse_others(others, "linear_weighted_bce_with_logits")
    layer, options, ctx.chunk_options = _unpacked_loss(inputs)
    options.save(ctx, *layer)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    options, layer = Options.saved(ctx)
    of_input, of_weight, of_bias, *others = ctx.needs_input_grad
    needs = of_input, of_weight, of_bias
    each = gradients(grad_output, Layer(*layer), options, ctx.chunk_options, needs)
    return *each, *(None for _ in others)


torch.library.register_autograd(
    "weighted_bce::linear_loss", _backward, setup_context=_save, lib=_library
)
