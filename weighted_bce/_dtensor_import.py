"""Tells whether DTensors are in use. torch.distributed.tensor takes half a second to import."""

import sys

from torch import Tensor


def import_rules_for_dtensors() -> bool:
    """Gives the ops their rules for DTensors where DTensors have been imported."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from . import _dtensor  # noqa: F401

    return True


# torch.compiler.assume_constant_result does this, but imports the compiler, which takes a second.
import_rules_for_dtensors._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_dtensor(tensor: Tensor) -> bool:
    if not import_rules_for_dtensors():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
