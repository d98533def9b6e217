"""Optimizers for `fused_step`, which update a linear layer a chunk of labels at a time."""

from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.adam import adam
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.optim.sgd import sgd

from ._dtensor_import import is_dtensor
from ._numbers import checked_count
from .chained_optimizer import ChainedOptimizer
from .linear._deferred import deferred_grad
from .linear._not_compiled import not_compiled

# The options of a parameter group that the functions of torch.optim accept.
_SHARED_OPTIONS = ("lr", "weight_decay", "maximize", "foreach", "fused")
_SGD_OPTIONS = (*_SHARED_OPTIONS, "momentum", "dampening", "nesterov")
_ADAM_OPTIONS = (
    *_SHARED_OPTIONS,
    *("eps", "amsgrad", "capturable", "differentiable", "decoupled_weight_decay"),
)


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

            def closure() -> Any:
                result = argument()
                _make_whole(optimizer)
                return result

            return closure

        return tuple(map(prepared, args)), {name: prepared(a) for name, a in kwargs.items()}

    register_optimizer_step_pre_hook(prepare)


def _make_whole(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            deferred = deferred_grad(parameter.grad)
            if deferred is not None:
                whole = deferred.whole()
                parameter.grad = whole if deferred is parameter.grad else parameter.grad


class FusedOptimizer(Optimizer):
    """What the optimizers share: a step that computes deferred gradients chunk by chunk."""

    accumulate = 1
    group: Any = Group.NOT_GIVEN
    _torch_class: Any
    _grad_scale: float | Tensor | None = None

    def __init__(
        self, *args: Any, accumulate: int = 1, group: Any = Group.NOT_GIVEN, **options: Any
    ) -> None:
        accumulate = checked_count("accumulate", accumulate)
        _prepare_other_optimizers()
        if options.get("differentiable"):
            raise ValueError("differentiable must be False, got True")
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
            self._refuse_grad_scale(self._grad_scale is not None)
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

    # torch.compile calls it as it is, with its hooks; torch puts the hooks around what has none.
    step = not_compiled(Optimizer.profile_hook_step(step))
    step.hooked = True  # type: ignore[attr-defined]

    def _take_step(self) -> None:
        every = [(group, p) for group in self.param_groups for p in group["params"]]
        deferred = [(g, p, grad) for g, p in every if (grad := deferred_grad(p.grad)) is not None]
        chunks = [grad.chunks() for _, _, grad in deferred]  # raises before anything has changed
        scale = self._grad_scale
        if scale is not None and not isinstance(scale, Tensor):
            is_unscaled = any(grad.terms.is_unscaled for _, _, grad in deferred)
            self._refuse_grad_scale(is_unscaled or hasattr(self, "found_inf"))
        if scale is not None:
            for _, p in every:
                if p.grad is not None:
                    p.grad.div_(scale.to(p.device) if isinstance(scale, Tensor) else scale)
        for _, parameter, _ in deferred:
            parameter.grad = None
        for (group, parameter, _), each in zip(deferred, chunks, strict=True):
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

    def _updater(self, group: dict[str, Any], parameter: Tensor) -> Callable[[slice, Tensor], None]:
        """Begins a step of a parameter; returns a function that updates a chunk of its rows."""
        raise NotImplementedError


def _rows(tensor: Tensor, labels: slice) -> Tensor:
    """Returns rows of this process's part."""
    tensor = tensor.detach()
    local: Any = tensor
    return (local.to_local() if is_dtensor(tensor) else tensor)[labels]


class FusedSGD(FusedOptimizer, SGD):
    """Takes the steps of torch.optim.SGD, those of a linear layer chunk by chunk.

    It is a `fused_step` of the layer. The backward pass leaves a deferred gradient in the ``.grad``
    of the layer's weight, which ``step()`` computes a chunk of labels at a time, so that the whole
    gradient never exists. ``step()`` uses gradients up: every ``.grad`` is None afterwards.
    Everything else is as for torch.optim.SGD, and the weights become the same. It may hold other
    parameters too, such as those of an encoder.

    Args:
        params: parameters or groups of them, as for torch.optim.SGD. The weight of the layer is
            among them, and its bias if it has one.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, fused: as for
            torch.optim.SGD.
        accumulate: how many backward passes a step may be made of; at least 1. Their gradients are
            added up, for which the inputs and the labels of all are kept. Default: 1.
        group: the process group over which ``step()`` averages the gradient of the layer's weight,
            and the backward pass that of the bias; None for this process alone. If
            torch.distributed runs several processes, one of the two must be given.

    Attributes:
        grad_scale: a number that ``step()`` divides the gradients by. By default it is not set. Do
            not set it with a GradScaler, whose ``step()`` divides them itself.

    Raises:
        RuntimeError: in a backward pass, if `accumulate` others were made since the last
            ``step()`` or ``zero_grad()``; in ``step()``, if the weight, the bias, the input or the
            target were modified since the forward pass.

    Note:
        The deferred gradient is a tensor. Sums, multiples and norms of it are computed in chunks,
        so that gradients can be accumulated, clipped by their norm, and unscaled by a GradScaler. A
        norm takes as long as computing the gradient. Any other operation on it computes the whole
        gradient and keeps it. With `group`, the gradient is that of all processes, which must all
        read it.

        With a GradScaler, call ``scaler.step(optimizer)``. The gradient counts as finite if the
        input, the loss and the scale are. An overflow of the gradient alone is not seen.

    Example:
        >>> import torch
        >>> from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss, SparseLabels
        >>> criterion = LinearWeightedBCEWithLogitsLoss(64, 5000)
        >>> optimizer = FusedSGD(criterion.parameters(), lr=0.1, momentum=0.9)
        >>> criterion.fused_step = optimizer
        >>> criterion(torch.randn(2, 64), SparseLabels.from_lists([[1], [7]])).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    _torch_class = SGD

    def _take_step(self) -> None:
        # In a first step that is left out on the device, torch would keep a momentum that was never
        # written (seen in 2.13).
        is_left_out = getattr(self, "found_inf", None)
        if is_left_out is not None and self._lacks_momentum() and is_left_out:
            return
        super()._take_step()

    def _lacks_momentum(self) -> bool:
        return any(
            p.grad is not None and self.state.get(p, {}).get("momentum_buffer") is None
            for group in self.param_groups
            if group["momentum"] != 0
            for p in group["params"]
        )

    def _updater(self, group: dict[str, Any], parameter: Tensor) -> Callable[[slice, Tensor], None]:
        state, options = self.state[parameter], {name: group[name] for name in _SGD_OPTIONS}
        has_momentum = group["momentum"] != 0
        is_first = has_momentum and state.get("momentum_buffer") is None
        if is_first:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        # The first momentum is the gradient, without dampening.
        is_undamped = is_first and group["dampening"] != 0

        def update(labels: slice, grad: Tensor) -> None:
            momentum = _rows(state["momentum_buffer"], labels) if has_momentum else None
            buffers = [None if is_undamped else momentum]
            found_inf = getattr(self, "found_inf", None)
            sgd([_rows(parameter, labels)], [grad], buffers, **options, found_inf=found_inf)
            if momentum is not None and is_undamped:
                momentum.copy_(buffers[0])  # type: ignore[arg-type]

        return update


class FusedAdam(FusedOptimizer, Adam):
    """Takes the steps of torch.optim.Adam, those of a linear layer chunk by chunk.

    It is a `fused_step` of the layer, as `FusedSGD` is, and the weights become those of
    torch.optim.Adam. Its averages take twice the memory of the weights.

    Args:
        params: parameters or groups of them, among which are the weight of the layer and its bias.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, fused: as for
            torch.optim.Adam.
        decoupled_weight_decay: whether the weight decay is that of torch.optim.AdamW.
        accumulate, group: as for `FusedSGD`.

    Attributes:
        grad_scale: as for `FusedSGD`.

    Raises:
        RuntimeError: as for `FusedSGD`.

    Note:
        The notes on `FusedSGD` apply here too.

    Example:
        >>> import torch
        >>> from weighted_bce import FusedAdam, LinearWeightedBCEWithLogitsLoss, SparseLabels
        >>> criterion = LinearWeightedBCEWithLogitsLoss(64, 5000, reduction="batchmean")
        >>> optimizer = FusedAdam(criterion.parameters(), lr=1e-3)
        >>> criterion.fused_step = optimizer
        >>> criterion(torch.randn(2, 64), SparseLabels.from_lists([[1], [7]])).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    _torch_class = Adam

    def _updater(self, group: dict[str, Any], parameter: Tensor) -> Callable[[slice, Tensor], None]:
        state, options = self.state[parameter], {name: group[name] for name in _ADAM_OPTIONS}
        found_inf = getattr(self, "found_inf", None)
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + group["amsgrad"]]
        if not state:
            on_device = group["capturable"] or group["fused"]
            device = parameter.device if on_device else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in names:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        steps = state["step"].clone()  # adam() counts the step, for each chunk
        state["step"] += 1 if found_inf is None else 1 - found_inf

        def update(labels: slice, grad: Tensor) -> None:
            averages = [[_rows(state[name], labels)] for name in names]
            mean, square, *largest = averages
            adam(
                [_rows(parameter, labels)],
                [grad],
                mean,
                square,
                largest[0] if largest else [],
                [steps.clone()],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                found_inf=found_inf,
                **options,
            )

        return update
