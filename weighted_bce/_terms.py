"""The terms of each loss in plain torch, which are the definition of the losses.

A loss is w [ p y' P(x) + (1 - y') N(x) ]. A term has its value, its slope and its curvature, the
first and the second derivative, all differentiable again. Each is accurate over the whole range,
relative to itself or, where its parts cancel, to these, and has its limit at infinite logits. The
reference differentiates values. Slopes and curvatures are the gradients and second derivatives of
results of the kernels.

S(x) is log(1 + exp(x)), u is sigmoid(x) and v is sigmoid(-x). csrc/losses.h has the formulas for
the kernels.
"""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_Of = Callable[[Tensor], Tensor]


class Term(NamedTuple):
    """One of the two terms, as functions of logits in float32 or float64, which they return."""

    value: _Of
    slope: _Of
    curvature: _Of


def softplus(x: Tensor) -> Tensor:
    """S(x). torch.nn.functional.softplus is x itself above 20, which is too coarse in float64."""
    return -logsigmoid(-x)


_SOFTPLUS = Term(softplus, torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))


def _mirrored(term: Term) -> Term:
    """A term at -x: what weighs negatives becomes what weighs positives."""
    return Term(lambda x: term.value(-x), lambda x: -term.slope(-x), lambda x: term.curvature(-x))


def _scaled(term: Term, factor: float) -> Term:
    """A term times a factor; 0 times an infinite value is 0."""

    def times_factor(function: _Of) -> _Of:
        if factor:
            return lambda x: factor * function(x)
        return lambda x: 0 * _limited(x).square()  # a NaN stays, in the derivative too

    return Term(*map(times_factor, term))


def _shifted(term: Term, margin: float) -> Term:
    """A term at x - margin."""
    return Term(*((lambda x, of=of: of(x - margin)) for of in term))


def _in_float64(term: Term) -> Term:
    """A term computed in float64 where the device has it, for parts that need more digits, or a
    wider range, than the result."""

    def converted(function: _Of) -> _Of:
        def result(x: Tensor) -> Tensor:
            wide = x.double() if x.device.type in ("cpu", "cuda", "meta") else x
            return function(wide).to(x.dtype)

        return result

    return Term(*map(converted, term))


# Beyond it, the terms are at their limits. That holds in float64, for exponents up to 1e300 too.
_LIMIT = 1000.0


def _limited(x: Tensor) -> Tensor:
    """x within the limit, where all parts of a term are finite: infinity times 0 is NaN.

    A NaN stays, with a derivative, so that those of a term are NaN too.
    """
    return torch.where(x.isnan(), x, x.clamp(-_LIMIT, _LIMIT))


def _focused(factor: Term, log_base: Term, gamma: float, detach: bool = False) -> Term:
    """b^gamma times a factor, right for any gamma >= 0: the power is exp(gamma log b).

    With `detach`, derivatives take the power for a constant.
    """

    def exponent(x: Tensor) -> float:
        return min(gamma, torch.finfo(x.dtype).max)

    def power(x: Tensor) -> Tensor:
        result = torch.exp(exponent(x) * log_base.value(x))
        return result.detach() if detach else result

    def value(x: Tensor) -> Tensor:
        return power(x) * factor.value(x)

    def slope(x: Tensor) -> Tensor:
        if detach:
            return power(x) * factor.slope(x)
        return power(x) * (exponent(x) * log_base.slope(x) * factor.value(x) + factor.slope(x))

    def curvature(x: Tensor) -> Tensor:
        if detach:
            return power(x) * factor.curvature(x)
        b, base, g = power(x), log_base.slope(x), exponent(x)
        # The power comes first: where it is 0, gamma^2 may be too large.
        of_base = b * g * (g * base * base + log_base.curvature(x)) * factor.value(x)
        return of_base + 2 * (b * g * base * factor.slope(x)) + b * factor.curvature(x)

    return Term(value, slope, curvature)


_LOG_U = Term(
    lambda x: -softplus(-x), lambda x: torch.sigmoid(-x), lambda x: -_SOFTPLUS.curvature(x)
)


def _focal_term(gamma: float, detach: bool = False) -> Term:
    """u^gamma S(x), with which the focal loss weighs negatives."""
    term = _focused(_SOFTPLUS, _LOG_U, gamma, detach)
    return Term(
        lambda x: torch.where(x > _LIMIT, x, term.value(_limited(x))),
        lambda x: term.slope(_limited(x)),
        lambda x: term.curvature(_limited(x)),
    )


def _bce() -> tuple[Term, Term]:
    return _mirrored(_SOFTPLUS), _SOFTPLUS


def _focal(gamma: float, alpha: float) -> tuple[Term, Term]:
    """Lin et al., "Focal Loss for Dense Object Detection" (2017). An alpha of -1 is none."""
    term = _in_float64(_focal_term(gamma))
    if alpha == -1:
        return _mirrored(term), term
    return _mirrored(_scaled(term, alpha)), _scaled(term, 1 - alpha)


def _squared_hinge() -> tuple[Term, Term]:
    def margin(x: Tensor) -> Tensor:
        return torch.where(x < -1, 0, 1 + x)

    term = Term(
        lambda x: margin(x).square(),
        lambda x: 2 * margin(x),
        lambda x: torch.where(x > -1, 2, 0 * _limited(x)),  # autograd may ask for its derivative
    )
    return _mirrored(term), term


