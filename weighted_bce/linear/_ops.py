"""The loss of a linear layer: its ops, its derivatives, and which way a call takes.

In eager mode one pass yields the loss and all gradients, for the upstream gradient that backward is
expected to bring; where it brings another, they are made again. What traces sees ops: one for the
loss, one for the gradients, which makes the logits again.
"""

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from .. import _dispatch, _func
from .._dtensor_import import is_dtensor
from .._eager import expectation
from .._ops import fake_loss, refuse_gradients
from .._options import TENSORS, Options, compute_dtype
from . import _passes
from ._chunks import Chunks, How, Layer, topk
from ._passes import Gradients, Step

_library: Any = torch.library.Library("weighted_bce", "FRAGMENT")  # type: ignore[no-untyped-call]
_LAYER = "Tensor input, Tensor linear_weight, Tensor? linear_bias, "
# After the layer come the arguments of csrc/ops.cpp, and last how to multiply: the dtype (None:
# that of input) and the labels of a chunk (None: chosen).
_ARGS = (
    "Tensor target, Tensor? crow_indices, Tensor? weight, Tensor? pos_weight, "
    "float pos_weight_value, float label_smoothing, float? ignore_index, int? first_label, "
    "int reduction, "
)
_CHUNKS = "ScalarType? product_dtype, int? chunk_labels"
_library.define(f"linear_loss({_LAYER}{_ARGS}{_CHUNKS}) -> Tensor")
# Those that are needed, of input, linear_weight and linear_bias.
_library.define(
    f"linear_grads(Tensor grad_output, {_LAYER}{_ARGS}{_CHUNKS}, bool[3] needs) -> Tensor[]"
)
_library.define(f"linear_topk({_LAYER}int k, {_CHUNKS}) -> (Tensor, Tensor)")

ops = torch.ops.weighted_bce


def _unpacked(args: tuple[Any, ...]) -> tuple[Chunks, Layer, Options, int]:
    """The arguments of linear_loss."""
    layer, rest = Layer(*args[:3]), args[3:]
    *options, reduction, product_dtype, chunk_labels = rest
    return Chunks(layer, product_dtype, chunk_labels), layer, Options(*options), reduction


def _linear_loss(*args: Any) -> Tensor:
    with torch.no_grad():
        return _passes.loss(*_unpacked(args))


def _linear_grads(grad_output: Tensor, *args: Any) -> list[Tensor]:
    with torch.no_grad():
        _, found = _passes.loss_and_gradients(*_unpacked(args[:-1]), grad_output, args[-1])
    return [gradient for gradient in found if gradient is not None]


def _linear_topk(*args: Any) -> tuple[Tensor, Tensor]:
    *layer, k, product_dtype, chunk_labels = args
    with torch.no_grad():
        return topk(Chunks(Layer(*layer), product_dtype, chunk_labels), k)


def _fake_linear_grads(grad_output: Tensor, *args: Any) -> list[Tensor]:
    layer, needs = args[:3], args[-1]
    return [
        torch.empty_like(tensor)
        for tensor, needed in zip(layer, needs, strict=True)
        if needed and tensor is not None
    ]


def _fake_linear_topk(input: Tensor, linear_weight: Tensor, _: Any, k: int, *rest: Any) -> Any:
    values = input.new_empty((input.shape[0], k), dtype=compute_dtype(input.dtype))
    return values, torch.empty_like(values, dtype=torch.int64)


