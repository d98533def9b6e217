"""Makes the functions with which the baselines compute the losses."""

import logging
import warnings
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import weighted_bce as own
from weighted_bce import FusedSGD, SparseLabels

from .losses import LOSSES
from .names import BCE, FOCAL
from .samples import Sample
from .settings import Setting

# Takes logits, or the input and the weight of a linear layer, and a target.
LossFunction = Callable[..., Tensor]
Maker = Callable[..., Any]  # makes a LossFunction, for a setting and a device


def copy(setting: Setting, device: str) -> Callable[[Sample], object]:
    return lambda sample: sample.outputs[0].copy_(sample.values[0])


def products(setting: Setting, device: str) -> Callable[[Sample], object]:
    """Computes the matrix products of a linear layer; the logits stand for their gradient."""

    def multiply(sample: Sample) -> None:
        x, weight = sample.values
        logits, *gradients = sample.outputs
        torch.mm(x, weight.t(), out=logits)
        if gradients:
            torch.mm(logits, weight, out=gradients[0])
            torch.mm(logits.t(), x, out=gradients[1])

    return multiply


def after_linear(make: Maker) -> Maker:
    """Makes the loss that of a linear layer's logits if the setting has a layer."""

    @wraps(make)
    def made(setting: Setting, device: str, **options: Any) -> LossFunction:
        loss = make(setting, device, **options)
        if not setting.features:
            return loss
        return lambda input, weight, target: loss(F.linear(input, weight), target)

    return made


def ours(setting: Setting, device: str, layer: bool = True, **options: Any) -> LossFunction:
    """Makes the loss of weighted_bce, fused with the linear layer if the setting has one."""
    bce, other = own.weighted_bce_with_logits, own.multilabel_loss_with_logits
    if layer and setting.features:
        bce, other = own.linear_weighted_bce_with_logits, own.linear_multilabel_loss_with_logits
    loss = bce if setting.loss == BCE else partial(other, loss=LOSSES[setting.loss].kind)
    return lambda *given: loss(*given, pos_weight=setting.pos_weight, **options)


unfused = after_linear(partial(ours, layer=False))


def fused_step(setting: Setting, device: str) -> LossFunction:
    """Makes a loss after whose backward pass FusedSGD is to take a step."""

    def loss(input: Tensor, weight: Tensor, target: Any) -> Tensor:
        return ours(setting, device, fused_step=fused_sgd(weight))(input, weight, target)

    return loss


def fused_sgd(weight: Tensor) -> FusedSGD:
    """Makes an optimizer with a learning rate of 0, which costs the same and keeps the weight."""
    return FusedSGD([weight], lr=0.0)


def reference(setting: Setting, device: str) -> LossFunction:
    return own.backend("reference")(ours(setting, device))


@after_linear
def masked(setting: Setting, device: str) -> LossFunction:
    """Makes the masked multiply, with the target in the dtypes that torch accepts."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        matrix = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), reduction="none"
        )
        matrix[target.bool()] *= setting.pos_weight
        return matrix.mean()

    return loss


def _pos_weight(setting: Setting, device: str) -> Tensor:
    return torch.tensor(setting.pos_weight, dtype=setting.torch_dtype, device=device)


@after_linear
def usual(setting: Setting, device: str, weighted: bool = True) -> LossFunction:
    function = LOSSES[setting.loss].usual
    weight = _pos_weight(setting, device) if weighted else None
    return lambda logits, target: function(logits, target.to(logits.dtype), pos_weight=weight)


@after_linear
def scatter(setting: Setting, device: str) -> LossFunction:
    function, weight = LOSSES[setting.loss].usual, _pos_weight(setting, device)

    def loss(logits: Tensor, labels: SparseLabels) -> Tensor:
        columns = labels.col_indices.view(len(logits), -1)
        target = torch.zeros_like(logits).scatter_(1, columns, 1.0)
        return function(logits, target, pos_weight=weight)

    return loss


def torchvision(setting: Setting, device: str) -> LossFunction:
    """Makes torchvision's focal loss; alpha and a factor give the pos_weight, gamma 0 gives BCE."""
    focal, total = import_module("torchvision.ops").sigmoid_focal_loss, 1 + setting.pos_weight
    options = {"alpha": setting.pos_weight / total, "reduction": "mean"}
    options["gamma"] = own.Focal().gamma if setting.loss == FOCAL else 0.0
    return lambda logits, target: total * focal(logits, target.to(logits.dtype), **options)


def timm(setting: Setting, device: str) -> LossFunction:
    make, weight = import_module("timm.loss").BinaryCrossEntropy, _pos_weight(setting, device)
    criterion = make(smoothing=0.0, pos_weight=weight)
    return lambda logits, target: criterion(logits, target.to(logits.dtype))


def compiled(make: Maker, fullgraph: bool = True) -> Maker:
    def made(setting: Setting, device: str) -> LossFunction:
        torch.compiler.reset()  # what earlier settings compiled counts towards a limit
        if not fullgraph:  # much is said of each graph break
            torch._logging.set_logs(dynamo=logging.ERROR)
            warnings.filterwarnings("ignore", "Error detected in IndexPut")
        return torch.compile(make(setting, device), dynamic=False, fullgraph=fullgraph)

    return made
