"""The layer of a module whose forward may be another one than that of torch.nn.Linear.

The passes over chunks of labels read the weight and the bias of the layer and do not call it. If
that would not give the layer's own logits, its forward counts: it computes all of them.
"""

from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .._checks import Target, checked_named_reduction, checked_options
from .._dtensor_import import is_fully_sharded
from .._options import NONE, compute_dtype
from .._warning import warn
from ..losses import Loss
from . import _rows
from ._stepped import Step
from ._unchunked import loss_of_all_logits

if TYPE_CHECKING:
    from ._linear_loss import LinearLoss

_FORWARD = nn.Linear.forward  # that of torch: a program may replace it later


def is_plain(layer: nn.Module) -> bool:
    """Tells whether the layer multiplies by its weight, adds its bias, and does nothing else.

    A parametrized layer is plain: torch computes its weight when it is read.
    """
    return _difference(layer) is None


def _difference(layer: nn.Module) -> str | None:
    """Says what distinguishes the layer from torch.nn.Linear; None if nothing does."""
    kind = type(layer)
    if getattr(kind, "forward", None) is not _FORWARD:
        return f"the forward of {kind.__module__}.{kind.__qualname__}"
    if kind.__call__ is not nn.Module.__call__:
        return f"the __call__ of {kind.__module__}.{kind.__qualname__}"
    if "forward" in layer.__dict__:
        return "a forward that was set later"
    hooks = (
        *layer._forward_pre_hooks.values(),
        *layer._forward_hooks.values(),
        *layer._backward_pre_hooks.values(),
        *layer._backward_hooks.values(),
    )
    names = [_name(hook) for hook in hooks if not _only_places(hook)]
    return f"hooks ({', '.join(names)})" if names else None


def _name(hook: object) -> str:
    return getattr(hook, "__name__", None) or type(hook).__name__


def _only_places(hook: object) -> bool:
    """Tells whether a hook, of torch.distributed.tensor.parallel, only distributes tensors."""
    module = getattr(hook, "__module__", None) or ""
    return module.startswith("torch.distributed.tensor.")


def own_logits(layer: nn.Module, input: Tensor, step: Step | None = None) -> Tensor:
    """Returns the logits that the layer's own forward computes.

    Raises:
        TypeError: if the layer is no module, or sharded alone, if there is a step, which changes
            plain layers only, or if the layer does not return a tensor.
    """
    if not isinstance(layer, nn.Module):  # None may be assigned
        raise TypeError(f"linear must be a torch.nn.Module, got {type(layer).__name__}")
    if is_fully_sharded(layer):
        raise TypeError(
            "linear must not be wrapped by fully_shard alone: wrap the criterion, not its layer"
        )
    what = _difference(layer)
    if step is not None:
        raise TypeError(
            f"linear must be a plain torch.nn.Linear with fused_step, got {what}: "
            "merge or remove it, or set fused_step to None"
        )
    _warn_once(f"all logits are held, because linear is not a plain torch.nn.Linear: it has {what}")
    logits: object = layer(input)
    if not isinstance(logits, Tensor):
        raise TypeError(f"linear must return a torch.Tensor, got {type(logits).__name__}")
    return logits


def own_loss(
    criterion: "LinearLoss",
    input: Tensor,
    target: Target,
    weight: Tensor | None,
    normalizer: float | Tensor | None,
    loss: Loss,
) -> Tensor:
    """Returns the loss of the logits that the layer's own forward computes.

    Raises:
        TypeError, ValueError: as `own_logits` and `linear_multilabel_loss_with_logits` do.
    """
    reduction = checked_named_reduction(criterion.reduction)
    logits = own_logits(criterion.linear, input, criterion.fused_step)
    if reduction == NONE:  # losses in half precision would be rounded before they are summed
        logits = logits.to(compute_dtype(logits.dtype))
    rows = _rows.as_rows(logits)
    options = checked_options(
        logits,
        target,
        weight,
        criterion.pos_weight,
        criterion.label_smoothing,
        criterion.ignore_index,
        reduction,
        loss,
        normalizer,
        logits_name="the logits of linear",
        rows=rows,
    )
    of_rows = loss_of_all_logits(rows, _rows.of_options(options, logits.shape[:-1]))
    return _rows.restored(of_rows, logits, reduction)


def _warn_once(message: str) -> None:
    _warn_if_new(message)


# torch.compile calls it while it traces. torch.compiler.assume_constant_result would do the same,
# but imports the compiler.
_warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _warn_if_new(message: str) -> None:
    warn(message, UserWarning)
