"""What takes turns in a group of measurements."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_bce import SparseLabels, empty_cache, weighted_bce_with_logits

from .losses import (
    COMPILED,
    INPLACE,
    MASKED,
    OURS,
    OURS_COMPILED,
    SCATTER,
    TORCH,
    LossFunction,
    Target,
    step,
)
from .samples import Sample, Samples

COPY = "copy_ of the logits"
RELEASED = "ours, memory released"
SCALED = "ours, loss scale 65536"
BOOL = "ours, bool target"
NO_POSITIVES = "ours, no positives"
TORCH_READY = "F.bce_with_logits, float target"

LOSS_SCALE = 65536.0  # the one that torch.amp.GradScaler starts with
SMALL = (8, 16)
SMALL_STEPS = 500

# Memory at the peak beyond the samples, in gradients, of those that need more than their result.
STEP_GRADIENTS = {MASKED: 3, TORCH: 4, TORCH_READY: 3, INPLACE: 0, SCATTER: 4}
FORWARD_GRADIENTS = {MASKED: 3, TORCH: 3}


class Contender(NamedTuple):
    """`before`, which is not timed, gives the sample of a `step`, which returns its loss."""

    name: str
    before: Callable[[], Sample]
    step: Callable[[Sample], Tensor | None]
    needed_bytes: int = 0  # that any such step has to read and write
    steps: int = 1  # in one call
    scale: float = 1.0  # of the loss in backward
    memory: int = 0  # bytes that are in use at the peak, the samples and the check included


def training(functions: dict[str, LossFunction], samples: Samples) -> list[Contender]:
    """Steps of forward and backward, and copy_."""
    setting, gpu = samples.setting, samples.device.is_gpu
    gradient = setting.gradient_bytes

    def contender(name: str, of: str = "", scale: float = setting.scale) -> Contender:
        run = partial(_train, functions[of or name], scale, name == TORCH_READY)
        steady = gpu or name in (OURS, OURS_COMPILED)
        before = partial(_steady, run, samples) if steady else samples.take
        needed = 2 * gradient + (gradient if name == TORCH_READY else setting.target_bytes)
        memory = samples.bytes + (STEP_GRADIENTS.get(name, 1) + (name != OURS)) * gradient
        return Contender(name, before, run, needed, scale=scale, memory=memory)

    def released() -> Sample:
        sample = ours.before()
        empty_cache()
        return sample

    ours = contender(OURS)
    found = [_copy(samples), ours]
    if gpu:
        found.append(contender(SCALED, OURS, LOSS_SCALE))
    else:
        found.append(ours._replace(name=RELEASED, before=released))
    found.append(contender(INPLACE)._replace(before=partial(_overwritable, samples)))
    found += [contender(MASKED), contender(TORCH)]
    if setting.target != setting.dtype:
        found.append(contender(TORCH_READY, TORCH))
    return found + [contender(name) for name in functions if name in (COMPILED, OURS_COMPILED)]


def sparse(functions: dict[str, LossFunction], samples: Samples) -> list[Contender]:
    """Steps with the list of positives, the same as a bool target, and none of them."""
    setting, ours = samples.setting, functions[OURS]

    def contender(name: str, function: LossFunction, needed: int) -> Contender:
        def run(sample: Sample) -> Tensor:
            return step(function, of(name, sample), setting.scale, sample.logits)

        before = samples.take if name == SCATTER else partial(_steady, run, samples)
        memory = samples.bytes + (1 + STEP_GRADIENTS.get(name, 1)) * setting.gradient_bytes
        needed += 2 * setting.gradient_bytes
        return Contender(name, before, run, needed, scale=setting.scale, memory=memory)

    def of(name: str, sample: Sample) -> Target:
        if name == BOOL:
            return sample.ready
        return nothing if name == NO_POSITIVES else sample.target

    at = {"dtype": torch.int64, "device": samples.device.name}
    nothing = SparseLabels(torch.zeros(setting.rows + 1, **at), torch.zeros(0, **at))
    return [
        _copy(samples),
        contender(OURS, ours, setting.target_bytes),
        contender(NO_POSITIVES, ours, 0),
        contender(BOOL, ours, setting.elements),
        contender(SCATTER, functions[SCATTER], setting.target_bytes),
    ]


def _train(function: LossFunction, scale: float, ready: bool, sample: Sample) -> Tensor:
    return step(function, sample.ready if ready else sample.target, scale, sample.logits)


def _steady(run: Callable[[Sample], object], samples: Samples) -> Sample:
    """As in a loop of such steps: the last one left its gradient's memory and its loss scale.

    A GPU is still busy with it while the timed one is queued.
    """
    run(samples.take())
    return samples.take()


def _overwritable(samples: Samples) -> Sample:
    """A copy of the logits, made before others that drive it out of the cache."""
    sample = samples.take()
    for one in (sample, *(other for other in samples.all() if other is not sample)):
        one.room.copy_(one.values)
    return sample._replace(logits=sample.room.detach().requires_grad_())


def forward(functions: dict[str, LossFunction], samples: Samples) -> list[Contender]:
    """The loss alone, under no_grad, and copy_."""
    setting, gpu = samples.setting, samples.device.is_gpu

    def contender(name: str) -> Contender:
        compute = torch.no_grad()(functions[name])

        def run(sample: Sample) -> Tensor:
            return compute(sample.logits, sample.target)

        steady = gpu or name in (OURS, OURS_COMPILED)
        before = partial(_steady, run, samples) if steady else samples.take
        needed = setting.gradient_bytes + setting.target_bytes
        memory = samples.bytes + FORWARD_GRADIENTS.get(name, 0) * setting.gradient_bytes
        return Contender(name, before, run, needed, memory=memory)

    return [_copy(samples), *(contender(name) for name in functions if name != INPLACE)]


def _copy(samples: Samples) -> Contender:
    """The yardstick; like ours it runs once untimed, in its own memory and caches."""

    def copy(sample: Sample) -> None:
        sample.room.copy_(sample.values)

    before = partial(_steady, copy, samples)
    needed = 2 * samples.setting.gradient_bytes
    return Contender(COPY, before, copy, needed, memory=samples.bytes)


def small(samples: Samples, pos_weight: float | None) -> list[Contender]:
    """Many steps on few numbers: what a call costs before any arithmetic."""
    device = samples.device.name
    weight = None if pos_weight is None else torch.tensor(pos_weight, device=device)

    def contender(name: str, function: LossFunction) -> Contender:
        def many(sample: Sample) -> Tensor:
            logits, target = sample.logits, sample.target
            for _ in range(SMALL_STEPS):
                logits.grad = None
                loss = function(logits, target)
                loss.backward()
            return loss.detach()

        return Contender(name, samples.take, many, steps=SMALL_STEPS)

    return [
        contender(OURS, partial(weighted_bce_with_logits, pos_weight=pos_weight)),
        contender(TORCH, partial(F.binary_cross_entropy_with_logits, pos_weight=weight)),
    ]
