"""The losses, each with its pair of terms and its parameters.

A loss is w [ p y' P(x) + (1 - y') N(x) ] with its own terms P and N at a logit x. The weight w, the
positive weight p and the smoothed target y' are as for `weighted_bce_with_logits`. S(x) stands for
log(1 + exp(x)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ._numbers import check_bool, checked_at_least_0, checked_finite, checked_number


class Loss:
    """The base class of the losses, with the number and parameters by which the ops know them."""

    _loss_id: ClassVar[int]  # its number in csrc/problem.h and _terms.py

    _parameters: Sequence[float] | None = None  # in the order of the terms


def _capped(number: float) -> float:
    """Keeps sums and products with a parameter finite; a larger exponent makes no difference."""
    return max(-1e300, min(float(number), 1e300))


@dataclass(frozen=True)
class BCE(Loss):
    r"""Selects binary cross-entropy.

    With :math:`S(x) = \log(1 + e^x)`, its terms in `multilabel_loss_with_logits` are

    .. math::
        P(x) = S(-x), \quad N(x) = S(x)

    Example:
        >>> from weighted_bce import BCE
        >>> BCE()
        BCE()
    """

    _loss_id = 0


@dataclass(frozen=True)
class Focal(Loss):
    r"""Selects the focal loss, in which elements that are nearly right count less.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u` and :math:`S(x) = \log(1 + e^x)`, its terms in
    `multilabel_loss_with_logits` are

    .. math::
        P(x) = \alpha v^\gamma S(-x), \quad N(x) = (1 - \alpha) u^\gamma S(x)

    Without `alpha`, both factors are 1. Soft targets weight the two terms, which is not what
    torchvision's function does with them. Source: Lin, Goyal, Girshick, He and Dollar, "Focal Loss
    for Dense Object Detection" (ICCV 2017).

    Args:
        gamma: the exponent :math:`\gamma`, a finite number >= 0. Default: 2.
        alpha: the factor of the positive term, in [0, 1]; the negative term has the factor
            1 - alpha. Default: None, which means no factors.

    Raises:
        TypeError: if a parameter is not a number.
        ValueError: if a parameter is out of its range.

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
    r"""Selects the squared hinge loss, which is exactly 0 where a logit is beyond the margin of 1.

    Its terms in `multilabel_loss_with_logits` are

    .. math::
        P(x) = \max(0, 1 - x)^2, \quad N(x) = \max(0, 1 + x)^2

    Linear classifiers with very many labels use it. Its logits are scores, not log-odds: a
    positive score predicts the label. Source: Babbar and Schölkopf, "DiSMEC: Distributed Sparse
    Machines for Extreme Multi-label Classification" (WSDM 2017).

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
    r"""Selects binary cross-entropy plus a multiple of the probability of the wrong answer.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u` and :math:`S(x) = \log(1 + e^x)`, its terms in
    `multilabel_loss_with_logits` are

    .. math::
        P(x) = S(-x) + \epsilon v, \quad N(x) = S(x) + \epsilon u

    S(x) is a power series in u, and :math:`\epsilon` is added to the coefficient of its first
    power. If `epsilon` is negative, the two parts cancel, and rounding errors are relative to the
    parts. Source: Leng, Tan, Liu, Cubuk, Shi, Cheng and Anguelov, "PolyLoss: A Polynomial Expansion
    Perspective of Classification Loss Functions" (ICLR 2022).

    Args:
        epsilon: :math:`\epsilon`, a finite number. Default: 1.

    Raises:
        TypeError: if `epsilon` is not a number.
        ValueError: if `epsilon` is not finite.

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
    r"""Selects the Hill loss, for data in which some true labels are missing.

    With :math:`u = \sigma(x)`, its terms in `multilabel_loss_with_logits` are

    .. math::
        P(x) = F(x - m), \quad N(x) = (\lambda - u) u^2

    where m is the margin and F is the positive term of `Focal` without alpha. Negatives with high
    logits, which may be missing positives, get a small gradient. If `lam` is below 1.5, parts of N
    or of its derivative cancel, and rounding errors are relative to the parts. Source: Zhang,
    Cheng, Huang, Wen, Feng, Li and Guo, "Simple and Robust Loss Design for Multi-Label Learning
    with Missing Labels" (2021).

    Args:
        lam: :math:`\lambda`, a finite number; N never falls as x grows if it is at least 1.5.
            Default: 1.5.
        margin: m, by which a positive's logit is shifted; a finite number. Default: 1.
        gamma: the exponent of the positive term, a finite number >= 0. Default: 2.

    Raises:
        TypeError: if a parameter is not a number.
        ValueError: if a parameter is out of its range.

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
    r"""Selects the asymmetric loss, a focal loss in which easy negatives do not count at all.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u`, :math:`S(x) = \log(1 + e^x)` and clip m, its
    terms in `multilabel_loss_with_logits` are

    .. math::
        P(x) = v^{\gamma_+} S(-x), \quad N(x) = -(u - m)^{\gamma_-} \log(1 - (u - m))

    If u is not above m, N and its derivatives are exactly 0. Soft targets weight the two terms.
    Source: Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For
    Multi-Label Classification" (ICCV 2021).

    Args:
        gamma_neg: :math:`\gamma_-`, the exponent of the negative term, a finite number >= 0.
            Default: 4.
        gamma_pos: :math:`\gamma_+`, the exponent of the positive term, a finite number >= 0.
            Default: 1.
        clip: m, which is subtracted from the probability of a negative; in [0, 1). Default: 0.05.
        detach_focus: whether derivatives treat the two powers as constants. Default: False.

    Raises:
        TypeError: if a parameter is not a number, or `detach_focus` is not a bool.
        ValueError: if a parameter is out of its range.

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
        check_bool("detach_focus", self.detach_focus)

    @property
    def _parameters(self) -> Sequence[float]:  # type: ignore[override]
        gammas = _capped(self.gamma_neg), _capped(self.gamma_pos)
        return *gammas, float(self.clip), float(self.detach_focus)


_LOSSES = (BCE, Focal, SquaredHinge, Poly1, Hill, Asymmetric)
torch.serialization.add_safe_globals(list(_LOSSES))  # torch.load refuses other classes by default


def check_loss(loss: object) -> None:
    """Raises TypeError unless `loss` is one of the losses above."""
    if not isinstance(loss, _LOSSES):
        *names, last = (f"{kind.__name__}()" for kind in _LOSSES)
        raise TypeError(f"loss must be {', '.join(names)} or {last}, got {loss!r}")
