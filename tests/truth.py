"""What the loss must be: in float64 by torch, and again by NumPy with other formulas.

Also the samples that feed correctness, gradients and opcheck.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weighted_bce import (
    BCE,
    Asymmetric,
    Focal,
    Hill,
    Poly1,
    SquaredHinge,
    multilabel_loss_with_logits,
    weighted_bce_with_logits,
)
from weighted_bce._terms import Term, terms_of
from weighted_bce.sparse import SparseLabels

from .tolerances import compute_dtype

INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
    *(torch.uint8, torch.int8, torch.uint16, torch.int16),
    *(torch.uint32, torch.int32, torch.uint64, torch.int64),
)
TARGET_DTYPES = (torch.bool, *INTEGERS, *INPUT_DTYPES)
REDUCTIONS = ("none", "mean", "sum", "batchmean")
NONE, MEAN, SUM, BATCHMEAN = range(4)  # as the ops number them


def positives_of(target: Tensor, dtype: torch.dtype = torch.int64) -> SparseLabels:
    """The sparse labels of a dense target, without the help of what is tested.

    Those of samples that are stacked, each with as many positives, are stacked too.
    """
    if target.dim() == 3:
        each = [positives_of(sample, dtype) for sample in target]
        return SparseLabels(*map(torch.stack, zip(*each, strict=True)))
    crow = torch.cat((target.new_zeros(1, dtype=dtype), target.bool().sum(1).cumsum(0).to(dtype)))
    return SparseLabels(crow, target.nonzero()[:, 1].to(dtype).contiguous())


def as_given(target: Tensor, sparse: torch.dtype | None) -> Any:
    """A target as the loss gets it: dense, or by its positives with indices of this dtype."""
    return target if sparse is None else positives_of(target, sparse)


PLAIN = BCE()


@dataclass
class Case:
    """One call of the loss."""

    input: Tensor
    target: Tensor
    weight: Tensor | None = None
    pos_weight: Tensor | float | None = None
    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore_index: float | None = None
    name: str = ""
    sparse: torch.dtype | None = None  # of the indices, where the target is given by its positives
    loss: Any = PLAIN
    normalizer: Tensor | float | None = None

    @property
    def given(self) -> Tensor | SparseLabels:
        """The target as the loss gets it."""
        return as_given(self.target, self.sparse)

    def __call__(self, input: Tensor | None = None, **options: Any) -> Tensor:
        function: Callable[..., Tensor] = weighted_bce_with_logits
        if self.loss != PLAIN:
            function = partial(multilabel_loss_with_logits, loss=self.loss)
        return function(
            self.input if input is None else input,
            self.given,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            normalizer=self.normalizer,
            **options,
        )

    def op_args(self, reduction: str | None = None) -> tuple[Any, ...]:
        """The arguments of the ops that follow `input`; by default with its own reduction."""
        tensor = self.pos_weight if isinstance(self.pos_weight, Tensor) else None
        value = self.pos_weight if isinstance(self.pos_weight, float) else 1.0
        options = (value, self.label_smoothing, self.ignore_index)
        number = {"mean": MEAN, "batchmean": BATCHMEAN}.get(reduction or self.reduction, SUM)
        normalizer = self.normalizer
        if reduction == "none":
            number, normalizer = NONE, None
        if normalizer is not None:
            number, normalizer = MEAN, torch.as_tensor(normalizer)
        target, crow = (self.given, None) if self.sparse is None else reversed(self.given)
        loss = self.loss._loss_id, self.loss._parameters
        return (target, crow, self.weight, tensor, *options, None, number, *loss, normalizer)


@dataclass
class Truth:
    """All in float64. Rounding errors of `loss` are measured against `size`, of `grad` `terms`."""

    loss: Tensor
    grad: Tensor
    size: Tensor
    terms: Tensor
    count: int


def _coefficients(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    y = case.target.double()
    kept = torch.ones(y.shape, dtype=torch.bool, device=y.device)
    if case.ignore_index is not None:
        kept = ~y.isnan() if math.isnan(case.ignore_index) else y != case.ignore_index
    y, e = y.masked_fill(~kept, 0), case.label_smoothing
    # 1 - y' with as few roundings as y': float64 is the truth of float64 as well.
    positive, negative = y * (1 - e) + e / 2, (1 - y) * (1 - e) + e / 2
    p = 1.0 if case.pos_weight is None else case.pos_weight
    w = torch.ones_like(y) if case.weight is None else case.weight.double()
    p = p.double() if isinstance(p, Tensor) else p
    return w * p * positive, w * negative, kept


def terms(loss: Any) -> tuple[Term, Term]:
    """The positive and the negative term of a loss, in plain torch."""
    return terms_of(loss._loss_id, loss._parameters)


def numpy_terms(loss: Any, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the positive term of each logit, the negative one, and the slopes of both.

    They are made of exp and logaddexp in long double, in a form of which no part cancels.
    """
    x = x.astype(np.longdouble)
    log_u, log_v = -np.logaddexp(0, -x), -np.logaddexp(0, x)  # u = sigmoid(x), v = sigmoid(-x)
    u, v = np.exp(log_u), np.exp(log_v)
    if isinstance(loss, BCE):
        results = -log_u, -log_v, -v, u
    elif isinstance(loss, Focal):
        g, alpha = np.longdouble(loss.gamma), loss.alpha
        a, b = (1, 1) if alpha is None else (np.longdouble(alpha), 1 - np.longdouble(alpha))
        of_positive, of_negative = a * np.exp(g * log_v), b * np.exp(g * log_u)
        results = (
            -of_positive * log_u,
            -of_negative * log_v,
            of_positive * (g * u * log_u - v),
            of_negative * (u - g * v * log_v),
        )
    elif isinstance(loss, SquaredHinge):
        below, above = np.maximum(0, 1 - x), np.maximum(0, 1 + x)
        results = below**2, above**2, -2 * below, 2 * above
    elif isinstance(loss, Poly1):
        e = np.longdouble(loss.epsilon)
        results = e * v - log_u, e * u - log_v, -v * (1 + e * u), u * (1 + e * v)
    elif isinstance(loss, Hill):
        lam, (positive, _, slope, _) = loss.lam, numpy_terms(Focal(loss.gamma), x - loss.margin)
        # v + (lam - 1) is lam - u.
        results = positive, u * u * (v + (lam - 1)), slope, u * u * v * (2 * lam - 3 + 3 * v)
    elif isinstance(loss, Asymmetric):
        (positive, _, slope, _), m = numpy_terms(Focal(loss.gamma_pos), x), np.longdouble(loss.clip)
        if loss.detach_focus:
            slope = -np.exp(loss.gamma_pos * log_v) * v
        g = np.longdouble(loss.gamma_neg)
        with np.errstate(divide="ignore"):
            distance = np.maximum(x - (np.log(m) - np.log1p(-m)), 0)  # 0: base is 0, and all else
        base = -np.expm1(-distance) * u * (1 - m)  # u - m
        log, rate = (np.log1p(base / (v + m)), u * v / (v + m)) if m else (-log_v, u)
        safe = np.where(base > 0, base, 1)
        power = np.where(base > 0, np.exp(g * (np.log(safe) if m else log_u)), 0)
        of_power = 0 if loss.detach_focus else g * (u * v / safe if m else v) * log
        results = positive, power * log, slope, power * (of_power + rate)
    return tuple(result.astype(np.float64) for result in results)


