"""Without a reduction, a linear layer has one loss for each row, and a row any grad_output."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from weighted_bce import Focal, LinearMultilabelLoss, LinearWeightedBCEWithLogitsLoss, backend
from weighted_bce import multilabel_loss_with_logits as multilabel_loss

from .comparison import backends
from .linear_cases import (
    DTYPES,
    FEATURES,
    LABELS,
    LinearCase,
    assert_all_near,
    assert_grads,
    assert_loss,
    assert_near,
    assert_right,
    base,
    cases,
    expected,
    multiply_halves,
    tolerance,
)
from .tolerances import TOLERANCES

pytestmark = pytest.mark.usefixtures("one_thread")


def of_rows(case: LinearCase) -> LinearCase:
    return case.with_options(reduction="none", normalizer=None)


def grad_outputs(case: LinearCase) -> Tensor:
    """Returns a different number for each row: the first is 0, half of the others are negative."""
    sizes = torch.tensor([0.0, 1.0, -300.0, 0.01, -2.0, 7.0, -1e-6], device=case.input.device)
    wide = torch.float64 if case.input.dtype == torch.float64 else torch.float32
    return sizes[: len(case.input)].to(wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_grad_output(device: str, dtype: torch.dtype) -> None:
    for case in map(of_rows, cases(device, dtype)):
        for chosen in backends(device):
            with backend(chosen):
                loss, *_ = assert_right(case, grad_outputs(case))
        assert loss.shape == case.input.shape[:1]
        assert_near(case(), loss)  # without gradients
        assert_right(case, torch.zeros_like(loss))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    multiply_halves(monkeypatch)
    rounding = 3 * TOLERANCES[dtype]["rounding"]
    for case in map(of_rows, cases("cpu", dtype)):
        assert_right(case, grad_outputs(case), rounding)
    # The gradient of the logits would be 0 or infinite in float16, that of the weight is neither.
    for factor, size in ((1e-9, 1024), (1e4, 1 / 1024)):
        case = of_rows(base(dtype))
        case = replace(case, input=case.input * size)
        given = grad_outputs(case) * factor
        _, weight, _ = leaves = case.leaves()
        (grad,) = torch.autograd.grad(case(*leaves), weight, given)
        assert_near(grad, expected(case, given)[1][1], rounding)


def test_an_infinite_grad_output_spoils_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_halves(monkeypatch)
    case = of_rows(base(torch.float16))
    x, _, _ = leaves = case.leaves()
    for value in (torch.inf, torch.nan):
        given = grad_outputs(case)
        (wanted,) = torch.autograd.grad(case(*leaves), x, given)
        given[2] = value
        (grad,) = torch.autograd.grad(case(*leaves), x, given)
        assert not grad[2].isfinite().any()
        others = torch.arange(len(x)) != 2
        assert_near(grad[others], wanted[others], 0.01)


def test_many_chunks_are_added_with_few_roundings() -> None:
    """A running total of 5000 equal numbers would be off by 1e-5 of it."""
    x, weight = torch.full((2, 1), 0.3), torch.ones(5000, 1)
    case = LinearCase(x, weight, torch.zeros(2, 5000), options={"chunk_labels": 1})
    assert_near(of_rows(case)(), expected(of_rows(case))[0], 3e-7)


def by_checkpoint(case: LinearCase, reentrant: bool) -> Callable[..., Tensor]:
    return partial(checkpoint, case, use_reentrant=reentrant)


WAYS: dict[str, Callable[[LinearCase], Callable[..., Tensor]]] = {
    "checkpoint": partial(by_checkpoint, reentrant=False),
    "reentrant checkpoint": partial(by_checkpoint, reentrant=True),
    "compiled": lambda case: torch.compile(case, backend="aot_eager", fullgraph=True),
    "with torch.inference_mode": lambda case: partial(case, **inference_options(case)),
}


def inference_options(case: LinearCase) -> dict[str, Any]:
    with torch.inference_mode():
        return {"target": case.target.clone(), "weight": torch.ones(LABELS)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sparse", [None, torch.int64], ids=["dense", "sparse"])
def test_in_other_ways(way: str, sparse: Any) -> None:
    torch._dynamo.reset()
    case = of_rows(replace(base(pos_weight=torch.rand(LABELS)), sparse=sparse))
    leaves = case.leaves()
    loss = WAYS[way](case)(*leaves)
    assert_loss(loss, case)
    loss.backward(grad_outputs(case))
    assert_grads([leaf.grad for leaf in leaves], case, grad_outputs(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_func(dtype: torch.dtype) -> None:
    case = of_rows(base(dtype))
    x, *others = case.layer
    loss, vjp = torch.func.vjp(case, *case.layer)
    assert_loss(loss, case)
    assert_grads(vjp(grad_outputs(case)), case, grad_outputs(case))
    many = torch.stack((x, 2 * x))
    each = torch.func.vmap(lambda x: case(x, *others))(many)
    assert_all_near([*each], [case(one, *others) for one in many])
    of_each_row = torch.func.jacrev(case)(*case.layer)  # one row has no part in another's
    assert_near(of_each_row.sum(1), vjp(torch.ones_like(loss))[0].double(), tolerance(dtype))


def test_derivatives_of_weights() -> None:
    """These need all logits."""
    case = of_rows(base(torch.float64, labels=9, chunk_labels=4))
    weight = torch.rand(9, dtype=torch.float64)
    given = case.with_options(weight=weight.clone().requires_grad_())
    (grad,) = torch.autograd.grad(given(), given.options["weight"], grad_outputs(case))
    each = replace(case.of_logits(), reduction="none")()
    assert_near(grad, grad_outputs(case) @ each)


def test_the_gradients_of_rows_reach_a_step() -> None:
    case = of_rows(base())
    x, weight, bias = case.leaves()
    parts: list[tuple[Tensor, ...]] = []
    loss = case(
        x, weight, bias, fused_step=lambda _, *grads: parts.append([*map(torch.clone, grads)])
    )
    loss.backward(grad_outputs(case))
    together = (torch.cat(each) for each in zip(*parts, strict=True))
    assert_grads((x.grad, *together), case, grad_outputs(case))


def test_modules() -> None:
    case = of_rows(base())
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, reduction="none", chunk_labels=64)
    weight, bias = criterion.parameters()
    assert_near(criterion(case.input, case.target), case(case.input, weight, bias))
    assert "reduction='none'" in repr(criterion)
    focal = LinearMultilabelLoss(FEATURES, LABELS, Focal(), reduction="none", chunk_labels=64)
    each = multilabel_loss(focal.logits(case.input), case.target, Focal(), reduction="none")
    assert_near(focal(case.input, case.target), each.sum(1).detach())
