"""Chooses what computes a loss: the kernels, in one of several ways, or plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import _derivatives, _eager, _ops, _reference, _transforms
from . import _vmap as _vmap  # gives the ops their rules
from ._checks import check_csr_indices
from ._dtensor_import import import_rules_for_dtensors, is_dtensor
from ._flop_counters import flop_counters
from ._kernels import Kernels, kernels_for
from ._options import NONE, SUM, Options

_EXACT_TYPES = (Tensor, torch.nn.Parameter)
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_tracing_state: Callable[[], object] = torch._C._get_tracing_state
_saved_tensors_hooks: Callable[[bool], object] = torch._C._autograd._top_saved_tensors_default_hooks

_When = Callable[[Tensor, Options, Kernels | None], bool]
_How = Callable[[Tensor, Options, Kernels | None, bool], Tensor]


def loss(input: Tensor, options: Options, inplace_backward: bool = False) -> Tensor:
    """Returns the loss after the reduction, by the first implementation that serves the call."""
    kernels = kernels_for(input)
    if kernels is not None:
        options = options.with_readable_target()
    for serves, compute in _TABLE:
        if serves(input, options, kernels):
            return compute(input, options, kernels, inplace_backward)
    raise AssertionError("the last line of the table serves every call")


def _is_eager(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """Kernels take these logits, nothing but autograd needs to see the call, and only the logits
    are differentiated."""
    target, crow_indices, weight, pos_weight, *_, normalizer = options
    return (
        kernels is not None
        and not is_observed()
        and type(input) in _EXACT_TYPES
        and not input.is_neg()
        and _is_constant(target)
        and (crow_indices is None or _is_constant(crow_indices))
        and (weight is None or _is_constant(weight))
        and (pos_weight is None or _is_constant(pos_weight))
        and (normalizer is None or _is_constant(normalizer))
    )


def is_observed() -> bool:
    """Tells whether a trace, mode, transform or hook needs to see the op, or what it saves.

    Hooks of saved tensors, a checkpoint's among them, should see the logits, and not a gradient,
    which they may round and which a checkpoint would compute for nothing. A counter of FLOPs
    observes nothing: it should count what is computed without it.
    """
    return bool(
        torch.compiler.is_compiling()
        or (_dispatch_modes() and _dispatch_modes() > len(flop_counters()))
        or _transforms.is_active()
        or _saved_tensors_hooks(True)
        or _tracing_state()
    )


def _is_constant(tensor: Tensor) -> bool:
    return (
        type(tensor) in _EXACT_TYPES
        and not tensor.requires_grad
        and not tensor.is_neg()
        and not tensor.is_inference()  # autograd cannot save it
    )


def _has_no_kernel(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """No kernel takes these logits, or the reference was chosen."""
    return kernels is None


def _is_transformed(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """A transform of torch.func, or a level of forward-mode AD, is active."""
    return _transforms.is_active()


def _is_transformed_beyond_ops(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """A transform is active that the ops do not support, or one that the compiler traces, which it
    can do with plain torch only."""
    if not _transforms.is_active():
        return False
    return torch.compiler.is_compiling() or _transforms.needs_reference(options.tensors)


def _differentiates_options(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """A derivative with respect to the target or a weight is wanted."""
    return options.is_differentiated


def _is_sharded(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """The logits are a DTensor."""
    return is_dtensor(input)


def _always(input: Tensor, options: Options, kernels: Kernels | None) -> bool:
    """A compiler, a mode, a hook or a subclass of Tensor sees the registered ops."""
    return True


def _by_reference(input: Tensor, options: Options, *_: object) -> Tensor:
    import_rules_for_dtensors()
    check_csr_indices(input.shape, options)
    return _reference.loss(input, options)


def _by_autograd_function(input: Tensor, options: Options, *_: object) -> Tensor:
    import_rules_for_dtensors()  # the transform may wrap one
    return _derivatives.loss_under_transforms(input, options)


def _by_shards(input: Tensor, options: Options, *_: object) -> Tensor:
    if options.reduction == NONE:
        return _by_ops(input, options)
    # One exchange between processes counts the elements.
    total = _by_ops(input, options.undivided(SUM))
    return _reference.divided(total, input, options)


def _by_ops(input: Tensor, options: Options, *_: object) -> Tensor:
    is_saved = not torch.compiler.is_compiling() and _eager.is_recorded(input)
    return _ops.loss(input, options.savable() if is_saved else options)


# The first line that serves a call computes it. Why is in the docstring of its condition.
_TABLE: tuple[tuple[_When, _How], ...] = (
    (_is_eager, _eager.loss),
    (_has_no_kernel, _by_reference),
    (_is_transformed_beyond_ops, _by_reference),
    (_is_transformed, _by_autograd_function),
    (_differentiates_options, _by_reference),
    (_is_sharded, _by_shards),
    (_always, _by_ops),
)