def truth(case: Case) -> Truth:
    """Loss of each element, its derivative, the sizes of what both are made of, the count."""
    a, b, kept = _coefficients(case)
    x = case.input.detach().double().masked_fill(~kept, 0)

    def times(coefficient: Tensor, term: Tensor) -> Tensor:
        return torch.where((coefficient == 0) & ~term.isnan(), 0, coefficient * term)

    positive, negative = terms(case.loss)
    loss = times(a, positive.value(x)) + times(b, negative.value(x))
    down, up = times(a, positive.slope(x)), times(b, negative.slope(x))
    sizes = loss.abs(), up.abs() + down.abs()
    if case.loss != PLAIN:
        # Terms below the smallest normal number may be off by a part of that: csrc/losses.h.
        dtype = case.input.dtype
        least = (a.abs() + b.abs()) * torch.finfo(compute_dtype(dtype)).tiny
        # In float64 a power of the truth has the errors of its exponent.
        factor = 3 if dtype == torch.float64 else 1
        sizes = tuple(factor * size + least for size in sizes)  # type: ignore[assignment]
    return Truth(*(t.masked_fill(~kept, 0) for t in (loss, up + down, *sizes)), int(kept.sum()))


def numpy_truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Loss and derivative of each element by other formulas, for finite cases."""
    a, b, kept = (t.cpu().numpy() for t in _coefficients(case))
    x = np.where(kept, case.input.detach().double().cpu().numpy(), 0)
    positive, negative, of_positive, of_negative = numpy_terms(case.loss, x)
    loss, grad = a * positive + b * negative, a * of_positive + b * of_negative
    return np.where(kept, loss, 0), np.where(kept, grad, 0)


def logits(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Mostly moderate, some in the tails."""
    x = torch.randn(shape) * 4
    return torch.where(torch.rand(shape) < 0.1, x * 5, x).to(device, dtype)


