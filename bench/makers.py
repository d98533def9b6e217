"""How the losses that are compared are computed: each for a setting, on a device."""

import logging
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_bce import (
    FusedSGD,
    SparseLabels,
    backend,
    linear_weighted_bce_with_logits,
    weighted_bce_with_logits,
)

from .settings import Setting

# Of logits, or the input and the weight of a linear layer, and a target.
LossFunction = Callable[..., Tensor]
Maker = Callable[..., LossFunction]  # for a setting, on a device


def _weight(setting: Setting, device: str) -> Tensor:
    return torch.tensor(setting.pos_weight, dtype=getattr(torch, setting.dtype), device=device)


def after_linear(make: Maker) -> Maker:
    """The loss of a linear layer's logits, where the setting has one."""

    @wraps(make)
    def of(setting: Setting, device: str, **options: Any) -> LossFunction:
        loss = make(setting, device, **options)
        if not setting.features:
            return loss
        return lambda input, weight, target: loss(F.linear(input, weight), target)

    return of


@after_linear
def alone(setting: Setting, device: str, **options: Any) -> LossFunction:
    def loss(logits: Tensor, target: Any) -> Tensor:
        return weighted_bce_with_logits(logits, target, pos_weight=setting.pos_weight, **options)

    return loss


def ours(setting: Setting, device: str, **options: Any) -> LossFunction:
    if not setting.features:
        return alone(setting, device, **options)

    def loss(input: Tensor, weight: Tensor, target: Any) -> Tensor:
        return linear_weighted_bce_with_logits(
            input, weight, target, pos_weight=setting.pos_weight, **options
        )

    return loss


def fused_step(setting: Setting, device: str) -> LossFunction:
    """Of learning rate 0, which costs the same as others: all steps see the same weight."""

    def loss(input: Tensor, weight: Tensor, target: Any) -> Tensor:
        step = FusedSGD([weight], lr=0.0)
        return ours(setting, device, fused_step=step)(input, weight, target)

    return loss


def reference(setting: Setting, device: str) -> LossFunction:
    function = ours(setting, device)

    def loss(*given: Any) -> Tensor:
        with backend("reference"):
            return function(*given)

    return loss


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
def bce(setting: Setting, device: str, weighted: bool = True) -> LossFunction:
    weight = _weight(setting, device) if weighted else None

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), pos_weight=weight
        )

    return loss


@after_linear
def scatter(setting: Setting, device: str) -> LossFunction:
    weight = _weight(setting, device)

    def loss(logits: Tensor, labels: SparseLabels) -> Tensor:
        places = labels.col_indices.view(len(logits), -1)
        target = torch.zeros_like(logits).scatter_(1, places, 1.0)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)

    return loss


def torchvision(setting: Setting, device: str) -> LossFunction:
    """The focal loss without focus, which weighs positives by alpha and negatives by 1 - alpha."""
    focal = import_module("torchvision.ops").sigmoid_focal_loss
    total = 1 + setting.pos_weight

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        alpha = setting.pos_weight / total
        mean = focal(logits, target.to(logits.dtype), alpha, gamma=0.0, reduction="mean")
        return total * mean

    return loss


def timm(setting: Setting, device: str) -> LossFunction:
    criterion = import_module("timm.loss").BinaryCrossEntropy(
        smoothing=0.0, pos_weight=_weight(setting, device)
    )
    return lambda logits, target: criterion(logits, target.to(logits.dtype))


def compiled(make: Maker, fullgraph: bool = True) -> Maker:
    def of(setting: Setting, device: str) -> LossFunction:
        torch.compiler.reset()  # what earlier settings compiled counts towards a limit
        if not fullgraph:  # much is said of each graph break
            torch._logging.set_logs(dynamo=logging.ERROR)
            warnings.filterwarnings("ignore", "Error detected in IndexPut")
        return torch.compile(make(setting, device), dynamic=False, fullgraph=fullgraph)

    return of
