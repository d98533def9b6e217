"""The input of a linear layer may have any shape (..., features): its positions are rows."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import LinearWeightedBCEWithLogitsLoss, SparseLabels, backend
from weighted_bce._options import SUM, Options
from weighted_bce.linear import _rows

from .comparison import backends
from .linear_cases import (
    DTYPES,
    FEATURES,
    REDUCTIONS,
    LinearCase,
    assert_grads,
    assert_loss,
    assert_near,
    assert_right,
    base,
    expected,
)
from .tolerances import compute_dtype

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = 11
SHAPES = [(), (7,), (2, 3), (2, 1, 3), (0, 3), (2, 0)]


def shaped(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: Any
) -> LinearCase:
    """Returns a case whose input has positions of this shape."""
    case = base(dtype, "cpu", math.prod(shape), LABELS, **{"chunk_labels": 4, **options})
    x, target = (t.reshape(*shape, t.shape[-1]) for t in (case.input, case.target))
    return replace(case, input=x, target=target, name=f"{shape}, {case.name}")


def factors(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Yields a factor of each kind: of all, of labels, of positions, of both, and of some."""
    for size in ((), (LABELS,), (*shape, 1), (*shape, LABELS), (*(1 for _ in shape), LABELS)):
        yield torch.rand(size) + 0.5
    for i, n in enumerate(shape):
        others = (1,) * (len(shape) - i - 1)
        yield torch.rand(n, *others, 1) + 0.5
        yield torch.rand(n, *others, LABELS) + 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradients(shape: tuple[int, ...], reduction: str) -> None:
    """The gradients have the shapes of the layer, and each position its own loss."""
    if reduction == "batchmean" and not shape:
        pytest.skip("one row is no batch")
    for case in (
        *(shaped(shape, dtype, reduction=reduction) for dtype in DTYPES),
        *(shaped(shape, reduction=reduction, weight=f, pos_weight=2 * f) for f in factors(shape)),
        shaped(shape, reduction=reduction, ignore_index=0),
    ):
        for sparse in (None, torch.int32):
            here = replace(case, sparse=sparse)
            for chosen in backends("cpu"):
                with backend(chosen):
                    loss, *grads = outcome(here)
                    if expected(here)[0].isnan().any():  # there is nothing to average
                        assert loss.isnan().all()
                    else:
                        assert_loss(loss, here)
                    assert_grads(grads, here, grad_output_of(here))
                    assert loss.shape == (shape if reduction == "none" else ())


def grad_output_of(case: LinearCase) -> Any:
    """Returns a different number for each position where each has a loss."""
    if case.options.get("reduction") != "none":
        return -2.5
    of_positions = torch.linspace(-3, 2, math.prod(case.input.shape[:-1]))
    return of_positions.reshape(case.input.shape[:-1]).to(compute_dtype(case.input.dtype))


def outcome(case: LinearCase) -> tuple[Tensor, ...]:
    """Returns the loss, and the gradients for the grad_output above."""
    leaves = case.leaves()
    loss = case(*leaves)
    given = torch.zeros_like(loss) + grad_output_of(case)
    return loss.detach(), *torch.autograd.grad(loss, leaves, given)


@pytest.mark.parametrize("sparse", [None, torch.int64], ids=["dense", "sparse"])
def test_any_strides(sparse: Any) -> None:
    case = replace(shaped((2, 3)), sparse=sparse)
    for dims in ((0, 1), (1, 2), (0, 2)):

        def permuted(t: Tensor, dims: tuple[int, int] = dims) -> Tensor:
            return t.transpose(*dims).contiguous().transpose(*dims)

        assert_right(replace(case, input=permuted(case.input), target=permuted(case.target)))
    assert_right(replace(case, input=case.input[:, :1].expand(2, 3, FEATURES)))