def _poly1(epsilon: float) -> tuple[Term, Term]:
    """Leng et al., "PolyLoss" (2022): S(x) + epsilon u weighs negatives."""

    def value(x: Tensor) -> Tensor:
        return softplus(x) + epsilon * torch.sigmoid(x)

    def slope(x: Tensor) -> Tensor:
        return torch.sigmoid(x) + epsilon * _SOFTPLUS.curvature(x)

    def curvature(x: Tensor) -> Tensor:
        u, v = torch.sigmoid(x), torch.sigmoid(-x)
        return u * v + epsilon * (u * v * (v - u))

    term = _in_float64(Term(value, slope, curvature))
    return _mirrored(term), term


def _hill(lam: float, margin: float, gamma: float) -> tuple[Term, Term]:
    """Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels"
    (2021): (lam - u) u^2 weighs negatives, and the focal loss of x - margin positives."""
    rest = lam - 1.5

    def value(x: Tensor) -> Tensor:
        # A function of the smaller of u and v: otherwise the derivative that autograd makes of it
        # would be a difference of nearby numbers, such as 1 - u. At a lam of 1.5, it is 3 u^2 v^2.
        s = torch.sigmoid(torch.where(x > 0, -x, x))
        high = 0.5 - s.square() * (1.5 - s) + rest * (1 - s).square()
        return torch.where(x > 0, high, (lam - s) * s.square())

    def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, v, and 2 lam - 3 u, of which no part cancels where lam is 0 or 1.5."""
        u, v = torch.sigmoid(x), torch.sigmoid(-x)
        return u, v, torch.where(x > 0, 2 * rest + 3 * v, 2 * lam - 3 * u)

    def slope(x: Tensor) -> Tensor:
        u, v, factor = parts(x)
        return u * u * v * factor

    def curvature(x: Tensor) -> Tensor:
        u, v, factor = parts(x)
        return u * u * v * ((2 * v - u) * factor - 3 * u * v)

    positive = _shifted(_mirrored(_focal_term(gamma)), margin)
    return _in_float64(positive), _in_float64(Term(value, slope, curvature))


def _logit(m: float) -> tuple[float, float]:
    """The logit of m as a sum of two numbers: near it, the loss depends on its distance to x."""
    exact = (Decimal(m) / (1 - Decimal(m))).ln()
    return float(exact), float(exact - Decimal(float(exact)))


# torch.compiler.assume_constant_result does this; see _dtensor_import.py.
_logit._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _log1mexp(d: Tensor) -> Tensor:
    """log(1 - exp(-d)) for d > 0, in two forms: each has its digits, and so have its derivatives
    that autograd makes, on one side of 1."""
    below = d < 1
    near = torch.log(-torch.expm1(-torch.where(below, d, 1)))
    far = torch.log1p(-torch.exp(-torch.where(below, 1, d)))
    return torch.where(below, near, far)


def _clipped_term(gamma: float, m: float, detach: bool) -> Term:
    """-(u - m)^gamma log(1 - (u - m)) where u > m, else 0.

    With d the distance of x to the logit of m, b = u - m is (1 - exp(-d)) u (1 - m), a product. The
    logarithm is S(log b - log(v + m)), and v + m is 1 - b.
    """
    (m,) = {m}  # torch.compile makes constants of the numbers that it hashes
    (high, low), log_m = _logit(m), math.log(m)

    def distance(x: Tensor) -> Tensor:
        return (x - high) - low

    def log_b(x: Tensor) -> Tensor:
        return _log1mexp(distance(x)) - softplus(-x) + math.log1p(-m)

    def of_distance(x: Tensor) -> Tensor:
        """The derivative of log(1 - exp(-d))."""
        d = distance(x)
        return torch.exp(-d) / -torch.expm1(-d)

    def log_b_curvature(x: Tensor) -> Tensor:
        of_d = of_distance(x)
        return -of_d * (1 + of_d) - _SOFTPLUS.curvature(x)

    def ratio(x: Tensor) -> Tensor:
        """log(v / m)"""
        return -softplus(x) - log_m

    def value(x: Tensor) -> Tensor:
        return softplus(log_b(x) - (log_m + softplus(ratio(x))))

    def slope(x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(ratio(x))  # u v / (v + m)

    def curvature(x: Tensor) -> Tensor:
        u, v = torch.sigmoid(x), torch.sigmoid(-x)
        return slope(x) * (v - u * torch.sigmoid(-ratio(x)))

    log_base = Term(log_b, lambda x: of_distance(x) + torch.sigmoid(-x), log_b_curvature)
    term = _focused(Term(value, slope, curvature), log_base, min(gamma, 1e100), detach)

    def above(of: _Of) -> _Of:
        def result(x: Tensor) -> Tensor:
            below = distance(x) <= 1e-60  # a smaller distance is 0: its powers would overflow
            return torch.where(below, 0, of(_limited(torch.where(below, high + 1, x))))

        return result

    return Term(*map(above, term))


def _asymmetric(
    gamma_neg: float, gamma_pos: float, clip: float, detach_focus: float
) -> tuple[Term, Term]:
    """Ridnik et al., "Asymmetric Loss For Multi-Label Classification" (2021)."""
    detach = detach_focus != 0
    negative = _clipped_term(gamma_neg, clip, detach) if clip else _focal_term(gamma_neg, detach)
    return _in_float64(_mirrored(_focal_term(gamma_pos, detach))), _in_float64(negative)


# By the numbers of csrc/problem.h.
_TERMS = (_bce, _focal, _squared_hinge, _poly1, _hill, _asymmetric)


def terms_of(loss: int, parameters: Sequence[float] | None) -> tuple[Term, Term]:
    """Returns the positive and the negative term of a loss, by its number in the ops."""
    make: Callable[..., tuple[Term, Term]] = _TERMS[loss]
    return make(*parameters or ())
