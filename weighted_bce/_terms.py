"""The terms of each loss in plain torch: the formulas that the package and its tests start from.

A loss is w [ p y' P(x) + (1 - y') N(x) ]. A term has its value, its slope and its curvature, the
first and the second derivative, all differentiable again. Each is accurate in relative terms over
the whole range, and has its limit at infinite logits. The reference differentiates values; slopes
and curvatures serve gradients and second derivatives of what kernels computed.

S(x) is log(1 + exp(x)), u is sigmoid(x) and v is sigmoid(-x). csrc/losses.h has the formulas for
the kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import logsigmoid


class Term(Protocol):
    """One of the two terms. x is of any shape, float32 or float64, and so are the results."""

    def value(self, x: Tensor) -> Tensor: ...
    def slope(self, x: Tensor) -> Tensor: ...
    def curvature(self, x: Tensor) -> Tensor: ...


def softplus(x: Tensor) -> Tensor:
    """S(x). torch.nn.functional.softplus is x itself above 20, which is too coarse in float64."""
    return -logsigmoid(-x)


class Softplus:
    """S(x), with which binary cross-entropy weighs negatives."""

    def value(self, x: Tensor) -> Tensor:
        return softplus(x)

    def slope(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def curvature(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)


class FocalTerm:
    """u^gamma S(x), with which the focal loss weighs negatives.

    The power is exp(-gamma S(-x)), right for any gamma >= 0. Its exponent needs more digits than
    the result: where a device has float64, it is float64.
    """

    # Beyond it, the term is x; below its opposite, 0. Both hold in float64 for gamma up to 1e300.
    _LIMIT = 1000.0

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma

    def _factors(self, x: Tensor) -> tuple[Tensor, float, Tensor]:
        """Returns x within the limit, gamma and u^gamma, all finite: infinity times 0 is NaN."""
        wide = x.double() if x.device.type in ("cpu", "cuda", "meta") else x
        gamma = min(self._gamma, torch.finfo(wide.dtype).max)
        t = wide.clamp(-self._LIMIT, self._LIMIT)
        return t, gamma, torch.exp(-gamma * softplus(-t))

    def value(self, x: Tensor) -> Tensor:
        t, _, power = self._factors(x)
        return torch.where(x > self._LIMIT, x, (power * softplus(t)).to(x.dtype))

    def slope(self, x: Tensor) -> Tensor:
        t, gamma, power = self._factors(x)
        u, v = torch.sigmoid(t), torch.sigmoid(-t)
        return (power * (gamma * v * softplus(t) + u)).to(x.dtype)

    def curvature(self, x: Tensor) -> Tensor:
        t, gamma, power = self._factors(x)
        u, v = torch.sigmoid(t), torch.sigmoid(-t)
        # The power comes first: where it is 0, gamma^2 may be too large.
        terms = power * gamma * (gamma * v - u) * (v * softplus(t)) + 2 * (power * gamma * u * v)
        return (terms + power * u * v).to(x.dtype)


class Scaled:
    """A term times a factor; 0 times an infinite value is 0."""

    def __init__(self, term: Term, factor: float) -> None:
        self._term, self._factor = term, factor

    def _times_factor(self, t: Tensor) -> Tensor:
        return self._factor * t if self._factor else torch.where(t.isnan(), t, 0)

    def value(self, x: Tensor) -> Tensor:
        return self._times_factor(self._term.value(x))

    def slope(self, x: Tensor) -> Tensor:
        return self._times_factor(self._term.slope(x))

    def curvature(self, x: Tensor) -> Tensor:
        return self._times_factor(self._term.curvature(x))


class Mirrored:
    """A term at -x: what weighs negatives becomes what weighs positives."""

    def __init__(self, term: Term) -> None:
        self._term = term

    def value(self, x: Tensor) -> Tensor:
        return self._term.value(-x)

    def slope(self, x: Tensor) -> Tensor:
        return -self._term.slope(-x)

    def curvature(self, x: Tensor) -> Tensor:
        return self._term.curvature(-x)


def _bce() -> tuple[Term, Term]:
    return Mirrored(Softplus()), Softplus()


def _focal(gamma: float, alpha: float) -> tuple[Term, Term]:
    """Lin et al., "Focal Loss for Dense Object Detection" (2017). An alpha of -1 is none."""
    term = FocalTerm(gamma)
    if alpha == -1:
        return Mirrored(term), term
    return Mirrored(Scaled(term, alpha)), Scaled(term, 1 - alpha)


_TERMS = (_bce, _focal)  # by the numbers of csrc/problem.h


def terms_of(loss: int, parameters: Sequence[float] | None) -> tuple[Term, Term]:
    """Returns the positive and the negative term of a loss, by its number in the ops."""
    make: Callable[..., tuple[Term, Term]] = _TERMS[loss]
    return make(*parameters or ())


class _LimitedLog(Function):
    """log(x) or log(1 - x), at least -100, with a derivative of at most 1e12, as in nn.BCELoss."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, complement: bool) -> Tensor:
        return (torch.log1p(-x) if complement else torch.log(x)).clamp(min=-100)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.complement = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return _LimitedLog.jvp(ctx, grad_output, None), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        x: Tensor
        (x,) = ctx.saved_tensors
        slope = -1 / (1 - x).clamp(min=1e-12) if ctx.complement else 1 / x.clamp(min=1e-12)
        return tangent * slope


def probability_terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """-log(x) and -log(1 - x), the values of the terms where x is a probability and no logit."""
    log: Callable[[Tensor, bool], Tensor] = _LimitedLog.apply
    return -log(x, False), -log(x, True)
