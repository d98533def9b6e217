"""What the contenders work on."""

from typing import NamedTuple

import torch
from torch import Tensor

from weighted_bce import SparseLabels

from .device import CPU, Device
from .settings import Setting, Target

MOST = 256


class Sample(NamedTuple):
    """What one step works on."""

    logits: Tensor
    values: Tensor  # the logits, outside of autograd
    target: Target
    ready: Tensor  # the target in the dtype of the logits, or sparse labels as a bool target
    nothing: SparseLabels | None  # as many rows without labels, where labels are sparse
    room: Tensor  # as large as the logits


class Samples:
    """Equal samples that take turns, so many that none is still in the cache when it is used.

    They are made at first use: until then they need no memory.
    """

    def __init__(self, setting: Setting, device: Device = CPU) -> None:
        self.setting, self.device = setting, device
        step = setting.gradient_bytes + setting.target_bytes
        self.count = min(MOST, 1 + 2 * device.cache_bytes() // step)
        self._made: list[Sample] = []
        self._uses = 0

    @property
    def bytes(self) -> int:
        if self.setting.is_sparse:
            return self.count * (2 * self.setting.gradient_bytes + self.setting.elements)
        same = self.setting.target == "float"
        each = (2 if same else 3) * self.setting.gradient_bytes + self.setting.target_bytes
        return self.count * each

    def all(self) -> list[Sample]:
        """All samples, without gradients."""
        if not self._made:
            self._made = [make(self.setting, self.device.name) for _ in range(self.count)]
            self.device.release()
        for sample in self._made:
            sample.logits.grad = None
        return self._made

    def take(self) -> Sample:
        """The sample that was used longest ago.

        It loses its gradient only now, so that gradients, too, take turns in memory.
        """
        made = self._made or self.all()
        sample = made[self._uses % len(made)]
        self._uses += 1
        sample.logits.grad = None
        return sample


def make(setting: Setting, device: str = "cpu") -> Sample:
    logits, target = setting.sample(device)
    values, nothing = logits.detach(), None
    if isinstance(target, SparseLabels):
        ready = target.to_dense(setting.labels)
        nothing = SparseLabels(torch.zeros_like(target.crow_indices), target.col_indices[:0])
    else:
        ready = target.to(logits.dtype)
    return Sample(logits, values, target, ready, nothing, torch.empty_like(values))
