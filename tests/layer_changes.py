"""Ways in which the layer of a criterion becomes another one than torch.nn.Linear."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .linear_cases import FEATURES, LABELS


class Doubled(nn.Linear):
    """Subclasses the layer and has another forward."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class CalledTwice(nn.Linear):
    """Subclasses the layer and has another __call__."""

    def __call__(self, input: Tensor) -> Any:
        return super().__call__(input) + super().__call__(input)


def double_first(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(2 * argument for argument in arguments)


def double_last(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2 * output


def double_gradients(
    module: nn.Module, gradients: tuple[Tensor, ...], _: object = None
) -> tuple[Tensor, ...]:
    return tuple(2 * gradient for gradient in gradients)


def subclassed(layer: Any) -> Any:
    other = Doubled(FEATURES, LABELS)
    other.load_state_dict(layer.state_dict())
    return other


def another_call(layer: Any) -> Any:
    other = CalledTwice(FEATURES, LABELS)
    other.load_state_dict(layer.state_dict())
    return other


def wrapped(layer: Any) -> Any:
    return nn.Sequential(nn.Tanh(), layer)


def replaced_forward(layer: Any) -> Any:
    forward = layer.forward
    layer.forward = lambda input: forward(input) * 2
    return layer


def scripted(layer: Any) -> Any:
    return torch.jit.script(wrapped(layer))


def pre_hook(layer: Any) -> Any:
    layer.register_forward_pre_hook(double_first)
    return layer


def hook(layer: Any) -> Any:
    layer.register_forward_hook(double_last)
    return layer


def backward_pre_hook(layer: Any) -> Any:
    layer.register_full_backward_pre_hook(double_gradients)
    return layer


def backward_hook(layer: Any) -> Any:
    layer.register_full_backward_hook(double_gradients)
    return layer


def old_weight_norm(layer: Any) -> Any:
    nn.utils.weight_norm(layer)
    with torch.no_grad():  # the weight is stale until the next call
        layer.weight_g.mul_(2)
    return layer


def old_spectral_norm(layer: Any) -> Any:
    return nn.utils.spectral_norm(layer)


def pruned(layer: Any) -> Any:
    prune.random_unstructured(layer, "weight", 0.5)
    with torch.no_grad():  # the weight is stale until the next call
        layer.weight_orig.mul_(2)
    return layer


def hooked_by_accelerate(layer: Any) -> Any:
    hooks = pytest.importorskip("accelerate.hooks")

    class Half(hooks.ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return (args[0] / 2,), kwargs

    hooks.add_hook_to_module(layer, Half())
    return layer


def quantised(layer: Any) -> Any:
    model = nn.Sequential(layer)
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})[0]


WITH_GRADIENTS: list[Callable[[Any], Any]] = [
    *(subclassed, another_call, wrapped, replaced_forward, scripted),
    *(pre_hook, hook, backward_pre_hook, backward_hook),
    *(old_weight_norm, old_spectral_norm, pruned, hooked_by_accelerate),
]
