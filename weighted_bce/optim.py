"""Optimizers for `fused_step`, which update a chunk of rows at a time."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ._dtensor_import import is_dtensor

# The options of a parameter group that the functions of torch.optim accept.
_SHARED_OPTIONS = ("lr", "weight_decay", "maximize", "foreach", "fused")
_SGD_OPTIONS = (*_SHARED_OPTIONS, "momentum", "dampening", "nesterov")
_ADAM_OPTIONS = (
    *_SHARED_OPTIONS,
    *("eps", "amsgrad", "capturable", "differentiable", "decoupled_weight_decay"),
)


class _FusedStep(torch.optim.Optimizer):
    """What the optimizers share: which rows of which parameter a gradient belongs to."""

    grad_scale: float | Tensor | None = None

    def __call__(self, labels: slice, weight_grad: Tensor, bias_grad: Tensor | None = None) -> None:
        """Updates the rows `labels` of the weight and of the bias, as `fused_step` is called."""
        parameters = [(group, p) for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for i, grad in enumerate((weight_grad, bias_grad)):
                if grad is None:
                    continue
                rows = _rows(parameters[i][1], labels) if i < len(parameters) else None
                if rows is None or rows.shape != grad.shape:
                    raise ValueError(
                        "params must be the weight of the layer and then its bias, "
                        f"got {[tuple(p.shape) for _, p in parameters]}"
                    )
                scaled = grad if self.grad_scale is None else grad / self.grad_scale
                self._update(*parameters[i], labels, rows, scaled)

    def _update(
        self, group: dict[str, Any], parameter: Tensor, labels: slice, rows: Tensor, grad: Tensor
    ) -> None:
        raise NotImplementedError


def _rows(tensor: Tensor, labels: slice) -> Tensor:
    """Returns rows of this process's part."""
    tensor = tensor.detach()
    local: Any = tensor
    return (local.to_local() if is_dtensor(tensor) else tensor)[labels]


class FusedSGD(_FusedStep, SGD):
    """Updates weights like torch.optim.SGD, but within the backward pass, as a `fused_step`.

    Each chunk of rows is updated as soon as its gradient is known. The weights are the same as from
    torch.optim.SGD with one ``step()`` after each backward. Without momentum, there is no optimizer
    state.

    Args:
        params: the weight of the linear layer and then its bias, if it has one; or groups of them,
            as for torch.optim.SGD.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, fused: as for
            torch.optim.SGD.

    Attributes:
        grad_scale: a number or 0-d tensor that gradients are divided by. Default: None. With a
            GradScaler, set it to ``scaler.get_scale()`` before ``scaler.scale(loss).backward()``.
            Steps with gradients that are not finite are not skipped.

    Note:
        Learning-rate schedulers and state_dict() work as usual. ``step()`` has nothing left to do.
        Each backward is a step, so gradients cannot be accumulated, nor clipped by their norm.

    Example:
        >>> import torch
        >>> from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss, SparseLabels
        >>> criterion = LinearWeightedBCEWithLogitsLoss(64, 5000)
        >>> criterion.fused_step = FusedSGD(criterion.linear.parameters(), lr=0.1, momentum=0.9)
        >>> criterion(torch.randn(2, 64), SparseLabels.from_lists([[1], [7]])).backward()
        >>> criterion.linear.weight.grad is None
        True
    """

    # The parameters in their first step: the momentum is then the gradient, without dampening.
    _first: frozenset[Tensor] = frozenset()

    def _update(
        self, group: dict[str, Any], parameter: Tensor, labels: slice, rows: Tensor, grad: Tensor
    ) -> None:
        state, momentum = self.state[parameter], None
        if group["momentum"] != 0:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.empty_like(parameter)
                self._first |= {parameter}
            elif labels.start == 0:  # of a new step
                self._first -= {parameter}
            momentum = _rows(state["momentum_buffer"], labels)
        buffers = [None if parameter in self._first else momentum]
        sgd(
            [rows],
            [grad],
            buffers,
            **{name: group[name] for name in _SGD_OPTIONS},
        )
        if momentum is not None and buffers[0] is not None and buffers[0] is not momentum:
            momentum.copy_(buffers[0])


class FusedAdam(_FusedStep, Adam):
    """Updates weights like torch.optim.Adam, but within the backward pass, as a `fused_step`.

    Each chunk of rows is updated as soon as its gradient is known. The weights are the same as from
    torch.optim.Adam with one ``step()`` after each backward. Its averages take twice the memory of
    the weights.

    Args:
        params: the weight of the linear layer and then its bias, if it has one; or groups of them,
            as for torch.optim.Adam.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, fused: as for
            torch.optim.Adam.
        decoupled_weight_decay: as for torch.optim.Adam.

    Attributes:
        grad_scale: a number or 0-d tensor that gradients are divided by, as for `FusedSGD`.
            Default: None.

    Note:
        The notes on `FusedSGD` apply here too.

    Example:
        >>> import torch
        >>> from weighted_bce import FusedAdam, LinearWeightedBCEWithLogitsLoss, SparseLabels
        >>> criterion = LinearWeightedBCEWithLogitsLoss(64, 5000, reduction="batchmean")
        >>> criterion.fused_step = FusedAdam(criterion.linear.parameters(), lr=1e-3)
        >>> criterion(torch.randn(2, 64), SparseLabels.from_lists([[1], [7]])).backward()
        >>> criterion.linear.weight.grad is None
        True
    """

    def _update(
        self, group: dict[str, Any], parameter: Tensor, labels: slice, rows: Tensor, grad: Tensor
    ) -> None:
        state = self.state[parameter]
        if not state:
            on_device = group["capturable"] or group["fused"]
            device = parameter.device if on_device else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + group["amsgrad"]]:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if labels.start == 0:  # of a new step; the function below counts it, for each chunk
            state["step"] += 1
        largest = "max_exp_avg_sq"
        adam(
            [rows],
            [grad],
            [_rows(state["exp_avg"], labels)],
            [_rows(state["exp_avg_sq"], labels)],
            [_rows(state[largest], labels)] if group["amsgrad"] else [],
            [state["step"] - 1],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in _ADAM_OPTIONS},
        )
