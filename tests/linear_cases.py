"""Calls of the loss of a linear layer, and what they must give: by float64, all logits at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import linear_weighted_bce_with_logits
from weighted_bce.linear import _chunks

from .comparison import divisor
from .tolerances import TOLERANCES, compute_dtype
from .truth import Case, as_given, truth

ROWS, FEATURES, LABELS = 7, 12, 150
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "batchmean", "none")


@dataclass
class LinearCase:
    """One call of the loss of a linear layer."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the loss, and of how it is computed
    sparse: torch.dtype | None = None  # of the indices, where the labels are sparse
    name: str = ""

    @property
    def layer(self) -> tuple[Tensor, ...]:
        """The tensors of the layer: two, or three with a bias."""
        layer = self.input, self.linear_weight, self.linear_bias
        return tuple(tensor for tensor in layer if tensor is not None)

    def __call__(self, *layer: Any, **more: Any) -> Tensor:
        """Computes the loss, of another layer where one is given."""
        input, weight, *bias = layer or self.layer
        options = {"target": self.given, **self.options, **more}
        linear_bias = bias[0] if bias else None
        return linear_weighted_bce_with_logits(input, weight, linear_bias=linear_bias, **options)

    @property
    def given(self) -> Any:
        """The target as the loss gets it: sparse labels have a row for each position."""
        target = (
            self.target if self.sparse is None else self.target.reshape(-1, self.target.shape[-1])
        )
        return as_given(target, self.sparse)

    def of_logits(self) -> Case:
        """Returns the loss of the layer's logits, in float64."""
        input, weight, *bias = (tensor.detach().double() for tensor in self.layer)
        of_layer = ("chunk_labels", "fused_step", "target")
        options = {name: value for name, value in self.options.items() if name not in of_layer}
        logits = torch.nn.functional.linear(input, weight, *bias)
        return Case(logits, self.target, **options, sparse=self.sparse)

    def leaves(self) -> tuple[Tensor, ...]:
        """Returns the tensors of the layer, as leaves that require a gradient."""
        return tuple(tensor.detach().requires_grad_() for tensor in self.layer)

    def with_options(self, **more: Any) -> "LinearCase":
        name = f"{self.name}, {', '.join(more)}"
        return replace(self, options={**self.options, **more}, name=name)

    def op_args(self) -> tuple[Any, ...]:
        """Returns the arguments of the op linear_loss."""
        chunk_labels = self.options.get("chunk_labels")
        args = self.of_logits().op_args(self.options.get("reduction"))
        before, defaulted = args[:9], args[9:]
        layer = (*self.layer, None)[:3]
        return (*layer, *before, None, chunk_labels, *defaulted)


