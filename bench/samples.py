"""What the baselines work on."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tools.measuring import made_up_labels
from weighted_bce import SparseLabels

from .device import CPU, Device
from .settings import Setting

MOST = 256
# Elements that are compared with float64 at once: in the cache of a CPU; enough to keep a GPU busy.
CHUNK, GPU_CHUNK = 2**16, 2**22
MOST_CHECKED = 2**24  # elements of the gradient that are compared, the first ones


def chunk_of(device: str) -> int:
    return CHUNK if device == "cpu" else GPU_CHUNK


class Sample(NamedTuple):
    """What one step works on."""

    leaves: tuple[Tensor, ...]  # the logits, or the input and the weight of a linear layer
    target: Tensor | SparseLabels
    ready: Tensor  # the target in the dtype of the logits, or sparse labels as a bool target
    nothing: SparseLabels | None  # as many rows without labels, where labels are sparse
    room: tuple[Tensor, ...]  # outputs of work that computes no loss; of logits, as large as they

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The leaves, outside of autograd."""
        return tuple(leaf.detach() for leaf in self.leaves)

    @property
    def gradients_bytes(self) -> int:
        return sum(leaf.grad.nbytes for leaf in self.leaves if leaf.grad is not None)

    def drop_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


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
        """What all samples take."""
        setting = self.setting
        room = 0 if setting.features else setting.gradient_bytes
        ready = 0 if setting.target == "float" else room
        if setting.is_sparse:
            ready = setting.elements
        return self.count * (setting.gradient_bytes + room + ready + setting.target_bytes)

    @property
    def held_bytes(self) -> int:
        """What is in memory by now, with the gradients that earlier steps left."""
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
    generator = torch.Generator(device).manual_seed(setting.seed)
    options: dict[str, Any] = {"generator": generator, "device": device}
    made: tuple[Tensor, ...]
    if setting.features:
        weight = torch.randn(setting.labels, setting.features, **options)
        weight *= setting.features**-0.5  # logits of variance 1
        made = torch.randn(setting.rows, setting.features, **options), weight
    else:
        made = (torch.randn(setting.rows, setting.labels, **options),)
    leaves = tuple(t.to(getattr(torch, setting.dtype)).requires_grad_() for t in made)
    room = () if setting.features else (torch.empty_like(leaves[0], requires_grad=False),)
    if setting.is_sparse:
        labels = made_up_labels(setting.rows, setting.labels, setting.positives_per_row, generator)
        nothing = SparseLabels(torch.zeros_like(labels.crow_indices), labels.col_indices[:0])
        return Sample(leaves, labels, labels.to_dense(setting.labels), nothing, room)
    target = torch.rand(setting.rows, setting.labels, **options) < setting.density
    target = target.to(setting.target_dtype)
    ready = target if setting.features else target.to(leaves[0].dtype)
    return Sample(leaves, target, ready, None, room)
