"""Optimizers for `fused_step`, which update a linear layer in chunks of labels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from .linear._fused_optimizer import FusedOptimizer, Group, local
from .linear._tiles import HeldCalls

# The options of a parameter group that the functions of torch.optim accept.
_SHARED_OPTIONS = ("lr", "weight_decay", "maximize", "foreach", "fused")
_SGD_OPTIONS = (*_SHARED_OPTIONS, "momentum", "dampening", "nesterov")
_ADAM_OPTIONS = (
    *_SHARED_OPTIONS,
    *("eps", "amsgrad", "capturable", "differentiable", "decoupled_weight_decay"),
)


class FusedSGD(FusedOptimizer, SGD):
    """Takes the steps of torch.optim.SGD, those of a linear layer in chunks of labels.

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
        accumulate, group: the arguments, which may be changed. A copy has no group: set it again.
        grad_scale: a number above 0 that ``step()`` divides the gradients by. By default it is not
            set. Do not set it with a GradScaler, whose ``step()`` divides them itself.

    Raises:
        RuntimeError: in a backward pass, if `accumulate` others were made since the last
            ``step()`` or ``zero_grad()``; in ``step()``, if the weight, the bias or the target were
            modified since the forward pass.

    Note:
        The deferred gradient is a tensor. Sums, multiples and norms of it are computed in chunks,
        so that gradients can be accumulated, clipped by their norm, and unscaled by a GradScaler. A
        norm takes as long as computing the gradient. Any other operation on it computes the whole
        gradient and keeps it. With `group`, the gradient is that of all processes, which must all
        read it.

        On the CPU each thread updates the labels whose gradient it has computed. With `foreach`,
        `fused`, `capturable`, `differentiable` or `group`, or if the weight is not contiguous, all
        threads compute one chunk after another together, and torch's function then updates it.

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

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        accumulate: int = 1,
        group: Any = Group.NOT_GIVEN,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            accumulate=accumulate,
            group=group,
        )

    def _take_step(self) -> None:
        # In a first step that is left out on the device, torch would keep a momentum that was never
        # written (seen in 2.13).
        is_left_out = getattr(self, "found_inf", None)
        if is_left_out is not None and self._lacks_momentum() and is_left_out:
            self.zero_grad()  # as after any step
            return
        super()._take_step()

    def _lacks_momentum(self) -> bool:
        return any(
            p.grad is not None and self.state.get(p, {}).get("momentum_buffer") is None
            for group in self.param_groups
            if group["momentum"] != 0
            for p in group["params"]
        )

    def _momentum(self, group: dict[str, Any], parameter: Tensor) -> tuple[Tensor | None, bool]:
        """Returns the momentum, and whether it is still to be written for the first time."""
        if group["momentum"] == 0:
            return None, False
        known = self.state[parameter].get("momentum_buffer")
        return torch.zeros_like(parameter) if known is None else known, known is None

    def _step_by_kernel(self, group: dict[str, Any], parameter: Tensor, held: HeldCalls) -> None:
        momentum, is_first = self._momentum(group, parameter)
        held.kernels.linear_sgd_(
            *(held.calls, held.dense, local(parameter)),
            None if momentum is None else local(momentum),
            held.most_labels,
            *(float(group[name]) for name in ("lr", "momentum", "dampening", "weight_decay")),
            *(group["nesterov"], group["maximize"], is_first),
        )
        if is_first:
            self.state[parameter]["momentum_buffer"] = momentum

    def _updater(self, group: dict[str, Any], parameter: Tensor) -> Callable[[slice, Tensor], None]:
        options = {name: group[name] for name in _SGD_OPTIONS}
        buffer, is_first = self._momentum(group, parameter)
        if is_first:
            self.state[parameter]["momentum_buffer"] = buffer
        # The first momentum is the gradient, without dampening.
        is_undamped = is_first and group["dampening"] != 0

        def update(labels: slice, grad: Tensor) -> None:
            momentum = None if buffer is None else local(buffer)[labels]
            buffers = [None if is_undamped else momentum]
            found_inf = getattr(self, "found_inf", None)
            sgd([local(parameter)[labels]], [grad], buffers, **options, found_inf=found_inf)
            if momentum is not None and is_undamped:
                momentum.copy_(buffers[0])  # type: ignore[arg-type]

        return update


class FusedAdam(FusedOptimizer, Adam):
    """Takes the steps of torch.optim.Adam, those of a linear layer in chunks of labels.

    It is a `fused_step` of the layer, as `FusedSGD` is, and the weights become those of
    torch.optim.Adam, but for the last digit. Its averages take twice the memory of the weights.

    Args:
        params: parameters or groups of them, among which are the weight of the layer and its bias.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, fused: as for
            torch.optim.Adam.
        decoupled_weight_decay: whether the weight decay is that of torch.optim.AdamW.
        accumulate, group: as for `FusedSGD`.

    Attributes:
        accumulate, group, grad_scale: as for `FusedSGD`.

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

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        accumulate: int = 1,
        group: Any = Group.NOT_GIVEN,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
            accumulate=accumulate,
            group=group,
        )

    def _averages(self, group: dict[str, Any], parameter: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the averages, and how many steps there have been, which is one of the state."""
        state = self.state[parameter]
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + group["amsgrad"]]
        if not state:
            on_device = group["capturable"] or group["fused"]
            device = parameter.device if on_device else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in names:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [state[name] for name in names], state["step"]

    def _step_by_kernel(self, group: dict[str, Any], parameter: Tensor, held: HeldCalls) -> None:
        averages, steps = self._averages(group, parameter)
        mean, square, *largest = (local(tensor) for tensor in averages)
        numbers = (group["lr"], *group["betas"], group["eps"], group["weight_decay"], steps + 1)
        held.kernels.linear_adam_(
            *(held.calls, held.dense, local(parameter)),
            *(mean, square, largest[0] if largest else None),
            held.most_labels,
            *(float(number) for number in numbers),
            *(group["maximize"], group["decoupled_weight_decay"]),
        )
        steps += 1

    def _updater(self, group: dict[str, Any], parameter: Tensor) -> Callable[[slice, Tensor], None]:
        options = {name: group[name] for name in _ADAM_OPTIONS}
        tensors, count = self._averages(group, parameter)
        steps, found_inf = count.clone(), getattr(self, "found_inf", None)
        count += 1 if found_inf is None else 1 - found_inf

        def update(labels: slice, grad: Tensor) -> None:
            averages = [[local(tensor)[labels]] for tensor in tensors]
            mean, square, *largest = averages
            adam(
                [local(parameter)[labels]],
                [grad],
                mean,
                square,
                largest[0] if largest else [],
                [steps.clone()],  # it counts the step, for each chunk
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                found_inf=found_inf,
                **options,
            )

        return update
