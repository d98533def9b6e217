"""The types of arguments that many functions take."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

ReductionName = Literal["none", "mean", "sum", "batchmean"]
Reduction = ReductionName | Callable[[Tensor], Tensor]
BackendName = Literal["auto", "fused", "reference"]
