"""The options of a loss: all of its arguments except the logits."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ._types import ReductionName

# The numbers of the reductions in the ops: those of torch, and one more.
REDUCTIONS = {name: number for number, name in enumerate(get_args(ReductionName))}
NONE, MEAN, SUM, BATCHMEAN = REDUCTIONS.values()

# These are the dtypes of targets that the kernels read.
KERNEL_TARGET_DTYPES = frozenset(
    {
        torch.bool,
        *(torch.uint8, torch.int8, torch.uint16, torch.int16),
        *(torch.uint32, torch.int32, torch.uint64, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    }
)


class Options(NamedTuple):
    """The arguments that every op takes after the logits, in their order.

    csrc/args.h describes them. It has one more at the end, which is reserved. A new option comes
    before it there, and is the last one here. With crow_indices the labels are sparse, and the
    target is their col_indices. first_label is the label of the first column if the logits are a
    part of a matrix, and None if they are all of it.
    """

    target: Tensor
    crow_indices: Tensor | None
    weight: Tensor | None
    pos_weight: Tensor | None
    pos_weight_value: float
    label_smoothing: float
    ignore_index: float | None
    first_label: int | None
    reduction: int
    loss: int = 0
    parameters: Sequence[float] | None = None
    normalizer: Tensor | None = None

    @classmethod
    def of(cls, arguments: Iterable[Any]) -> "Options":
        """Makes options from the arguments of an op that follow the logits.

        The last ones may be missing, since the dispatcher drops defaults. Arguments after the
        options are reserved.
        """
        return cls(**{"reduction": NONE, **dict(zip(cls._fields, arguments, strict=False))})

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.target, self.crow_indices, self.weight, self.pos_weight, self.normalizer

    @property
    def non_tensors(self) -> Sequence[Any]:
        _, _, _, _, *others, _ = self
        return others

    @classmethod
    def of_parts(cls, tensors: Iterable[Tensor | None], non_tensors: Sequence[Any]) -> "Options":
        """Makes options from `tensors` and `non_tensors` of others."""
        target, crow_indices, weight, pos_weight, normalizer = tensors
        fields: Any = (target, crow_indices, weight, pos_weight, *non_tensors, normalizer)
        return cls(*fields)

    @property
    def is_sparse(self) -> bool:
        return self.crow_indices is not None

    @property
    def is_differentiated(self) -> bool:
        """Whether a derivative with respect to the target or a weight is wanted."""
        return torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in self.tensors
        )

    def smoothed(self, y: Tensor) -> Tensor:
        """Returns y, or 1 - y, after label smoothing."""
        return y * (1 - self.label_smoothing) + self.label_smoothing / 2

    def with_tensors(self, *tensors: Tensor | None) -> "Options":
        """Replaces `tensors`."""
        return Options.of_parts(tensors, self.non_tensors)

    def undivided(self, reduction: int) -> "Options":
        """Replaces the reduction by NONE or SUM, which divide by nothing."""
        return self._replace(reduction=reduction, normalizer=None)

    def with_constant_target(self, value: float, dtype: torch.dtype) -> "Options":
        """Gives all elements the same target, in place of sparse labels."""
        target = torch.full((), value, dtype=dtype, device=self.target.device)
        return self._replace(target=target, crow_indices=None, first_label=None)

    def with_readable_target(self) -> "Options":
        """Converts a target that no kernel reads, such as one of float8, to float32."""
        if self.target.dtype in KERNEL_TARGET_DTYPES:
            return self
        ignore_index = self.ignore_index
        if ignore_index is not None:  # as the target holds it
            held = torch.tensor(ignore_index, dtype=self.target.dtype, device="cpu")
            ignore_index = held.float().item()
        return self._replace(target=self.target.float(), ignore_index=ignore_index)

    def savable(self) -> "Options":
        """Copies the tensors made under torch.inference_mode, which autograd cannot save."""
        if not any(t is not None and t.is_inference() for t in self.tensors):
            return self
        copies = (t.clone() if t is not None and t.is_inference() else t for t in self.tensors)
        return self.with_tensors(*copies)

    def save(self, ctx: Any, *others: Tensor | None, with_jvp: bool = False) -> None:
        """Keeps other tensors and the options for the backward pass of an autograd.Function.

        Args:
            ctx: the context of the function.
            others: the tensors that `saved` returns in addition to the options.
            with_jvp: whether they are also kept for the jvp of the function.
        """
        target, crow_indices, weight, pos_weight, *ctx.non_tensors, normalizer = self
        tensors = (*others, target, crow_indices, weight, pos_weight, normalizer)
        ctx.save_for_backward(*tensors)
        if with_jvp:
            ctx.save_for_forward(*tensors)

    @classmethod
    def saved(cls, ctx: Any) -> tuple["Options", list[Any]]:
        """Returns the options and the other tensors that `save` has kept."""
        *others, target, crow_indices, weight, pos_weight, normalizer = ctx.saved_tensors
        tensors = target, crow_indices, weight, pos_weight, normalizer
        return cls.of_parts(tensors, ctx.non_tensors), others


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of arithmetic and of a reduced loss: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
