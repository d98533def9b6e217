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

    leaves: tuple[Tensor, ...]  # the logits, or the input and the weight of a linear layer
    values: tuple[Tensor, ...]  # the same, outside of autograd
    target: Target
    ready: Tensor  # the target in the dtype of the logits, or sparse labels as a bool target
    nothing: SparseLabels | None  # as many rows without labels, where labels are sparse
    room: tuple[Tensor, ...]  # what the yardstick writes to; for logits as large as they are

    @property
    def logits(self) -> Tensor:
        (only,) = self.leaves
        return only

    @property
    def gradients_bytes(self) -> int:
        return sum(leaf.grad.nbytes for leaf in self.leaves if leaf.grad is not None)

    def drop_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


class Peak(NamedTuple):
    """Memory that a step on a sample needs beyond it, and what of it are the gradients."""

    bytes: int
    gradients: int


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
        setting = self.setting
        room = ready = 0 if setting.features else setting.gradient_bytes
        if setting.is_sparse:
            each = setting.gradient_bytes + room + setting.elements + setting.target_bytes
            return self.count * each
        if setting.target == "float":
            ready = 0
        return self.count * (setting.gradient_bytes + room + ready + setting.target_bytes)

    @property
    def held_bytes(self) -> int:
        """So much is in memory by now, with the gradients that earlier steps left."""
        gradients = sum(sample.gradients_bytes for sample in self._made)
        return gradients + (self.bytes if self._made else 0)

    def all(self) -> list[Sample]:
        """All samples, without gradients."""
        if not self._made:
            self._made = [make(self.setting, self.device.name) for _ in range(self.count)]
            self.device.release()
        for sample in self._made:
            sample.drop_gradients()
        return self._made

    def take(self) -> Sample:
        """The sample that was used longest ago.

        It loses its gradient only now, so that gradients, too, take turns in memory. Those of a
        linear layer can be large: all are dropped.
        """
        made = self._made or self.all()
        sample = made[self._uses % len(made)]
        self._uses += 1
        for one in made if self.setting.features else (sample,):
            one.drop_gradients()
        return sample


def make(setting: Setting, device: str = "cpu") -> Sample:
    leaves, target = setting.sample(device)
    values, nothing = tuple(leaf.detach() for leaf in leaves), None
    if isinstance(target, SparseLabels):
        ready = target.to_dense(setting.labels)
        nothing = SparseLabels(torch.zeros_like(target.crow_indices), target.col_indices[:0])
    else:
        ready = target if setting.features else target.to(leaves[0].dtype)
    room = () if setting.features else tuple(torch.empty_like(value) for value in values)
    return Sample(leaves, values, target, ready, nothing, room)
