"""The gradients of a linear layer."""

from typing import NamedTuple

from torch import Tensor


class Gradients(NamedTuple):
    """The gradients of a layer's tensors; None for those that are not needed."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
