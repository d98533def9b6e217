"""The formulas of other packages, as they are usually written."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def focal(
    x: Tensor, y: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss."""
    p = torch.sigmoid(x)
    p_t = p * y + (1 - p) * (1 - y)
    loss = F.binary_cross_entropy_with_logits(x, y, reduction="none") * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * y + (1 - alpha) * (1 - y)) * loss
    return reduced(loss, reduction)


def asymmetric(
    x: Tensor,
    y: Tensor,
    gamma_neg: float,
    gamma_pos: float,
    clip: float | None,
    detach: bool = False,
    reduction: str = "sum",
    eps: float = 1e-8,
) -> Tensor:
    """AsymmetricLoss of its authors, who have "sum" alone."""
    p = torch.sigmoid(x)
    negative = 1 - p
    if clip:
        negative = (negative + clip).clamp(max=1)
    loss = y * torch.log(p.clamp(min=eps)) + (1 - y) * torch.log(negative.clamp(min=eps))
    wrong = 1 - (p * y + negative * (1 - y))
    power = wrong ** (gamma_pos * y + gamma_neg * (1 - y))
    return reduced(-loss * (power.detach() if detach else power), reduction)
