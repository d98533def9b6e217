"""Whether there are DTensors. torch.distributed.tensor takes half a second to import."""

import sys

from torch import Tensor


def prepare_for_dtensors() -> bool:
    """Gives the ops their rules for DTensors, if there can be any: somebody has imported them."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from . import _dtensor  # noqa: F401

    return True


# As torch.compiler.assume_constant_result does, which imports the compiler to do so: a second.
prepare_for_dtensors._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_dtensor(tensor: Tensor) -> bool:
    if not prepare_for_dtensors():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
