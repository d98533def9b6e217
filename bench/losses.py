"""The ways to compute the loss, and what they are given."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.losses import made_up_labels
from weighted_bce import SparseLabels, weighted_bce_with_logits

OURS = "ours"
INPLACE = "ours, inplace_backward"
MASKED = "masked multiply"
TORCH = "F.bce_with_logits"
COMPILED = "torch.compile(F.bce_with_logits)"
OURS_COMPILED = "torch.compile(ours)"
SCATTER = "zeros().scatter_, F.bce_with_logits"
SPARSE = "sparse"  # a kind of target

Target = Tensor | SparseLabels
LossFunction = Callable[[Tensor, Any], Tensor]  # of logits and a target


def masked_multiply(logits: Tensor, target: Tensor, weight: float) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    loss[target.bool()] *= weight
    return loss.mean()


class Setting(NamedTuple):
    """The shape and dtypes of the logits and the target, and how rare and heavy positives are."""

    rows: int
    labels: int
    dtype: str
    target: str
    density: float
    pos_weight: float

    def sample(self, device: str = "cpu") -> tuple[Tensor, Target]:
        generator = torch.Generator(device).manual_seed(0)
        shape = self.rows, self.labels
        logits = torch.randn(shape, generator=generator, device=device)
        logits = logits.to(getattr(torch, self.dtype)).requires_grad_()
        if self.is_sparse:
            each = self.positives_per_row
            return logits, made_up_labels(self.rows, self.labels, each, generator)
        target = torch.rand(shape, generator=generator, device=device) < self.density
        return logits, target.to(getattr(torch, self.target))

    @property
    def is_sparse(self) -> bool:
        return self.target == SPARSE

    @property
    def positives_per_row(self) -> int:
        return max(1, round(self.density * self.labels))

    @property
    def scale(self) -> float:
        """Of the loss. The gradient of a mean of millions is below the smallest float16.

        As large as PyTorch's own loss takes, which multiplies it by pos_weight in float16.
        """
        if self.dtype != "float16":
            return 1.0
        return 2.0 ** math.floor(math.log2(2**15 / max(1.0, self.pos_weight)))

    @property
    def elements(self) -> int:
        return self.rows * self.labels

    @property
    def gradient_bytes(self) -> int:
        return self.elements * int(getattr(torch, self.dtype).itemsize)

    @property
    def target_bytes(self) -> int:
        if self.is_sparse:
            return 8 * (self.rows * self.positives_per_row + self.rows + 1)
        return self.elements * int(getattr(torch, self.target).itemsize)


def losses(setting: Setting, compiled: bool = True, device: str = "cpu") -> dict[str, LossFunction]:
    p = setting.pos_weight
    weight = torch.tensor(p, dtype=getattr(torch, setting.dtype), device=device)

    def scattered(logits: Tensor, labels: SparseLabels) -> Tensor:
        places = labels.col_indices.view(len(logits), -1)
        target = torch.zeros_like(logits).scatter_(1, places, 1.0)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)

    def with_torch(logits: Tensor, target: Tensor) -> Tensor:
        target = target.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)

    def ours(logits: Tensor, target: Target) -> Tensor:
        return weighted_bce_with_logits(logits, target, pos_weight=p)

    if setting.is_sparse:
        return {OURS: ours, SCATTER: scattered}
    found: dict[str, LossFunction] = {
        OURS: ours,
        INPLACE: partial(weighted_bce_with_logits, pos_weight=p, inplace_backward=True),
        MASKED: partial(masked_multiply, weight=p),
        TORCH: with_torch,
    }
    if compiled:
        torch.compiler.reset()  # what earlier settings compiled counts towards a limit
        found[COMPILED] = torch.compile(with_torch, dynamic=False, fullgraph=True)
        found[OURS_COMPILED] = torch.compile(ours, dynamic=False, fullgraph=True)
    return found


def step(function: LossFunction, target: Tensor, scale: float, logits: Tensor) -> Tensor:
    """Forward and backward, to logits.grad."""
    loss = function(logits, target)
    loss.backward(None if scale == 1 else torch.full_like(loss, scale))
    return loss.detach()
