"""What the loss of a linear layer must be, in float64 and with all logits at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weighted_bce import linear_weighted_bce_with_logits
from weighted_bce._options import REDUCTIONS as NUMBERS

from .truth import TOLERANCES, Case, compute_dtype, divisor, truth

ROWS, FEATURES, LABELS = 7, 12, 150
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "batchmean")


@dataclass
class LinearCase:
    """One call of the loss of a linear layer."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the loss, and of how it is computed
    sparse: torch.dtype | None = None  # of the indices, where the positives are given
    name: str = ""

    def case(self) -> Case:
        """As the loss of its logits, in float64."""
        logits = self.input.double() @ self.linear_weight.double().T
        if self.linear_bias is not None:
            logits = logits + self.linear_bias.double()
        known = ("weight", "pos_weight", "reduction", "label_smoothing")
        options = {k: v for k, v in self.options.items() if k in known}
        return Case(logits.detach(), self.target, **options, sparse=self.sparse)

    def __call__(self, layer: tuple[Tensor | None, ...] | None = None, **more: Any) -> Tensor:
        """Of this layer, or of another one in its place."""
        x, weight, bias = self.layer if layer is None else layer
        options = {**self.options, **more}
        assert x is not None
        assert weight is not None
        target = self.case().given
        return linear_weighted_bce_with_logits(x, weight, target, linear_bias=bias, **options)

    @property
    def layer(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.input, self.linear_weight, self.linear_bias

    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors of the layer, as leaves that require a gradient."""
        return tuple(t.detach().clone().requires_grad_() for t in self.layer if t is not None)

    def with_options(self, **more: Any) -> "LinearCase":
        return replace(self, options={**self.options, **more})

    def op_args(self) -> tuple[Any, ...]:
        """Those of the op linear_loss."""
        reduction = self.options.get("reduction", "mean")
        *rest, _ = self.case().op_args("sum")
        return (*self.layer, *rest, NUMBERS[reduction], None, self.options.get("chunk_labels"))


def expected(case: LinearCase, upstream: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of the layer's tensors."""
    of_logits = case.case()
    found = truth(of_logits)
    by = divisor(of_logits, found.count)
    slopes = found.grad * (upstream / by)
    grads = [slopes @ case.linear_weight.double(), slopes.T @ case.input.double()]
    if case.linear_bias is not None:
        grads.append(slopes.sum(0))
    return found.loss.sum() / by, grads


def tolerance(dtype: torch.dtype) -> float:
    """Of sums of products: their roundings, and one to the dtype."""
    products = 1e-14 if dtype == torch.float64 else 5e-6
    return products + 2 * TOLERANCES[dtype]["rounding"]


def assert_near(actual: Tensor | None, wanted: Tensor, relative: float, what: str = "") -> None:
    """By the largest element: sums of products cancel."""
    assert actual is not None, what
    assert actual.shape == wanted.shape, what
    if not actual.numel():
        return
    error = (actual.double() - wanted).abs().max()
    size = wanted.abs().max()
    assert error <= relative * size, f"{what}: off by {float(error):.3g} of {float(size):.3g}"


def assert_right(case: LinearCase, upstream: float = 1.0) -> None:
    """The loss, its dtype, and all gradients."""
    leaves, dtype = case.leaves(), case.input.dtype
    loss = case((*leaves, None)[:3])
    value, grads = expected(case, upstream)
    assert loss.dtype == compute_dtype(dtype)
    # From the same inputs, exact in float64: half precision is rounded nowhere.
    assert_near(loss, value, tolerance(compute_dtype(dtype)), f"{case.name}, loss")
    found = torch.autograd.grad(loss, leaves, torch.full_like(loss, upstream))
    for name, leaf, actual, wanted in zip(
        ("input", "weight", "bias"), leaves, found, grads, strict=False
    ):
        assert actual.dtype == leaf.dtype
        assert_near(actual, wanted, tolerance(leaf.dtype), f"{case.name}, gradient of {name}")


def base(
    dtype: torch.dtype = torch.float32, device: str = "cpu", rows: int = ROWS, labels: int = LABELS
) -> LinearCase:
    """With a bias, hard targets and a chunk size that leaves a rest."""
    x = torch.randn(rows, FEATURES, device=device).to(dtype)
    weight = (torch.randn(labels, FEATURES, device=device) / 2).to(dtype)
    bias = torch.randn(labels, device=device).to(dtype)
    target = torch.rand(rows, labels, device=device) < 0.1
    return LinearCase(x, weight, target, bias, {"chunk_labels": 64}, name=str(dtype))


def cases(device: str, dtype: torch.dtype) -> Iterator[LinearCase]:
    """Every kind of target, weight and size of chunk."""
    case = base(dtype, device)
    rows, labels = case.target.shape
    per_label = torch.rand(labels, device=device) * 5
    per_row = torch.rand(rows, 1, device=device) + 0.5
    full = torch.rand(rows, labels, device=device) + 0.5
    for sparse in (None, torch.int64, torch.int32):
        here = replace(case, sparse=sparse, name=f"{case.name}, sparse {sparse}")
        yield here
        yield replace(here, linear_bias=None, name=f"{here.name}, no bias")
        for options in (
            {"pos_weight": 3.0},
            {"pos_weight": per_label},
            {"pos_weight": per_row},
            {"weight": full, "pos_weight": per_label},
            {"weight": per_label, "label_smoothing": 0.1},
            {"weight": torch.tensor(2.0)},
            *({"chunk_labels": n} for n in (None, 1, 100, labels, 10 * labels)),
        ):
            named = f"{here.name}, {', '.join(options)}"
            yield replace(here.with_options(**options), name=named)
    soft = torch.rand(rows, labels, device=device)
    for target in (case.target.long(), case.target.to(torch.uint8), soft, soft.to(dtype)):
        yield replace(case, target=target, name=f"{case.name}, {target.dtype} target")
    yield replace(case, target=case.target.T.contiguous().T, name=f"{case.name}, target by columns")
    for rows, labels in ((0, 5), (3, 1), (1, 70), (2, 64)):
        yield replace(base(dtype, device, rows, labels), name=f"{dtype}, {rows} x {labels}")