for _name, _implementation, _fake in (
    ("linear_loss", _linear_loss, fake_loss),
    ("linear_grads", _linear_grads, _fake_linear_grads),
    ("linear_topk", _linear_topk, _fake_linear_topk),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"weighted_bce::{_name}", _fake, lib=_library)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = 3 + TENSORS
    refuse_gradients(ctx, slice(3, tensors), "linear_weighted_bce_with_logits")
    ctx.save_for_backward(*inputs[:tensors])
    ctx.rest = inputs[tensors:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    found = _gradients(grad_output, ctx.saved_tensors, ctx.rest, ctx.needs_input_grad[:3])
    return *found, *(None,) * (len(ctx.needs_input_grad) - 3)


torch.library.register_autograd(
    "weighted_bce::linear_loss", _backward, setup_context=_save, lib=_library
)


def _gradients(
    grad_output: Tensor, tensors: tuple[Any, ...], rest: tuple[Any, ...], needs: tuple[bool, ...]
) -> Gradients:
    """Made from the logits, which are made again."""
    if not _is_plain(grad_output):
        return _differentiable_gradients(grad_output, tensors, rest, needs)
    needs = tuple(n and t is not None for n, t in zip(needs, tensors[:3], strict=True))
    found = iter(ops.linear_grads.default(grad_output, *tensors, *rest, needs))
    return Gradients(*(next(found) if needed else None for needed in needs))


def _is_plain(grad_output: Tensor) -> bool:
    """Whether neither derivatives of the gradient are asked for nor many gradients at once."""
    batched = torch._C._functorch.is_legacy_batchedtensor(grad_output)
    return not (torch.is_grad_enabled() or _func.active() or batched)


def _differentiable_gradients(
    grad_output: Tensor, tensors: tuple[Any, ...], rest: tuple[Any, ...], needs: tuple[bool, ...]
) -> Gradients:
    """In plain torch, with all logits at once."""
    layer, others = Layer(*tensors[:3]), tensors[3:]
    options = rest[:-2]
    x, weight, _ = _widened(layer)
    slopes = _func.gradient(grad_output, _all_logits(layer), *others, *options)
    with _no_autocast(x):
        found = slopes @ weight, slopes.t() @ x, slopes.sum(0)
    wanted = [n and t is not None for n, t in zip(needs, layer, strict=True)]
    both = zip(found, layer, wanted, strict=True)
    return Gradients(*(g.to(cast(Tensor, t).dtype) if wants else None for g, t, wants in both))


def _widened(layer: Layer) -> Layer:
    """In the dtype of arithmetic."""
    dtype = compute_dtype(layer.input.dtype)
    return Layer(*(None if t is None else t.to(dtype) for t in layer))  # type: ignore[arg-type]


_KINDS = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla")
_WITH_AUTOCAST = frozenset(kind for kind in _KINDS if torch.amp.is_autocast_available(kind))
_IS_TRACEABLE = torch.__version__ >= "2.13"  # is_autocast_available; it is not in torch 2.11


def autocast_available(kind: str) -> bool:
    """Whether torch has autocast on this kind of device."""
    if torch.compiler.is_compiling() and not _IS_TRACEABLE:
        return kind in _WITH_AUTOCAST
    return torch.amp.is_autocast_available(kind)


def _no_autocast(like: Tensor) -> Any:
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if autocast_available(kind) else nullcontext()


def _all_logits(layer: Layer) -> Tensor:
    with _no_autocast(layer.input):
        return functional.linear(*_widened(layer))


class FusedLinearLoss(Function):
    """The loss and, in the same pass, the gradients; with a step, these in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        options: Options,
        reduction: int,
        how: How,
        step: Step | None,
    ) -> Tensor:
        layer = Layer(input, linear_weight, linear_bias)
        call = Chunks(layer, *how), layer, options, reduction
        ctx.save_for_backward(*layer, *options.tensors)
        ctx.rest, ctx.step, ctx.gradients = (*options[TENSORS:], reduction, *how), step, None
        if step is not None:
            return _passes.loss(*call)
        ctx.used = _expected(layer).clone()
        needs = ctx.needs_input_grad[:3]
        loss, ctx.gradients = _passes.loss_and_gradients(*call, ctx.used, needs)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
        found, ctx.gradients = ctx.gradients, None  # given away, or wrong
        if torch.compiler.is_compiling():  # compiled autograd traces this function
            found = None
        if ctx.step is not None:
            found = _stepped(grad_output, tensors, ctx.rest, needs, ctx.step)
        elif found is None or not _is_plain(grad_output) or not _same(grad_output, ctx.used):
            del found  # before there are others
            found = _gradients(grad_output, tensors, ctx.rest, needs)
            _learn(grad_output, Layer(*tensors[:3]))
        return *found, None, None, None, None


def _expected(layer: Layer) -> Tensor:
    return expectation(layer.input, layer.weight.dtype, layer.weight.shape)


def _same(grad_output: Tensor, used: Tensor) -> bool:
    """On CUDA this waits for the forward pass: what follows is decided here."""
    return bool(grad_output.item() == used.item())


def _learn(grad_output: Tensor, layer: Layer) -> None:
    # 0 needs no gradient in advance.
    if _is_plain(grad_output) and not torch.compiler.is_compiling() and grad_output.item() != 0:
        _expected(layer).copy_(grad_output)


def _stepped(
    grad_output: Tensor,
    tensors: tuple[Any, ...],
    rest: tuple[Any, ...],
    needs: tuple[bool, ...],
    step: Step,
) -> Gradients:
    if not _is_plain(grad_output):
        raise NotImplementedError("fused_step changes the weight: there are no second derivatives")
    unpacked = _unpacked((*tensors, *rest))
    return _passes.loss_and_gradients(*unpacked, grad_output, needs, step)[1]


def loss(
    layer: Layer,
    options: Options,
    reduction: int,
    how: How,
    step: Step | None,
) -> Tensor:
    """The loss after a reduction, by the best way that serves the call."""
    if step is not None and torch.compiler.is_compiling():
        torch._dynamo.graph_break("fused_step is not compiled")
        uncompiled: Any = torch.compiler.disable(loss)  # type: ignore[no-untyped-call]
        return cast(Tensor, uncompiled(layer, options, reduction, how, step))
    _dispatch.kernels_for(layer.input)  # raises where the chosen backend has none
    if step is not None and _func.active():
        raise NotImplementedError("fused_step does not work under torch.func")
    if _needs_all_logits(layer, options):
        return _dispatch.loss(_all_logits(layer), options, reduction, False)
    if is_dtensor(layer.input) or is_dtensor(layer.weight):
        from . import _dtensor

        return _dtensor.loss(layer, options, reduction, how, step)
    if (step is not None or _passes_once(layer)) and _records(layer):
        apply: Any = FusedLinearLoss.apply
        return cast(Tensor, apply(*layer, _savable(options), reduction, how, step))
    traceable = _dispatch.traceable(options)
    return cast(Tensor, ops.linear_loss.default(*layer, *traceable, reduction, *how))


def _needs_all_logits(layer: Layer, options: Options) -> bool:
    """Whether a derivative is asked for that is not made in chunks."""
    if _func.active():
        return True
    return torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in options.tensors
    )


def _savable(options: Options) -> Options:
    """With tensors that autograd can save."""
    tensors = (t.clone() if t is not None and t.is_inference() else t for t in options.tensors)
    return Options(*tensors, *options[TENSORS:])  # type: ignore[arg-type]


def _records(layer: Layer) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
        and any(t is not None and t.requires_grad for t in layer)
    )


def _passes_once(layer: Layer) -> bool:
    """Whether gradients may be made before it is known what for: nothing traces the call, no
    checkpoint would drop them, there are numbers to compare, and no CUDA graph is recorded, in
    which nobody may wait for them."""
    return _dispatch.nothing_else_looks() and not (
        layer.input.is_meta or (layer.input.is_cuda and torch.cuda.is_current_stream_capturing())
    )
