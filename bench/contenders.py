"""What takes turns in a group of measurements."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.losses import LossFunction
from weighted_bce import empty_cache, weighted_bce_with_logits

from .losses import COMPILED, INPLACE, MASKED, OURS, TORCH, Setting, step

COPY = "copy_ of the logits"
RELEASED = "ours, memory released"
TORCH_READY = "F.bce_with_logits, float target"

SMALL = (8, 16)
SMALL_STEPS = 500


class Contender(NamedTuple):
    """`before`, which is not timed, gives the logits of a `step`, which returns its loss."""

    name: str
    before: Callable[[], Tensor]
    step: Callable[[Tensor], Tensor | None]
    needed_bytes: int = 0  # that any such step has to read and write
    steps: int = 1  # in one call


def training(setting: Setting, functions: dict[str, LossFunction]) -> list[Contender]:
    """Steps of forward and backward, and copy_."""
    logits, target = setting.sample()
    ready = target.to(logits.dtype)
    scratch = torch.empty_like(logits, requires_grad=False)
    steps = {n: partial(step, f, target, setting.scale) for n, f in functions.items()}

    def steady() -> Tensor:
        """As in a loop of such steps: the last one left its gradient's memory."""
        steps[OURS](logits)
        logits.grad = None
        return logits

    def released() -> Tensor:
        steady()
        empty_cache()
        return logits

    def overwritable() -> Tensor:
        return scratch.copy_(logits.detach()).detach().requires_grad_()

    def contender(name: str, before: Callable[[], Tensor] = lambda: logits) -> Contender:
        return Contender(name, before, steps[name], 2 * logits.nbytes + target.nbytes)

    found = [_copy(logits, scratch), contender(OURS, steady)]
    found.append(contender(OURS, released)._replace(name=RELEASED))
    found += [contender(INPLACE, overwritable), contender(MASKED), contender(TORCH)]
    if ready.dtype != target.dtype:
        with_ready = partial(step, functions[TORCH], ready, setting.scale)
        needed = 2 * logits.nbytes + ready.nbytes
        found.append(Contender(TORCH_READY, lambda: logits, with_ready, needed))
    return found + [contender(name) for name in functions if name == COMPILED]


def forward(setting: Setting, functions: dict[str, LossFunction]) -> list[Contender]:
    """The loss alone, under no_grad, and copy_."""
    logits, target = setting.sample()

    def contender(name: str) -> Contender:
        compute = torch.no_grad()(functions[name])

        def evaluate(logits: Tensor) -> Tensor:
            return compute(logits, target)

        def steady() -> Tensor:
            if name == OURS:
                evaluate(logits)
            return logits

        return Contender(name, steady, evaluate, logits.nbytes + target.nbytes)

    names = [name for name in functions if name != INPLACE]
    return [_copy(logits, torch.empty_like(logits)), *map(contender, names)]


def _copy(logits: Tensor, scratch: Tensor) -> Contender:
    """The yardstick; like ours it runs once untimed, in its own memory and caches."""
    source = logits.detach()

    def copy(_: Tensor) -> None:
        scratch.copy_(source)

    def steady() -> Tensor:
        scratch.copy_(source)
        return logits

    return Contender(COPY, steady, copy, 2 * logits.nbytes)


def small(pos_weight: float | None) -> list[Contender]:
    """Many steps on few numbers: what a call costs before any arithmetic."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SMALL, generator=generator).requires_grad_()
    target = (torch.rand(SMALL, generator=generator) < 0.1).float()
    weight = None if pos_weight is None else torch.tensor(pos_weight)

    def contender(name: str, function: LossFunction) -> Contender:
        def many(logits: Tensor) -> Tensor:
            for _ in range(SMALL_STEPS):
                logits.grad = None
                loss = function(logits, target)
                loss.backward()
            return loss.detach()

        return Contender(name, lambda: logits, many, steps=SMALL_STEPS)

    return [
        contender(OURS, partial(weighted_bce_with_logits, pos_weight=pos_weight)),
        contender(TORCH, partial(F.binary_cross_entropy_with_logits, pos_weight=weight)),
    ]
