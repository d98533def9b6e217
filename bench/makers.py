"""How the baselines are computed: each for a setting, on a device."""

import logging
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_bce import FusedSGD, SparseLabels, backend

from .losses import LOSSES
from .samples import Sample
from .settings import Setting

# Takes logits, or the input and the weight of a linear layer, and a target.
LossFunction = Callable[..., Tensor]
Maker = Callable[..., Any]  # makes a LossFunction, for a setting and a device


def copy(setting: Setting, device: str) -> Callable[[Sample], object]:
    return lambda sample: sample.outputs[0].copy_(sample.values[0])


def products(setting: Setting, device: str) -> Callable[[Sample], object]:
    """What a linear layer multiplies; the logits stand for their gradient."""

    def multiply(sample: Sample) -> None:
        x, weight = sample.values
        logits, *gradients = sample.outputs
        torch.mm(x, weight.t(), out=logits)
        if gradients:
            torch.mm(logits, weight, out=gradients[0])
            torch.mm(logits.t(), x, out=gradients[1])

    return multiply


def after_linear(make: Maker) -> Maker:
    """The loss is that of a linear layer's logits, where the setting has a layer."""

    @wraps(make)
    def made(setting: Setting, device: str, **options: Any) -> LossFunction:
        loss = make(setting, device, **options)
        if not setting.features:
            return loss
        return lambda input, weight, target: loss(F.linear(input, weight), target)

    return made


@after_linear
def unfused(setting: Setting, device: str, **options: Any) -> LossFunction:
    loss = LOSSES[setting.loss].ours
    return lambda x, target: loss(x, target, pos_weight=setting.pos_weight, **options)


def ours(setting: Setting, device: str, **options: Any) -> LossFunction:
    if not setting.features:
        return unfused(setting, device, **options)
    loss = LOSSES[setting.loss].of_layer
    return lambda *given: loss(*given, pos_weight=setting.pos_weight, **options)


def fused_step(setting: Setting, device: str) -> LossFunction:
    """The learning rate is 0, which costs the same: all steps see the same weight."""

    def loss(input: Tensor, weight: Tensor, target: Any) -> Tensor:
        step = FusedSGD([weight], lr=0.0)
        return ours(setting, device, fused_step=step)(input, weight, target)

    return loss


def reference(setting: Setting, device: str) -> LossFunction:
    return backend("reference")(ours(setting, device))


@after_linear
def masked(setting: Setting, device: str) -> LossFunction:
    """The question that began it all, with the target in the dtypes that torch takes."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        matrix = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), reduction="none"
        )
        matrix[target.bool()] *= setting.pos_weight
        return matrix.mean()

    return loss


@after_linear
def usual(setting: Setting, device: str, weighted: bool = True) -> LossFunction:
    function, weight = LOSSES[setting.loss].usual, None
    if weighted:
        weight = torch.tensor(setting.pos_weight, dtype=setting.torch_dtype, device=device)
    return lambda logits, target: function(logits, target.to(logits.dtype), weight)


@after_linear
def scatter(setting: Setting, device: str) -> LossFunction:
    function = usual(setting._replace(features=0), device)

    def loss(logits: Tensor, labels: SparseLabels) -> Tensor:
        places = labels.col_indices.view(len(logits), -1)
        return function(logits, torch.zeros_like(logits).scatter_(1, places, 1.0))

    return loss


def compiled(make: Maker, fullgraph: bool = True) -> Maker:
    def made(setting: Setting, device: str) -> LossFunction:
        torch.compiler.reset()  # what earlier settings compiled counts towards a limit
        if not fullgraph:  # much is said of each graph break
            torch._logging.set_logs(dynamo=logging.ERROR)
            warnings.filterwarnings("ignore", "Error detected in IndexPut")
        return torch.compile(make(setting, device), dynamic=False, fullgraph=fullgraph)

    return made