def expected(
    case: LinearCase, grad_output: float | Tensor = 1.0
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Computes the loss, and the gradients of the layer's tensors.

    Without a reduction each row has a loss, and may have a grad_output.
    """
    of_logits = case.of_logits()
    elements = truth(of_logits)
    by = divisor(of_logits, elements.count)
    each_row = of_logits.reduction == "none"
    loss = elements.loss.sum(-1) if each_row else elements.loss.sum() / by
    factor = grad_output.double()[..., None] if isinstance(grad_output, Tensor) else grad_output
    slopes = elements.grad * (factor / by if by else 0)
    of_input = slopes @ case.linear_weight.double()
    of_weight = torch.einsum("...l,...f->lf", slopes, case.input.double())
    of_bias = torch.einsum("...l->l", slopes)
    return loss, (of_input, of_weight, of_bias)[: len(case.layer)]


def tolerance(dtype: torch.dtype) -> float:
    """Returns the error of sums of products: of their roundings, and of one to the dtype."""
    products = 1e-14 if dtype == torch.float64 else 5e-6
    return products + 2 * TOLERANCES[dtype]["rounding"]


def assert_near(
    actual: Tensor | None, wanted: Tensor, relative: float | None = None, what: str = ""
) -> None:
    """Compares with the largest element, since sums of products cancel; by default with what the
    dtype allows."""
    assert actual is not None, what
    relative = tolerance(actual.dtype) if relative is None else relative
    absolute = relative * float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(
        actual.double(), wanted.double(), rtol=0, atol=absolute, msg=lambda text: f"{what}: {text}"
    )


def assert_all_near(
    actual: Sequence[Tensor | None], wanted: Sequence[Tensor], relative: float | None = None
) -> None:
    for one, other in zip(actual, wanted, strict=True):
        assert_near(one, other, relative)


def assert_loss(loss: Tensor, case: LinearCase, relative: float | None = None) -> None:
    # From the same inputs, exact in float64: half precision is rounded nowhere.
    assert loss.dtype == compute_dtype(case.input.dtype)
    assert_near(loss, expected(case)[0], relative, f"{case.name}, loss")


def assert_grads(
    grads: Sequence[Tensor | None],
    case: LinearCase,
    grad_output: float | Tensor = 1.0,
    relative: float | None = None,
) -> None:
    """Compares the gradients of the layer's tensors, which have the dtypes of these."""
    _, wanted = expected(case, grad_output)
    names = ("input", "linear_weight", "linear_bias")[: len(wanted)]
    for name, grad, one, tensor in zip(names, grads, wanted, case.layer, strict=True):
        assert_near(grad, one, relative, f"{case.name}, gradient of {name}")
        assert grad is not None
        assert grad.dtype == tensor.dtype


def grads_of(leaves: Sequence[Tensor]) -> list[Tensor | None]:
    return [leaf.grad for leaf in leaves]


def assert_right(
    case: LinearCase, grad_output: float | Tensor = 1.0, relative: float | None = None
) -> tuple[Tensor, ...]:
    """Compares the loss and all gradients with the truth, and returns them."""
    leaves = case.leaves()
    loss = case(*leaves)
    given = grad_output if isinstance(grad_output, Tensor) else torch.full_like(loss, grad_output)
    grads = torch.autograd.grad(loss, leaves, given)
    assert_loss(loss, case)
    assert_grads(grads, case, grad_output, relative)
    return loss.detach(), *grads


def base(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    rows: int = ROWS,
    labels: int = LABELS,
    **options: Any,
) -> LinearCase:
    """Returns a case with a bias, hard targets and, by default, a smaller last chunk."""
    x = torch.randn(rows, FEATURES, device=device).to(dtype)
    weight = (torch.randn(labels, FEATURES, device=device) / 2).to(dtype)
    bias = torch.randn(labels, device=device).to(dtype)
    target = torch.rand(rows, labels, device=device) < 0.1
    options = {"chunk_labels": 64, **options}
    return LinearCase(x, weight, target, bias, options, name=f"{dtype}, {rows} x {labels}")


def dense_and_sparse(device: str = "cpu") -> Iterator[LinearCase]:
    for dtype in DTYPES:
        case = base(dtype, device)
        yield case
        yield replace(case, sparse=torch.int64)


def cases(device: str, dtype: torch.dtype) -> Iterator[LinearCase]:
    """Yields every kind of target, weight, reduction and size of chunk."""
    case = base(dtype, device)
    per_label = torch.rand(LABELS, device=device) * 5
    per_row = torch.rand(ROWS, 1, device=device) + 0.5
    full = torch.rand(ROWS, LABELS, device=device) + 0.5
    for sparse in (None, torch.int64, torch.int32):
        here = replace(case, sparse=sparse, name=f"{case.name}, sparse {sparse}")
        yield here
        yield replace(here, linear_bias=None, name=f"{here.name}, no bias")
        for options in (
            *({"pos_weight": 3.0, "reduction": name} for name in REDUCTIONS),
            {"pos_weight": per_label},
            {"pos_weight": per_row},
            {"weight": full, "pos_weight": per_label},
            {"weight": per_label, "label_smoothing": 0.1},
            {"weight": torch.tensor(2.0)},
            *({"chunk_labels": n} for n in (None, 1, 100, LABELS, 10 * LABELS)),
            {"reduction": "none", "weight": per_row, "chunk_labels": 1},
            {"ignore_index": 0, "pos_weight": per_label},
            {"ignore_index": 1, "label_smoothing": 0.1},
            {"normalizer": 40.0},
            {"normalizer": torch.tensor(3), "reduction": "sum", "ignore_index": 0},
        ):
            yield here.with_options(**options)
    soft = torch.rand(ROWS, LABELS, device=device)
    for target in (case.target.long(), case.target.to(torch.uint8), soft, soft.to(dtype)):
        yield replace(case, target=target, name=f"{case.name}, {target.dtype} target")
    yield replace(case, target=case.target.T.contiguous().T, name=f"{case.name}, target by columns")
    no_features = {"input": case.input[:, :0], "linear_weight": case.linear_weight[:, :0]}
    yield replace(case, **no_features, name=f"{case.name}, no features")
    yield base(dtype, device, 0, 5, reduction="sum")
    for rows, labels in ((3, 1), (1, 70), (2, 64)):
        yield base(dtype, device, rows, labels)


def multiply_halves(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """Lets half precision go into the products and float32 come out, as on a GPU.

    A product that torch has on CUDA alone is made of others. Returns the dtypes of its operands.
    """
    operands: set[torch.dtype] = set()

    def wide_product(a: Tensor, b: Tensor, out: Tensor) -> None:
        operands.update((a.dtype, b.dtype))
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)

    monkeypatch.setattr(_chunks, "_multiplies_halves", lambda like: True)
    for module in ("_chunks", "_passes"):
        monkeypatch.setattr(f"weighted_bce.linear.{module}.product", wide_product)
    return operands
