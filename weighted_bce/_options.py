"""The options of a loss: what it is made of besides the logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The reductions as the ops number them: torch's own numbers, and one more.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3}
NONE, MEAN, SUM, BATCHMEAN = REDUCTIONS.values()


class Options(NamedTuple):
    """What the loss is made of besides the logits, in the order in which the ops take it.

    csrc/ops.cpp says what each is. With crow_indices the target is sparse: col_indices.
    """

    target: Tensor
    crow_indices: Tensor | None
    weight: Tensor | None
    pos_weight: Tensor | None
    pos_weight_value: float
    label_smoothing: float
    ignore_index: float | None
    first_label: int | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.target, self.crow_indices, self.weight, self.pos_weight

    @property
    def is_sparse(self) -> bool:
        return self.crow_indices is not None

    def with_target(self, value: float, dtype: torch.dtype) -> "Options":
        """With the same target for all elements, in place of sparse ones."""
        target = torch.full((), value, dtype=dtype, device=self.target.device)
        return self._replace(target=target, crow_indices=None, first_label=None)


TENSORS = 4  # of the options, the first ones


def unpacked(arguments: Sequence[Any]) -> tuple[Options, int]:
    """Returns the options and the reduction from what an op takes after the logits.

    Raises:
        NotImplementedError: if the arguments name another loss than binary cross-entropy.
    """
    count = len(Options._fields)
    reduction = arguments[count] if len(arguments) > count else NONE
    loss = arguments[count + 1] if len(arguments) > count + 1 else 0
    if loss:
        raise NotImplementedError(
            "of another loss than binary cross-entropy, torch.ops.weighted_bce has the value and "
            f"the gradient, but neither transforms, nor DTensors, nor derivatives, got loss {loss}"
        )
    return Options(*arguments[:count]), reduction


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of a reduced loss: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
