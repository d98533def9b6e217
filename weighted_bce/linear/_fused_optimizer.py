"""What the optimizers of a fused step share."""

from collections.abc import Callable
from enum import Enum
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .. import _dispatch
from .._dtensor_import import is_dtensor
from .._numbers import checked_count, checked_number
from ..chained_optimizer import ChainedOptimizer
from ._deferred import deferred_grad
from ._gradient_sum import GradientSum
from ._not_compiled import not_compiled
from ._tiles import HeldCalls, held_calls


class Group(Enum):
    """The default of the argument `group`; None is a value that users pass."""

    NOT_GIVEN = "not given"


@cache
def _prepare_other_optimizers() -> None:
    """Gives other optimizers whole gradients before they change the weights."""

    def prepare(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if isinstance(optimizer, FusedOptimizer | ChainedOptimizer):  # which calls their steps
            return None
        _make_whole(optimizer)

        def prepared(argument: Any) -> Any:
            if not callable(argument):
                return argument

            @wraps(argument)
            def closure(*args: Any, **kwargs: Any) -> Any:
                result = argument(*args, **kwargs)
                _make_whole(optimizer)
                return result

            return closure

        itself, *others = args
        kwargs = {name: prepared(argument) for name, argument in kwargs.items()}
        return (itself, *map(prepared, others)), kwargs

    register_optimizer_step_pre_hook(prepare)


def _make_whole(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            deferred = deferred_grad(parameter.grad)
            if deferred is not None:
                whole = deferred.whole()
                if deferred is parameter.grad:  # and not the local part of a DTensor
                    parameter.grad = whole


class FusedOptimizer(Optimizer):
    """What the optimizers share: a step that computes deferred gradients chunk by chunk."""

    accumulate = 1
    group: Any = Group.NOT_GIVEN
    _torch_class: Any
    _grad_scale: float | Tensor | None = None

    def __init__(self, *args: Any, accumulate: int, group: Any, **options: Any) -> None:
        accumulate = checked_count("accumulate", accumulate)
        is_group = distributed.is_available() and isinstance(group, distributed.ProcessGroup)
        if not (is_group or group is None or group is Group.NOT_GIVEN):
            raise TypeError(f"group must be a process group or None, got {type(group).__name__}")
        _prepare_other_optimizers()
        super().__init__(*args, **options)
        self.accumulate, self.group = accumulate, group

    def __getstate__(self) -> dict[str, Any]:
        group = self.group if self.group is None else Group.NOT_GIVEN  # processes are not copied
        own = {"accumulate": self.accumulate, "group": group, "_grad_scale": self._grad_scale}
        return {**super().__getstate__(), **own}

    @property
    def grad_scale(self) -> float | Tensor:
        # A GradScaler multiplies the value if the attribute exists.
        if self._grad_scale is None:
            raise AttributeError("grad_scale is not set")
        return self._grad_scale

    @grad_scale.setter
    def grad_scale(self, value: float | Tensor | None) -> None:
        if isinstance(value, Tensor):  # as a GradScaler sets it
            self._refuse_grad_scale(isinstance(self._grad_scale, float))
        elif value is not None:
            value = checked_number("grad_scale", value)
            if not value > 0:
                raise ValueError(f"grad_scale must be a number above 0, got {value}")
        self._grad_scale = value

    @grad_scale.deleter
    def grad_scale(self) -> None:
        self._grad_scale = None

    def _refuse_grad_scale(self, is_used: bool) -> None:
        if is_used:
            raise ValueError(
                "grad_scale must not be set if GradScaler.step() is called, which divides the "
                f"gradients itself, got {self._grad_scale}"
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        If a gradient was deferred, all are used up: the .grad of all parameters becomes None.

        Args:
            closure: computes the loss again, as for torch.optim.Optimizer.step.

        Returns:
            What the closure returns; None without one.

        Raises:
            RuntimeError: if a tensor that a deferred gradient is computed from was modified.
            ValueError: if a GradScaler divides the gradients, and `grad_scale` would divide again.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        with torch.no_grad():
            self._take_step()
        return result

    # torch puts the hooks around a step that has none. Here they are within not_compiled, so that
    # torch.compile does not trace them.
    step = not_compiled(Optimizer.profile_hook_step(step))
    step.hooked = True  # type: ignore[attr-defined]

    def _take_step(self) -> None:
        every = [(group, p) for group in self.param_groups for p in group["params"]]
        deferred = [(g, p, grad) for g, p in every if (grad := deferred_grad(p.grad)) is not None]
        chunks = [grad.chunks() for _, _, grad in deferred]  # raises before anything has changed
        scale = self._grad_scale
        if scale is not None and not isinstance(scale, Tensor):
            is_unscaled = any(grad.gradient_sum.is_unscaled for _, _, grad in deferred)
            self._refuse_grad_scale(is_unscaled or hasattr(self, "found_inf"))
        if scale is not None:
            for _, p in every:
                if p.grad is not None:
                    p.grad.div_(scale.to(p.device) if isinstance(scale, Tensor) else scale)
        held = [self._held_calls(g, p, grad.gradient_sum) for g, p, grad in deferred]
        for _, parameter, _ in deferred:
            parameter.grad = None
        for (group, parameter, _), calls, each in zip(deferred, held, chunks, strict=True):
            if calls is not None:
                self._step_by_kernel(group, parameter, calls)
                continue
            update = self._updater(group, parameter)
            for labels, gradient in each:
                update(labels, gradient)
        # Biases change last, since deferred gradients are computed from them.
        self._grad_scale = None  # torch would divide again
        try:
            self._step_whole()
        finally:
            self._grad_scale = scale
        if deferred or scale is not None:  # a second step() would find some, or divide them again
            for _, p in every:
                p.grad = None

    def _step_whole(self) -> None:
        """Updates the parameters whose gradients are ordinary tensors."""
        step = self._torch_class.step
        if getattr(step, "hooked", False):  # the hooks run around this class's step
            step = step.__wrapped__
        step(self)

    def _held_calls(
        self, group: dict[str, Any], parameter: Tensor, gradient_sum: GradientSum
    ) -> HeldCalls | None:
        """Returns what a kernel needs for the step of a parameter, in which each thread updates
        what it has the gradient of; None if no kernel serves it."""
        others = ("foreach", "fused", "capturable", "differentiable")
        is_usual = not any(group.get(name) for name in others) and not hasattr(self, "found_inf")
        if gradient_sum.group is not None or not is_usual or _dispatch.is_observed():
            return None
        state = [t for t in self.state.get(parameter, {}).values() if isinstance(t, Tensor)]
        large = (parameter, *(t for t in state if t.dim() > 0))
        if not all(_is_served(tensor, parameter) for tensor in large):
            return None
        return held_calls(gradient_sum.calls, gradient_sum.dense)

    def _step_by_kernel(self, group: dict[str, Any], parameter: Tensor, held: HeldCalls) -> None:
        """Takes the step of a parameter by a kernel."""
        raise NotImplementedError

    def _updater(self, group: dict[str, Any], parameter: Tensor) -> Callable[[slice, Tensor], None]:
        """Begins a step of a parameter; returns a function that updates a chunk of its rows."""
        raise NotImplementedError


def _is_served(tensor: Tensor, parameter: Tensor) -> bool:
    """Tells whether the kernels can update a tensor that belongs to a parameter."""
    tensor = local(tensor)
    return tensor.is_cpu and tensor.is_contiguous() and tensor.dtype == parameter.dtype


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor, without its history."""
    tensor = tensor.detach()
    part: Any = tensor
    return part.to_local() if is_dtensor(tensor) else tensor