def labels(*shape: int, dtype: torch.dtype = torch.bool, device: str = "cpu") -> Tensor:
    """Few positives; soft for floating dtypes, with exact 0 and 1 among them."""
    hard = torch.rand(shape) < 0.1
    if not dtype.is_floating_point:
        return hard.to(device, dtype)
    return torch.where(torch.rand(shape) < 0.2, torch.rand(shape), hard.float()).to(device, dtype)


def options_of(rows: int, labels: int, device: str) -> Iterator[dict[str, Any]]:
    """Options of every kind for hard targets of this shape."""

    def factor(*shape: int) -> Tensor:
        return torch.rand(shape, device=device) + 0.5

    yield {}
    yield {"pos_weight": 7.0}
    yield {"pos_weight": factor(labels), "weight": factor(rows, 1)}
    yield {"pos_weight": factor(rows, labels), "label_smoothing": 0.1}
    yield {"weight": factor(labels)}
    yield {"ignore_index": 0, "pos_weight": 2.0}
    yield {"ignore_index": 1, "pos_weight": factor()}
    yield {"ignore_index": -100, "label_smoothing": 0.3}


def sample_inputs(device: str, dtypes: tuple[torch.dtype, ...] = INPUT_DTYPES) -> Iterator[Case]:
    """A small case of each kind: dtypes, weight forms, options, layouts, sizes."""
    for dtype in dtypes:
        x, wide = (logits(*s, dtype=dtype, device=device) for s in ((6, 9), (2, 3, 4, 5)))
        hard, soft = (labels(6, 9, dtype=t, device=device) for t in (torch.bool, torch.float32))
        w = torch.rand(6, 9, device=device) + 0.5
        with_ignored = torch.where(torch.rand(6, 9, device=device) < 0.2, -1, hard.long())
        yield Case(x, hard, name="plain")
        yield Case(x, soft, None, 7.0, "sum", name="soft")
        yield Case(x, hard.long(), w, w[0], "batchmean", name="weights")
        yield Case(x, soft.double(), w[:, :1], w[0, 0], label_smoothing=0.1, name="column")
        yield Case(x, with_ignored, pos_weight=w[0], ignore_index=-1, name="ignored")
        yield Case(x.t(), soft.t(), None, w.t()[:, :1], name="transposed")
        per_label = torch.rand(3, 1, 1, device=device) + 0.5
        four = labels(2, 3, 4, 5, dtype=torch.uint8, device=device)
        yield Case(wide, four, per_label, per_label * 5, name="4-d")
        yield Case(x[:0], hard[:0], reduction="sum", name="empty")
        yield Case(x, hard, pos_weight=7.0, name="sparse", sparse=torch.int64)
        yield Case(x.t(), hard.t(), w.t()[:, :1], w[:, 0], name="sparse, t", sparse=torch.int32)
        yield Case(x, hard, w, 3.0, "batchmean", 0.1, name="sparse, smooth", sparse=torch.int64)
        yield Case(x[:3], hard[:3], None, None, "mean", 0.0, 0, "sparse, 0", torch.int32)
        yield Case(x[0, 0], hard[0, 0], name="0-d")
        items = torch.tensor(12, device=device)
        yield Case(x, hard, None, 7.0, normalizer=items, name="normalizer")
        yield Case(x, soft, w, w[0], "sum", 0.1, normalizer=2.5, name="normalizer, soft")
        items = items.half()
        yield Case(x, with_ignored, None, 3.0, ignore_index=-1, normalizer=items, name="n, -1")
        yield Case(x, hard, sparse=torch.int64, ignore_index=0, normalizer=7.0, name="n, sparse")
        yield Case(x, hard, loss=Focal(), name="focal")
        yield Case(x, soft, w[:, :1], 3.0, "sum", 0.1, loss=Focal(1.5, 0.25), name="focal, soft")
        yield Case(x, hard, w, w[0], name="focal, sparse", sparse=torch.int64, loss=Focal(0.5))
        yield Case(x, soft, w, w[0], "sum", 0.1, loss=SquaredHinge(), name="squared hinge")
        yield Case(x, hard, None, w[0], "sum", loss=Poly1(2.5), name="poly1")
        yield Case(x, soft, w, 3.0, "sum", loss=Hill(1.75, 0.5, 1.5), name="hill")
        yield Case(x, hard, w, 3.0, loss=Asymmetric(), name="asymmetric")
        yield Case(x, soft, None, w[0], loss=Asymmetric(2.5, 0.0, 0.0, True), name="detached")