def test_factors_are_not_expanded() -> None:
    """Those of labels, of positions and of both are views."""
    shape = (2, 3, 4)
    for factor in [*factors(shape)][:5]:
        target = torch.zeros(*shape, LABELS)
        options = Options(target, None, factor, factor, 1.0, 0.0, None, None, SUM)
        given = _rows.of_options(options, shape)
        for tensor, whole in ((given.weight, factor), (given.target, target)):
            assert tensor is not None
            assert tensor.data_ptr() == whole.data_ptr()
            assert tensor.numel() == whole.numel()
    column = torch.ones(2, 1, 1, 1)
    options = options._replace(weight=column, pos_weight=torch.ones(3, 4, 1))
    assert [t is not None and t.shape for t in _rows.of_options(options, shape)[2:4]] == [
        (24, 1)
    ] * 2


def test_torch_sparse_tensors_have_a_row_for_each_position() -> None:
    case = shaped((2, 3))
    target = case.target.reshape(6, LABELS).float()
    for given in (target.to_sparse_csr(), target.to_sparse_coo(), SparseLabels.from_dense(target)):
        assert_loss(case(target=given), case)


def test_derivatives_of_other_tensors() -> None:
    """Each has its own shape."""
    case = shaped((2, 3), torch.float64, reduction="none")
    target = case.target.double()
    others = [torch.rand(3, 1), torch.rand(2, 1, LABELS)]
    leaves = [t.double().requires_grad_() for t in (target, *others)]
    options = dict(zip(("target", "weight", "pos_weight"), leaves, strict=True))
    assert torch.autograd.gradcheck(lambda *_: case(**options), leaves)


def test_second_derivatives() -> None:
    case = shaped((2, 3), torch.float64, reduction="none", ignore_index=1)
    assert torch.autograd.gradcheck(case, case.leaves(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(case, case.leaves())


def test_torch_func() -> None:
    case = shaped((2, 3), torch.float64)
    assert_grads(torch.func.grad(case, argnums=(0, 1, 2))(*case.layer), case)
    of_samples = replace(case, input=case.input[0], target=case.target[0])
    each = torch.func.vmap(lambda x, y: of_samples(x, *case.layer[1:], target=y))
    assert_near(each(case.input, case.target).mean(), case())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sparse", [None, torch.int64], ids=["dense", "sparse"])
def test_one_graph_for_all_sizes(reduction: str, sparse: Any) -> None:
    torch._dynamo.reset()
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, pos_weight=torch.rand(LABELS), reduction=reduction, chunk_labels=4
    )
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True, dynamic=True)
    for number, shape in enumerate(((4, 3), (5, 6), (3, 2))):
        case = replace(shaped(shape), sparse=sparse)
        x, target = case.input.requires_grad_(), case.given
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            loss = compiled(x, target)
        wanted = criterion(x, target)
        assert torch.equal(loss, wanted)
        grads = (torch.autograd.grad(result.sum(), x)[0] for result in (loss, wanted))
        assert torch.equal(*grads)


def test_exported() -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, reduction="none")
    case = shaped((4, 3))
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    shapes = ({0: batch, 1: length},) * 2
    program = torch.export.export(criterion, (case.input, case.target), dynamic_shapes=shapes)
    other = shaped((2, 5))
    assert_near(program.module()(other.input, other.target), criterion(other.input, other.target))


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)], ids=str)
def test_module(shape: tuple[int, ...]) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, reduction="sum", chunk_labels=4)
    case = shaped(shape, reduction="sum")
    x, target = case.input, case.target
    assert_near(criterion(x, target), case(x, *criterion.parameters()))
    best, wanted = criterion.topk(x, 3), criterion.logits(x).topk(3)
    assert best.indices.shape == (*shape, 3)
    assert torch.equal(best.indices, wanted.indices)
    assert_near(best.values, wanted.values.detach())


def test_the_gradients_of_positions_reach_a_step() -> None:
    case = shaped((2, 3), reduction="batchmean")
    x, weight, bias = case.leaves()
    parts: list[tuple[Tensor, ...]] = []

    def step(_: slice, *grads: Tensor) -> None:
        parts.append(tuple(grad.clone() for grad in grads))

    case(x, weight, bias, fused_step=step).backward()
    assert_grads((x.grad, *map(torch.cat, zip(*parts, strict=True))), case)
