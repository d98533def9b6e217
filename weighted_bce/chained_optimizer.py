"""One optimizer made of several, for code that takes one."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ChainedOptimizer(Optimizer):
    """Holds several optimizers as one, for trainers, schedulers and scalers that take one.

    It is for models whose parts are trained by optimizers of different kinds, for example an
    encoder by AdamW and a classifier with very many labels by `FusedSGD`, which needs less memory.
    Any optimizers of torch can be held.

    Args:
        optimizers: the optimizers, each with parameters of its own. They take their steps in this
            order.

    Attributes:
        optimizers: a tuple of the optimizers.
        param_groups: a list of all their parameter groups. The groups are the optimizers' own, so a
            learning rate that is set here is used.
        state: a dict with the state of each parameter that has one. The states are the optimizers'
            own.
        defaults: the default options that all optimizers have, with the values of the first.

    Raises:
        TypeError: if an optimizer is not a torch.optim.Optimizer.
        ValueError: if there are no optimizers, or two of them hold the same parameter.

    Note:
        ``step(closure)`` calls the closure once, before the first optimizer takes its step, so
        optimizers that evaluate the closure themselves, such as torch.optim.LBFGS, cannot be held.
        ``add_param_group()`` adds to the last optimizer. ``state_dict()`` has the form of any other
        optimizer's. The hooks of an optimizer are called in addition to those of this object.

    Example:
        >>> import torch
        >>> from weighted_bce import ChainedOptimizer, FusedSGD, LinearWeightedBCEWithLogitsLoss
        >>> encoder, criterion = torch.nn.Linear(32, 64), LinearWeightedBCEWithLogitsLoss(64, 5000)
        >>> criterion.fused_step = FusedSGD(criterion.parameters(), lr=0.1)
        >>> adam = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
        >>> optimizer = ChainedOptimizer([adam, criterion.fused_step])
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.001, 0.1]
    """

    optimizers: tuple[Optimizer, ...]

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        if not isinstance(optimizers, Iterable):
            raise TypeError(
                f"optimizers must be an iterable of optimizers, got {type(optimizers).__name__}"
            )
        optimizers = tuple(optimizers)
        for i, optimizer in enumerate(optimizers):
            if not isinstance(optimizer, Optimizer):
                got = f"{type(optimizer).__name__} at index {i}"
                raise TypeError(f"optimizers must be torch.optim.Optimizer objects, got {got}")
        if not optimizers:
            raise ValueError("optimizers must not be empty, got none")
        _check_different(map(_parameters, optimizers))
        shared = set.intersection(*(set(optimizer.defaults) for optimizer in optimizers))
        defaults = {name: v for name, v in optimizers[0].defaults.items() if name in shared}
        # Optimizer.__init__ would make groups and a state of its own. This makes only the hooks.
        self.__setstate__({"optimizers": optimizers, "defaults": defaults})

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers, "defaults": self.defaults}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Lets each optimizer take a step.

        Args:
            closure: computes the loss and its gradients. Default: None.

        Returns:
            What the closure returns, or None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients of all parameters, as torch.optim.Optimizer.zero_grad does."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group to the last optimizer, so that it is the last of all groups.

        Args:
            param_group: the parameters and their options, as for torch.optim.Optimizer.

        Raises:
            TypeError, ValueError: as torch.optim.Optimizer does, and if another optimizer holds one
                of the parameters.
        """
        given = param_group["params"]
        if not isinstance(given, Tensor | set):  # torch refuses a set
            given = list(given)
            param_group["params"] = given  # an iterator would be empty for torch
        tensors = [given] if isinstance(given, Tensor) else given
        new = [p[1] if isinstance(p, tuple) else p for p in tensors]
        *others, last = self.optimizers
        _check_different([*map(_parameters, others), new])
        last.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all optimizers, in the form of one optimizer's state_dict."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for optimizer in self.optimizers:
            part = optimizer.state_dict()
            state |= {first + i: values for i, values in part["state"].items()}
            for group in part["param_groups"]:
                groups.append({**group, "params": [first + i for i in group["params"]]})
            first += len(_parameters(optimizer))
        state_dict = {"state": state, "param_groups": groups}
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned.

        Args:
            state_dict: the state of optimizers of the same kinds, in the same order.

        Raises:
            ValueError: if the sizes of its parameter groups are not those of the optimizers.
        """
        state_dict = {**state_dict}
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        groups = state_dict["param_groups"]
        own, given = ([len(g["params"]) for g in these] for these in (self.param_groups, groups))
        if own != given:
            raise ValueError(
                f"state_dict must have parameter groups of the sizes {own}, got {given}"
            )
        for optimizer in self.optimizers:
            number = len(optimizer.param_groups)
            part, groups = groups[:number], groups[number:]
            keys = {i for group in part for i in group["params"]}
            state = {i: values for i, values in state_dict["state"].items() if i in keys}
            optimizer.load_state_dict({"state": state, "param_groups": part})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check_different(of_optimizers: Iterable[Iterable[Tensor]]) -> None:
    """Raises ValueError if a parameter belongs to two optimizers."""
    ids = [{*map(id, parameters)} for parameters in of_optimizers]
    if len(set().union(*ids)) < sum(map(len, ids)):
        raise ValueError("optimizers must not share parameters, got a parameter in two of them")
