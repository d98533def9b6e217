"""The losses: which pair of terms is computed, and its parameters.

Each is w [ p y' P(x) + (1 - y') N(x) ] with its own terms P and N at a logit x; weight w, positive
weight p and smoothed target y' are as for `weighted_bce_with_logits`. S(x) is log(1 + exp(x)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ._numbers import checked_at_least_0, checked_finite, checked_number


class Loss:
    """What the losses share: how the ops know them."""

    _loss_id: ClassVar[int]  # its number in csrc/problem.h and _terms.py

    _parameters: Sequence[float] | None = None  # in the order of the terms


def _capped(number: float) -> float:
    """Keeps sums and products with a parameter finite; a larger exponent makes no difference."""
    return max(-1e300, min(float(number), 1e300))


@dataclass(frozen=True)
class BCE(Loss):
    """Binary cross-entropy: P(x) = S(-x) and N(x) = S(x).

    Example:
        >>> from weighted_bce import BCE
        >>> BCE()
        BCE()
    """

    _loss_id = 0


@dataclass(frozen=True)
class Focal(Loss):
    r"""The focal loss, in which elements that are nearly right count less.

    With :math:`u = \sigma(x)` and :math:`v = 1 - u`,

    .. math::
        P(x) = \alpha v^\gamma S(-x), \quad N(x) = (1 - \alpha) u^\gamma S(x)

    where both factors are 1 without alpha: Lin, Goyal, Girshick, He and Dollar, "Focal Loss for
    Dense Object Detection" (ICCV 2017). Soft targets weigh the two terms; torchvision's function
    gives soft targets other values.

    Args:
        gamma: the exponent, finite and at least 0. Default: 2.
        alpha: the factor of the positives, in [0, 1]; that of the negatives is 1 - alpha.
            Default: None, no factors.

    Raises:
        TypeError: a parameter is no number.
        ValueError: a parameter is out of its range.

    Example:
        >>> import torch
        >>> from weighted_bce import Focal, multilabel_loss_with_logits
        >>> logits, target = torch.tensor([0.0, -5.0]), torch.tensor([1, 0])
        >>> loss = multilabel_loss_with_logits(logits, target, Focal(gamma=2.0), reduction="sum")
        >>> print(f"{loss.item():.4f}")
        0.1733
    """

    gamma: float = 2.0
    alpha: float | None = None

    _loss_id = 1

    def __post_init__(self) -> None:
        checked_at_least_0("gamma", self.gamma)
        if self.alpha is not None:
            alpha = checked_number("alpha", self.alpha, " or None")
            if not 0 <= alpha <= 1:
                raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")

    @property
    def _parameters(self) -> Sequence[float]:  # type: ignore[override]
        return _capped(self.gamma), -1.0 if self.alpha is None else float(self.alpha)


@dataclass(frozen=True)
class SquaredHinge(Loss):
    r"""The squared hinge loss, exactly 0 where a logit is beyond the margin of 1.

    .. math::
        P(x) = \max(0, 1 - x)^2, \quad N(x) = \max(0, 1 + x)^2

    as in linear classifiers with very many labels: Babbar and Schölkopf, "DiSMEC: Distributed
    Sparse Machines for Extreme Multi-label Classification" (WSDM 2017). Its logits are no log-odds:
    their signs are the predictions.

    Example:
        >>> import torch
        >>> from weighted_bce import SquaredHinge, multilabel_loss_with_logits
        >>> logits, target = torch.tensor([0.5, -2.0]), torch.tensor([1, 0])
        >>> multilabel_loss_with_logits(logits, target, SquaredHinge(), reduction="sum").item()
        0.25
    """

    _loss_id = 2


@dataclass(frozen=True)
class Poly1(Loss):
    r"""Binary cross-entropy with another weight for the first power of an error.

    With :math:`u = \sigma(x)` and :math:`v = 1 - u`,

    .. math::
        P(x) = S(-x) + \epsilon v, \quad N(x) = S(x) + \epsilon u

    where S(x) is a series in the powers of u: Leng, Tan, Liu, Cubuk, Shi, Cheng and Anguelov,
    "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions" (ICLR 2022).
    Below an epsilon of 0 the two parts cancel, and errors are relative to the parts.

    Args:
        epsilon: what is added to the weight of the first power, a finite number. Default: 1.

    Raises:
        TypeError: epsilon is no number.
        ValueError: epsilon is not finite.

    Example:
        >>> import torch
        >>> from weighted_bce import Poly1, multilabel_loss_with_logits
        >>> logits, target = torch.tensor([0.0, -5.0]), torch.tensor([1, 0])
        >>> loss = multilabel_loss_with_logits(logits, target, Poly1(), reduction="sum")
        >>> print(f"{loss.item():.4f}")
        1.2066
    """

    epsilon: float = 1.0

    _loss_id = 3

    def __post_init__(self) -> None:
        checked_finite("epsilon", self.epsilon)

    @property
    def _parameters(self) -> Sequence[float]:  # type: ignore[override]
        return (_capped(self.epsilon),)


@dataclass(frozen=True)
class Hill(Loss):
    r"""The Hill loss, for labels of which some are missing: negatives far above 0 count less.

    With :math:`u = \sigma(x)`, margin m and the focal loss' positive term F,

    .. math::
        P(x) = F(x - m), \quad N(x) = (\lambda - u) u^2

    as in Zhang, Cheng, Huang, Wen, Feng, Li and Guo, "Simple and Robust Loss Design for Multi-Label
    Learning with Missing Labels" (2021). Below a lam of 1.5 the parts of N cancel, and errors are
    relative to the parts.

    Args:
        lam: a finite number; from 1.5 on, N grows with x. Default: 1.5.
        margin: what a positive's logit must exceed, a finite number. Default: 1.
        gamma: the exponent of the positives, finite and at least 0. Default: 2.

    Raises:
        TypeError: a parameter is no number.
        ValueError: a parameter is out of its range.

    Example:
        >>> import torch
        >>> from weighted_bce import Hill, multilabel_loss_with_logits
        >>> logits, target = torch.tensor([1.0, 0.0]), torch.tensor([1, 0])
        >>> loss = multilabel_loss_with_logits(logits, target, Hill(), reduction="sum")
        >>> print(f"{loss.item():.4f}")
        0.4233
    """

    lam: float = 1.5
    margin: float = 1.0
    gamma: float = 2.0

    _loss_id = 4

    def __post_init__(self) -> None:
        checked_finite("lam", self.lam)
        checked_finite("margin", self.margin)
        checked_at_least_0("gamma", self.gamma)

    @property
    def _parameters(self) -> Sequence[float]:  # type: ignore[override]
        return _capped(self.lam), _capped(self.margin), _capped(self.gamma)


@dataclass(frozen=True)
class Asymmetric(Loss):
    r"""The asymmetric loss: focal with an exponent for each term, and no loss of easy negatives.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u` and clip m,

    .. math::
        P(x) = v^{\gamma_+} S(-x), \quad N(x) = -(u - m)^{\gamma_-} \log(1 - (u - m))

    where u is above m, elsewhere N and its derivatives are exactly 0: Ridnik, Ben-Baruch, Zamir,
    Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For Multi-Label Classification" (ICCV
    2021). Soft targets weigh the two terms.

    Args:
        gamma_neg: the exponent of the negatives, finite and at least 0. Default: 4.
        gamma_pos: the exponent of the positives, finite and at least 0. Default: 1.
        clip: what is taken off a negative's probability, in [0, 1). Default: 0.05.
        detach_focus: derivatives take the powers for constants. Default: False.

    Raises:
        TypeError: a parameter is no number, or detach_focus no bool.
        ValueError: a parameter is out of its range.

    Example:
        >>> import torch
        >>> from weighted_bce import Asymmetric, multilabel_loss_with_logits
        >>> logits, target = torch.tensor([0.0, -5.0]), torch.tensor([1, 0])
        >>> loss = multilabel_loss_with_logits(logits, target, Asymmetric(), reduction="sum")
        >>> print(f"{loss.item():.4f}")
        0.3466
    """

    gamma_neg: float = 4.0
    gamma_pos: float = 1.0
    clip: float = 0.05
    detach_focus: bool = False

    _loss_id = 5

    def __post_init__(self) -> None:
        checked_at_least_0("gamma_neg", self.gamma_neg)
        checked_at_least_0("gamma_pos", self.gamma_pos)
        if not 0 <= checked_number("clip", self.clip) < 1:
            raise ValueError(f"clip must be in [0, 1), got {self.clip}")
        if not isinstance(self.detach_focus, bool):
            raise TypeError(f"detach_focus must be a bool, got {type(self.detach_focus).__name__}")

    @property
    def _parameters(self) -> Sequence[float]:  # type: ignore[override]
        gammas = _capped(self.gamma_neg), _capped(self.gamma_pos)
        return *gammas, float(self.clip), float(self.detach_focus)


_LOSSES = (BCE, Focal, SquaredHinge, Poly1, Hill, Asymmetric)
torch.serialization.add_safe_globals(list(_LOSSES))  # for torch.load, which takes weights alone


def check_loss(loss: object) -> None:
    """Raises TypeError unless this is one of the losses above."""
    if not isinstance(loss, _LOSSES):
        *names, last = (f"{kind.__name__}()" for kind in _LOSSES)
        raise TypeError(f"loss must be {', '.join(names)} or {last}, got {loss!r}")
