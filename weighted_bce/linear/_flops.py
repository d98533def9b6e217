"""Tells torch's FlopCounterMode what the ops of a linear layer cost.

The mode sees the ops, but not the products that they consist of. As in torch's own formulas, only
products count.
"""

import sys
from math import prod
from typing import Any

import torch

from .._flop_counters import flop_counters


def _of_logits(input: Any, linear_weight: Any, *_: Any, **__: Any) -> int:
    """Counts the operations of the logits, by the shapes of an op's arguments."""
    rows_and_features: int = prod(input)
    return 2 * rows_and_features * int(linear_weight[0])


def _of_gradients(
    grad_output: Any, input: Any, linear_weight: Any, *_: Any, out_shape: Any, **__: Any
) -> int:
    """Counts the products of the logits, and of each gradient that is returned and is a matrix."""
    products = 1 + sum(len(shape) == 2 for shape in out_shape)
    return products * _of_logits(input, linear_weight)


_FORMULAS = {"linear_loss": _of_logits, "linear_grads": _of_gradients, "linear_topk": _of_logits}


def tell_counters() -> None:
    """Gives the formulas to the modes that will see the next op.

    They cannot be registered before: importing torch.utils.flop_counter imports triton, or warns
    that there is none. A mode copies the formulas when it is made.
    """
    if torch.compiler.is_compiling():
        return
    counters = flop_counters()
    if not counters:
        return
    module = sys.modules["torch.utils.flop_counter"]
    for registry in (module.flop_registry, *(counter.flop_registry for counter in counters)):
        for name, formula in _FORMULAS.items():
            op = getattr(torch.ops.weighted_bce, name)
            registry.setdefault(op, module.shape_wrapper(formula))
