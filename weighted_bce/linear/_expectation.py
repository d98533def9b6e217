"""The grad_output that backward is expected to bring to a linear layer's loss, and whether to
compute the gradients for it in the forward pass.

Gradients from the forward pass take three products of matrices, or six if backward brings another
grad_output and they are computed again. A forward pass of the loss alone leaves them to backward,
which takes four. So gradients in advance pay where more than two in three expectations are right.
What is expected never changes a result.
"""

import math
import os
from collections.abc import Callable, Hashable
from threading import Lock
from types import CodeType
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .._options import compute_dtype
from .._warning import users_frame
from ._chunks import Layer
from ._gradients import Gradients

_MOST_ENTRIES = 100  # of kinds of weights, and of call sites of a weight
_MOST_SCORE = 4
# How often a loss alone compares on a GPU, where the host waits for it. An odd number does not
# always meet the same place in an accumulation over a power of two.
_PASSES_PER_LOOK = 7
# Gradients for a grad_output outside this range could not be multiplied to those for 1.
_LEAST_EXPECTED, _MOST_EXPECTED = 1e-20, 1e20

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Place(NamedTuple):
    """Where a loss is called, and what its expected grad_output is like."""

    code: "ref[CodeType] | None"  # a program may drop its code
    instruction: int
    device: torch.device
    dtype: torch.dtype


class Expectation:
    """The grad_output that backward is expected to bring to losses of a weight at a call site."""

    def __init__(self, grad_output: Tensor) -> None:
        self.grad_output = grad_output  # 0-d, on its device
        self.is_trusted = True
        self._score = _MOST_SCORE
        self._passes = 0

    def learn(self, grad_output: Tensor) -> None:
        """Expects what came, unless it is 0, not finite or extreme. Nothing waits for a GPU."""
        size = grad_output.abs()
        is_usable = (size > _LEAST_EXPECTED) & (size < _MOST_EXPECTED)
        self.grad_output.copy_(grad_output.where(is_usable, self.grad_output))

    def count(self, is_right: bool) -> None:
        """Counts an expectation that was right, or would have been, or was not.

        At a score of 0 it is no longer trusted, and at the highest score it is again.
        """
        change = 1 if is_right else -2
        self._score = max(0, min(self._score + change, _MOST_SCORE))
        if self._score in (0, _MOST_SCORE):
            self.is_trusted = self._score == _MOST_SCORE

    def is_compared(self) -> bool:
        """Tells whether the host should compare where no gradients depend on it."""
        self._passes += 1
        return self._passes % _PASSES_PER_LOOK == 0


class _Losses:
    """What is known of the losses of one weight, or of all weights of one kind."""

    def __init__(self) -> None:
        self.expectations: dict[_Place, Expectation] = {}
        self.calls = 0
        self.last_made: Callable[[], Prediction | None] = lambda: None  # a weak reference


class Prediction:
    """One call's part of an expectation, and the gradients that the forward pass made for it.

    Only one call of a weight holds gradients that backward has not used. Meanwhile others compute
    the loss alone. But its backward pass may never come, as for a loss that is kept in a list. So
    once that of a later call has passed it by, the next call takes its gradients away and makes its
    own.

    Attributes:
        grad_output: the one to make gradients for; None if the loss should be computed alone.
        gradients: those that were made; None before, and once they are given or taken away.
    """

    def __init__(self, losses: _Losses, expectation: Expectation) -> None:
        losses.calls += 1
        self._number, self._losses, self._expectation = losses.calls, losses, expectation
        self._is_passed_by = False
        self.grad_output: Tensor | None = None
        self.gradients: Gradients | None = None
        other = losses.last_made()
        if not expectation.is_trusted or (other is not None and not other._is_passed_by):
            return
        if other is not None:
            other.gradients = None
        losses.last_made = ref(self)
        self.grad_output = expectation.grad_output.clone()

    def gradients_for(self, grad_output: Tensor | None) -> Gradients | None:
        """Gives the gradients away if they are for this grad_output, which is learned.

        It is for the first backward pass of a call.

        Args:
            grad_output: the one that came; None if backward needs other gradients than those that
                a forward pass makes.
        """
        made, self.gradients = self.gradients, None
        earlier = self._losses.last_made()
        if earlier is not None and earlier._number < self._number:
            earlier._is_passed_by = True
        return made if self._is_right(grad_output) else None

    def _is_right(self, grad_output: Tensor | None) -> bool:
        """Compares what came with what was expected, and learns it."""
        expectation, expected = self._expectation, self.grad_output
        if grad_output is None:
            expectation.count(False)
            return False
        if expected is None:
            if not grad_output.is_cpu and not expectation.is_compared():
                expectation.learn(grad_output)
                return False
            expected = expectation.grad_output
        number = grad_output.item()
        is_right = bool(number == expected.item())
        if number != 0 and math.isfinite(number):  # others say nothing about those to come
            expectation.count(is_right)
        if not is_right:
            expectation.learn(grad_output)
        return is_right


# A leaf begins with the grad_output of its kind, since a program may make a new leaf in each step.
# Other weights, such as those of a parametrization, share what is known of their kind.
_of_weights: Any = WeakIdKeyDictionary()
_of_kinds: dict[Hashable, _Losses] = {}
_lock = Lock()


def _renew_lock() -> None:
    global _lock
    _lock = Lock()


# A thread that holds the lock is not in the child of a fork. What it leaves half done is right
# there as well, since entries that are missing are made again.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def expectation_of(layer: Layer) -> Expectation:
    """Returns what is expected of the loss of this layer where the user's code calls it."""
    with _lock:
        return _find(layer)[1]


def predict(layer: Layer) -> Prediction:
    """Begins a call of the loss of this layer."""
    with _lock:
        return Prediction(*_find(layer))


def _find(layer: Layer) -> tuple[_Losses, Expectation]:
    x, weight, _ = layer
    place = _place(x)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():  # the graph has its own
        return _Losses(), Expectation(_one(place))
    kind = weight.dtype, weight.shape
    if kind not in _of_kinds:
        _keep(_of_kinds, kind, _Losses())
    losses = of_kind = _of_kinds[kind]
    if weight.is_leaf:
        if weight not in _of_weights:
            _of_weights[weight] = _Losses()
        losses = _of_weights[weight]
    expectation = losses.expectations.get(place)
    if expectation is None:
        known = of_kind.expectations.get(place)
        expectation = Expectation(_one(place) if known is None else known.grad_output.clone())
        for each in (losses, of_kind):
            _keep(each.expectations, place, expectation)
    return losses, expectation


def _place(x: Tensor) -> _Place:
    frame = users_frame()
    code, instruction = (None, 0) if frame is None else (ref(frame.f_code), frame.f_lasti)
    return _Place(code, instruction, x.device, compute_dtype(x.dtype))


def _one(place: _Place) -> Tensor:
    return torch.ones((), dtype=place.dtype, device=place.device)


def _keep(table: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Adds an entry to a table, or puts it in the place of the oldest one if the table is full."""
    while len(table) >= _MOST_ENTRIES:
        del table[next(iter(table))]
    table[key] = value
