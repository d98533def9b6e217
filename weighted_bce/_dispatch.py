"""Which implementation computes a loss: the kernels, in one of three ways, or plain torch."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from . import _config, _func, _reference
from ._checks import check_listed
from ._dtensor_import import is_dtensor, prepare_for_dtensors
from ._eager import apply_fused
from ._extension import extension, remedy, why_missing
from ._kernels import (
    MOST_DIMENSIONS,
    TARGET_DTYPES,
    Kernels,
    on_cpu,
    on_cuda,
    why_not_on_cuda,
)
from ._ops import ops
from ._options import NONE, SUM, Options

_PLAIN = (Tensor, torch.nn.Parameter)
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_tracing_state: Callable[[], object] = torch._C._get_tracing_state
_saved_tensors_hooks: Callable[[bool], object] = torch._C._autograd._top_saved_tensors_default_hooks


def loss(input: Tensor, options: Options, reduction: int, inplace: bool) -> Tensor:
    """The loss after a reduction, by the best implementation that serves the call."""
    kernels = kernels_for(input)
    if kernels is None:
        return _in_torch(input, options, reduction)
    if nothing_else_looks() and _are_plain(input, options):
        if _records(input):
            return apply_fused(input, kernels, options, reduction, inplace)
        if reduction == NONE:
            return cast(Tensor, kernels.unreduced(input, *options))
        return cast(Tensor, kernels.loss(input, *options, reduction))
    readable = _readable(input, options)
    if readable is not options:
        return loss(input, readable, reduction, inplace)
    if _func.active():
        # The compiler traces transforms of plain torch only.
        if torch.compiler.is_compiling() or _func.lack(options.tensors):
            return _in_torch(input, options, reduction)
        prepare_for_dtensors()  # one may be inside
        return _func.loss(input, options, reduction)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in options.tensors):
        return _in_torch(input, options, reduction)
    return _dispatched(input, traceable(options), reduction)


def _in_torch(input: Tensor, options: Options, reduction: int) -> Tensor:
    check_listed(input, options)
    return _reference.loss(input, options, reduction)


def kernels_for(input: Tensor) -> Kernels | None:
    """The kernels that take these logits, by their kind and by the chosen backend."""
    chosen = _config.current_backend
    if chosen == "reference":
        return None
    if input.layout is torch.strided and input.dim() <= MOST_DIMENSIONS:
        kernels = on_cpu if input.is_cpu else on_cuda(input)
        if kernels is not None:
            return kernels
    if chosen == "fused":
        raise RuntimeError(f"backend 'fused' has no kernel for this input: {_why_none(input)}")
    return None


def _why_none(input: Tensor) -> str:
    if extension is None:
        return f"{why_missing}. {remedy}"
    reason = why_not_on_cuda(input.get_device()) if input.is_cuda else None
    return reason or f"got {input.layout} on {input.device.type} with {input.dim()} dimensions"


def nothing_else_looks() -> bool:
    """Whether no tracing, mode, transform or hook needs to see the op, or what it saves.

    Hooks of saved tensors, a checkpoint's among them, should see the logits, and not a gradient,
    which they may round and which a checkpoint would compute for nothing.
    """
    return not (
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _func.active()
        or _saved_tensors_hooks(True)
        or _tracing_state()
    )


def _are_plain(input: Tensor, options: Options) -> bool:
    """Whether all tensors are what they seem, and the kernels give every gradient there may be."""
    target, crow_indices, weight, pos_weight, *_ = options
    return (
        type(input) in _PLAIN
        and not input.is_neg()
        and target.dtype in TARGET_DTYPES
        and _is_constant(target)
        and (crow_indices is None or _is_constant(crow_indices))
        and (weight is None or _is_constant(weight))
        and (pos_weight is None or _is_constant(pos_weight))
    )


def _is_constant(tensor: Tensor) -> bool:
    return (
        type(tensor) in _PLAIN
        and not tensor.requires_grad
        and not tensor.is_neg()
        and not tensor.is_inference()
    )


def _records(input: Tensor) -> bool:
    return input.requires_grad and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _readable(input: Tensor, options: Options) -> Options:
    """With targets of a dtype that the kernels read, and such that autograd can save them."""
    target, crow = options.target, options.crow_indices
    if target.dtype not in TARGET_DTYPES:
        return options._replace(target=target.float())
    if not torch.compiler.is_compiling() and _records(input):
        if target.is_inference():
            return options._replace(target=target.clone())
        if crow is not None and crow.is_inference():
            return options._replace(crow_indices=crow.clone())
    return options


def traceable(options: Options) -> Options:
    """With a pos_weight that the compiler has seen change in a tensor.

    As an argument of an op each value would be compiled anew; as a product it is an input.
    """
    if not torch.compiler.is_compiling() or _is_static(options.pos_weight_value):
        return options
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return options._replace(pos_weight=one * options.pos_weight_value, pos_weight_value=1.0)


def _is_static(number: float) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(number)


def _dispatched(input: Tensor, options: Options, reduction: int) -> Tensor:
    sharded = is_dtensor(input)
    if reduction == NONE:
        return cast(Tensor, ops.unreduced.default(input, *options))
    if sharded:  # what counts is asked for once, of all processes
        return _reference.divided(ops.loss.default(input, *options, SUM), reduction, input, options)
    return cast(Tensor, ops.loss.default(input, *options, reduction))
