"""The inputs of the baselines."""

from copy import deepcopy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tools.measuring import made_up_labels
from weighted_bce import SparseLabels

from .device import CPU, Device
from .settings import Setting

MOST = 256
MOST_KEPT = 2**30  # bytes of gradients whose memory weighted_bce keeps
CHUNK = 2**20  # elements that are compared with float64 at once
MOST_CHECKED = 2**24  # elements of the gradient that are compared, the first ones


class Sample(NamedTuple):
    """The inputs of one step."""

    leaves: tuple[Tensor, ...]  # the logits, or the input and the weight of a linear layer
    target: Tensor | SparseLabels
    ready: Tensor  # the target in the dtype of the logits, or sparse labels as a bool target
    outputs: tuple[Tensor, ...] = ()  # of work that computes no loss; of logits, as large as they

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
    """Equal samples that take turns, enough of them that none is still in the cache when used.

    They are made at first use: until then they need no memory.
    """

    def __init__(self, setting: Setting, device: Device = CPU) -> None:
        self.setting, self.device = setting, device
        step = setting.gradient_bytes + setting.target_bytes
        self.count = min(MOST, 1 + 2 * device.cache_bytes() // step)
        self._uses = 0

    @cached_property
    def free_bytes(self) -> int:
        """The memory that was free before they were made."""
        return self.device.free_bytes()

    @cached_property
    def all(self) -> list[Sample]:
        first = make(self.setting, self.device.name)
        self.device.release()
        return [first, *(deepcopy(first) for _ in range(self.count - 1))]

    def without_gradients(self) -> list[Sample]:
        for sample in self.all:
            sample.drop_gradients()
        return self.all

    def take(self) -> Sample:
        """Returns the sample that was used longest ago.

        It loses its gradient only now, so that gradients, too, take turns in memory. All are
        dropped where they are so large that weighted_bce would not keep the memory of all of them:
        a training loop has one. Gradients of a linear layer can be large, too.
        """
        sample = self.all[self._uses % self.count]
        self._uses += 1
        all_gradients = self.count * self.setting.gradient_bytes
        is_one_at_a_time = self.setting.features > 0 or all_gradients > MOST_KEPT
        for one in self.all if is_one_at_a_time else (sample,):
            one.drop_gradients()
        return sample


def make(setting: Setting, device: str = "cpu") -> Sample:
    generator = torch.Generator(device).manual_seed(setting.seed)
    options: dict[str, Any] = {"generator": generator, "device": device}

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(sizes, **options).mul_(scale)
        return values.to(setting.torch_dtype).requires_grad_()

    outputs: tuple[Tensor, ...] = ()
    if setting.features:
        weight = normal(setting.labels, setting.features, scale=setting.features**-0.5)
        leaves = normal(setting.rows, setting.features), weight  # logits of variance 1
    else:
        leaves = (normal(setting.rows, setting.labels),)
        outputs = (torch.empty_like(leaves[0], requires_grad=False),)
    if setting.is_sparse:
        labels = made_up_labels(setting.rows, setting.labels, setting.positives_per_row, generator)
        return Sample(leaves, labels, labels.to_dense(setting.labels), outputs)
    target = torch.rand(setting.rows, setting.labels, **options) < setting.density
    target = target.to(setting.target_dtype)
    ready = target if setting.features else target.to(setting.torch_dtype)
    return Sample(leaves, target, ready, outputs)
