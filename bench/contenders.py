"""What takes turns in a group of measurements."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from weighted_bce import empty_cache

from .losses import NAMES, Loss, given, step
from .makers import LossFunction
from .names import COPY, FORWARD, PRODUCTS, STEP
from .samples import Sample, Samples
from .settings import Setting

# A call is as many steps as make so many elements, so that the clock is no part of it.
ELEMENTS, MOST_STEPS = 2**17, 500
WARM = 2**22  # elements up to which each timed step follows an untimed one of its kind


class Contender(NamedTuple):
    """`before`, which is not timed, gives the sample of a `step`, which returns its loss.

    `step` is a call of several steps, `one_step` is one of these.
    """

    key: str
    before: Callable[[], Sample]
    step: Callable[[Sample], Tensor | None]
    one_step: Callable[[Sample], Tensor | None]
    needed_bytes: int  # that any such step has to read and write; 0 for linear layers
    loss: Loss | None = None  # None: the yardstick
    steps: int = 1  # in one call
    memory: int = 0  # bytes that are in use at the peak, the samples and the check included

    @property
    def name(self) -> str:
        return NAMES[self.key]


class Group(NamedTuple):
    """Contenders that are compared with one another."""

    setting: Setting
    pass_: str
    contenders: list[Contender]
    graphs: bool = False  # whether each is a CUDA graph

    def __str__(self) -> str:
        what = "Training step" if self.pass_ == STEP else "Forward alone"
        return f"{what}{', CUDA graphs' * self.graphs}: {self.setting}"


def group(pass_: str, losses: Iterable[Loss], samples: Samples) -> Group:
    """The yardstick, and these losses.

    Where a call is many steps, a loss scale cannot change from one to the next.
    """
    fitting = (loss for loss in losses if steps_of(samples.setting) == 1 or not loss.scale_before)
    chosen = [_contender(pass_, loss, samples) for loss in fitting]
    first = _products(pass_, samples) if samples.setting.features else _copy(samples)
    return Group(samples.setting, pass_, [first, *chosen])


def steps_of(setting: Setting) -> int:
    return max(1, min(MOST_STEPS, ELEMENTS // setting.elements))


def loss_scale(loss: Loss, setting: Setting) -> float:
    """The gradient of a mean of millions is below the smallest float16.

    As large as the others take, which multiply it by pos_weight, or 1 + pos_weight, in float16.
    """
    if loss.loss_scale != 1 or setting.dtype != "float16":
        return loss.loss_scale
    return float(2.0 ** math.floor(math.log2(2**15 / (1 + setting.pos_weight))))


def work(pass_: str, loss: Loss, setting: Setting, device: str) -> Callable[[Sample], Tensor]:
    """A step, or a forward pass."""
    function, target = loss.make(setting, device), given(loss, setting)
    if pass_ == FORWARD:
        return partial(_forward, function, target)
    return partial(_train, function, target, loss_scale(loss, setting))


def _forward(function: LossFunction, target: str, sample: Sample) -> Tensor:
    with torch.no_grad():
        return function(*sample.leaves, getattr(sample, target))


def _train(function: LossFunction, target: str, scale: float, sample: Sample) -> Tensor:
    return step(function, getattr(sample, target), scale, *sample.leaves)


def _contender(pass_: str, loss: Loss, samples: Samples) -> Contender:
    setting, device = samples.setting, samples.device
    run = work(pass_, loss, setting, device.name)
    is_layer = setting.features > 0
    warm = device.is_gpu or loss.compiles or is_layer or setting.elements <= WARM
    way = "steady" if warm and loss.before == "take" else loss.before
    # A second step would find no logits, or the loss scale of the first.
    steps = 1 if way == "overwritable" or loss.scale_before else steps_of(setting)
    earlier = run
    if loss.scale_before:
        earlier = work(pass_, loss._replace(loss_scale=loss.scale_before), setting, device.name)
    gradient = setting.gradient_bytes
    matrices = loss.gradients[pass_ == FORWARD] + is_layer  # those as large as the logits
    if is_layer and loss.chunks:
        matrices = 0
    target = {
        "target": setting.target_bytes,
        "ready": setting.elements if setting.is_sparse else gradient,
        "nothing": 0,
    }
    return Contender(
        loss.key,
        partial(_BEFORE[way], earlier, samples),
        partial(_repeated, run, steps),
        run,
        0 if is_layer else (1 + (pass_ == STEP)) * gradient + target[loss.given],
        loss,
        steps,
        samples.bytes + matrices * setting.logits_bytes + (pass_ == STEP) * gradient,
    )


def _repeated(run: Callable[[Sample], Tensor], steps: int, sample: Sample) -> Tensor:
    for _ in range(steps - 1):
        run(sample)
        sample.drop_gradients()
    return run(sample)


def _take(run: Callable[[Sample], object], samples: Samples) -> Sample:
    return samples.take()


def _steady(run: Callable[[Sample], object], samples: Samples) -> Sample:
    """As in a loop of such steps: the last one left its gradient's memory and its loss scale.

    A GPU is still busy with it while the timed one is queued.
    """
    run(samples.take())
    return samples.take()


def _released(run: Callable[[Sample], object], samples: Samples) -> Sample:
    """The page faults of fresh memory count."""
    sample = _steady(run, samples)
    empty_cache()
    return sample


def _overwritable(run: Callable[[Sample], object], samples: Samples) -> Sample:
    """A copy of the logits, made before others that drive it out of the cache."""
    sample = samples.take()
    for one in (sample, *(other for other in samples.all() if other is not sample)):
        one.room[0].copy_(one.values[0])
    return sample._replace(leaves=(sample.room[0].detach().requires_grad_(),))


_BEFORE = {
    "take": _take,
    "steady": _steady,
    "released": _released,
    "overwritable": _overwritable,
}


def _copy(samples: Samples) -> Contender:
    """The yardstick; like ours it runs once untimed, in its own memory and caches."""

    def once(sample: Sample) -> None:
        sample.room[0].copy_(sample.values[0])

    def copy(sample: Sample) -> None:
        for _ in range(steps):
            sample.room[0].copy_(sample.values[0])

    setting = samples.setting
    steps, needed = steps_of(setting), 2 * setting.gradient_bytes
    before = partial(_steady, copy, samples)
    return Contender(COPY, before, copy, once, needed, None, steps, samples.bytes)


def _products(pass_: str, samples: Samples) -> Contender:
    """The yardstick of linear layers: what they multiply, to memory that is there already.

    The logits stand for their gradient.
    """
    setting = samples.setting
    outputs = 1 if pass_ == FORWARD else 3
    steps = steps_of(setting)

    def multiply(sample: Sample) -> None:
        x, weight = sample.values
        logits, *gradients = sample.room
        for _ in range(steps):
            torch.mm(x, weight.t(), out=logits)
            if gradients:
                torch.mm(logits, weight, out=gradients[0])
                torch.mm(logits.t(), x, out=gradients[1])

    def before() -> Sample:
        sample = samples.take()
        x, weight = sample.values
        room = x.new_empty(setting.rows, setting.labels), *map(torch.empty_like, (x, weight))
        sample = sample._replace(room=room[:outputs])
        multiply(sample)
        return sample

    memory = samples.bytes + setting.logits_bytes + (pass_ == STEP) * setting.gradient_bytes
    return Contender(PRODUCTS, before, multiply, multiply, 0, None, steps, memory)
