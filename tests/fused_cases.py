"""Criteria with a fused step, and steps of any optimizer."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss
from weighted_bce.linear._deferred import DeferredGrad

ROWS, FEATURES, LABELS = 7, 12, 150


def criterion(device: str = "cpu", **options: Any) -> Any:
    torch.manual_seed(0)
    made = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, pos_weight=3.0, chunk_labels=40, device=device, **options
    )
    return made


def batch(model: Any, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    device = model.linear.weight.device
    return torch.randn(rows, FEATURES, device=device), torch.rand(rows, LABELS, device=device) < 0.1


def step(model: Any, optimizer: Optimizer, *losses: Tensor) -> None:
    for loss in losses:
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def waiting(**options: Any) -> tuple[Any, Tensor]:
    """Returns a criterion whose weight has a deferred gradient, and that gradient."""
    model = criterion(**options)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    x = x.to(model.linear.weight.dtype)
    (grad,) = torch.autograd.grad(model(x, y), model.linear.weight)
    model(x, y).backward()
    assert isinstance(model.linear.weight.grad, DeferredGrad)
    return model, grad
