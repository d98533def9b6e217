"""Tells whether DTensors and FSDP are in use. Importing either takes half a second."""

import sys

from torch import Tensor, nn


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


def is_fully_sharded(module: nn.Module) -> bool:
    """Tells whether torch.distributed.fsdp.fully_shard was called with this module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)
