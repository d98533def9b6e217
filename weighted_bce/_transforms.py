"""Tells which transforms of torch.func and forward-mode AD are active."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_functorch: Any = torch._C._functorch
_kinds: Any = _functorch.TransformType

# Tells whether torch.autograd maps over many vectors at once, as is_grads_batched and vectorize do.
# That is an older kind of vmap, which has no rules for these ops.
is_legacy_batched: Callable[[Tensor], bool] = _functorch.is_legacy_batchedtensor


def is_active() -> bool:
    """Tells whether code runs under a transform of torch.func or a level of forward-mode AD."""
    return _transforms_active() or forward_ad._current_level >= 0


def needs_reference(options: Iterable[Tensor | None]) -> bool:
    """Tells whether something is needed that _derivatives.py does not have: a derivative with
    respect to another tensor than the logits, or an unsupported transform."""
    return is_unsupported_transform() or any(map(_is_differentiated, options))


def _levels() -> list[Any]:
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


def is_unsupported_transform() -> bool:
    """Tells whether an autograd.Function would be wrong here.

    In a jvp within a jvp, torch takes what a Function's jvp computes for a constant (seen in 2.11
    to 2.13), and it has no rule to functionalize a Function.
    """
    levels = _levels()
    return _kinds.Functionalize in levels or levels.count(_kinds.Jvp) > 1


def _is_differentiated(tensor: Tensor | None) -> bool:
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
