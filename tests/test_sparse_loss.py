"""The loss of sparse labels is that of the dense target which they stand for, bit for bit."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weighted_bce import (
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    backend,
    weighted_bce,
    weighted_bce_with_logits,
)
from weighted_bce._extension import extension
from weighted_bce.sparse import SparseLabels

from .truth import INPUT_DTYPES, REDUCTIONS, Case, backends, check, labels, logits, positives_of

INDICES = (torch.int32, torch.int64)
# Around the vectors, blocks (384 or 768) and chunks (32768) of the CPU and the groups of a GPU.
SHAPES = (
    *((1, 1), (5, 1), (1, 7), (9, 16), (40, 3), (3, 385), (2, 769), (700, 2), (1, 70_000)),
    *((3, 33_000), (0, 4), (4, 0)),
)


def rows_of_all_kinds(labels: int) -> Tensor:
    """Without positives, with all, with the first, the last, every other, and few."""
    y = torch.zeros(8, labels, dtype=torch.bool)
    y[1] = True
    y[3, 0] = y[4, -1] = True
    y[5, ::2] = True
    y[6] = torch.rand(labels) < 0.01
    return y


def options(rows: int, labels: int, device: str) -> Iterator[dict[str, Any]]:
    def factor(*shape: int) -> Tensor:
        return torch.rand(shape, device=device) + 0.5

    yield {}
    yield {"pos_weight": 7.0}
    yield {"pos_weight": factor(labels), "weight": factor(rows, 1)}
    yield {"pos_weight": factor(rows, labels), "label_smoothing": 0.1}
    yield {"weight": factor(labels), "inplace_backward": True}
    yield {"ignore_index": 0, "pos_weight": 2.0}
    yield {"ignore_index": 1, "pos_weight": factor()}
    yield {"ignore_index": -100, "label_smoothing": 0.3}


def outcome(x: Tensor, target: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient for an upstream gradient that nobody expects."""
    leaf = x.detach().clone().requires_grad_()
    loss = weighted_bce_with_logits(leaf * 1, target, **given)
    generator = torch.Generator(x.device).manual_seed(0)
    upstream = torch.randn(loss.shape, generator=generator, dtype=loss.dtype, device=x.device)
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    return loss.detach(), grad


def assert_same(x: Tensor, y: Tensor, given: dict[str, Any], index: torch.dtype) -> None:
    """Of logits that lie in another order, or on a GPU, the losses are summed in another order."""
    found = outcome(x, positives_of(y, index), given)
    wanted = outcome(x, y, given)
    for what, one, other in zip(("loss", "grad"), found, wanted, strict=True):
        if x.is_cpu and x.is_contiguous() and extension is not None:
            assert torch.equal(one.nan_to_num(77), other.nan_to_num(77)), (what, given.keys())
        else:
            torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(device: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, y = logits(*shape, dtype=dtype, device=device), labels(*shape, device=device)
    for k, given in enumerate(options(*shape, device)):
        for reduction in REDUCTIONS:
            assert_same(x, y, {**given, "reduction": reduction}, INDICES[k % 2])


@pytest.mark.parametrize("chosen", [0, 1], ids=["fused", "reference"])
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_against_float64(device: str, reduction: str, index: torch.dtype, chosen: int) -> None:
    for dtype, given in product(INPUT_DTYPES, options(8, 9, device)):
        given.pop("inplace_backward", None)
        y = rows_of_all_kinds(9).to(device)
        case = Case(logits(8, 9, dtype=dtype, device=device), y, reduction=reduction, **given)
        case.sparse, case.name = index, "sparse"
        for upstream in (1.0, -2.5):
            check(case, backends(device)[chosen], upstream)


@pytest.mark.parametrize("labels", [1, 5, 40, 800, 2000])
def test_rows_of_all_kinds(device: str, labels: int) -> None:
    y = rows_of_all_kinds(labels).to(device)
    x = logits(8, labels, device=device)
    for given in options(8, labels, device):
        assert_same(x, y, given, torch.int64)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_every_layout(device: str, dtype: torch.dtype) -> None:
    """The rows of the labels are those of the logits, however these lie in memory."""
    x, y = logits(90, 60, dtype=dtype, device=device), labels(60, 90, device=device)
    full = torch.rand(90, 60, device=device)
    for given in ({}, {"weight": full.t()}, {"reduction": "none", "pos_weight": full[:, 0]}):
        assert_same(x.t(), y, given, torch.int64)
    assert_same(x.t()[::2], y[::2], {}, torch.int64)
    assert_same(x[:45].t()[:, 1:40], y[:, 1:40], {"pos_weight": 3.0}, torch.int32)
    assert_same(x[0].expand(60, 60), y[:, :60], {"pos_weight": 3.0}, torch.int32)


def test_extreme_logits(device: str) -> None:
    """Infinite logits and NaN, of positives and of others."""
    wild = torch.tensor([float("inf"), -float("inf"), float("nan"), 100.0, -100.0, 0.0])
    x = wild.repeat(2, 1).to(device)
    y = torch.zeros(2, 6, dtype=torch.bool, device=device)
    y[0] = True
    for chosen, given in product(backends(device), options(2, 6, device)):
        with backend(chosen):
            found, wanted = outcome(x, positives_of(y), given), outcome(x, y, given)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


def test_a_confident_positive_keeps_its_digits(device: str) -> None:
    """The loss of a positive is not what is left of that of a negative."""
    x = torch.full((1, 4), 30.0, device=device)
    everything = SparseLabels(*(torch.tensor(t, device=device) for t in ([0, 4], [0, 1, 2, 3])))
    exact = torch.nn.functional.softplus(-x.double()).sum().float()
    for chosen in backends(device):
        with backend(chosen):
            loss = weighted_bce_with_logits(x, everything, reduction="sum")
        torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    x, y = logits(3, 100_000), labels(3, 100_000)
    sparse = positives_of(y)
    once = outcome(x, sparse, {"pos_weight": 7.0})
    torch.set_num_threads(threads)
    again = outcome(x, sparse, {"pos_weight": 7.0})
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])


@pytest.mark.parametrize("index", INDICES)
def test_torchs_own_sparse_tensors(device: str, index: torch.dtype) -> None:
    x, y = logits(6, 9, device=device), labels(6, 9, device=device)
    wanted = weighted_bce_with_logits(x, y, pos_weight=7.0)
    csr = y.float().to_sparse_csr()
    csr = torch.sparse_csr_tensor(
        csr.crow_indices().to(index), csr.col_indices().to(index), csr.values(), csr.shape
    )
    close = {"rtol": 0, "atol": 0} if x.is_cpu else {}  # as in assert_same
    for target in (csr, y.to_sparse_coo(), y.long().to_sparse_coo()):
        found = weighted_bce_with_logits(x, target, pos_weight=7.0)
        torch.testing.assert_close(found, wanted, **close)
    with pytest.raises(TypeError, match="target must not require a gradient where it is sparse"):
        weighted_bce_with_logits(x, csr.requires_grad_())
    soft = (y * 0.5).to_sparse_coo()
    with pytest.raises(ValueError, match=r"0\.5"):
        weighted_bce_with_logits(x, soft)


def test_modules_and_probabilities(device: str) -> None:
    x, y = logits(6, 9, device=device), labels(6, 9, device=device)
    sparse = positives_of(y)
    for module in (
        WeightedBCEWithLogitsLoss(pos_weight=7.0, reduction="sum"),
        WeightedBCEWithLogitsLoss(reduction=lambda losses: losses.amax()),
        WeightBCEWithLogitsLoss(7.0, torch.sum),
    ):
        torch.testing.assert_close(module(x, sparse), module(x, y))
    p = x.sigmoid().requires_grad_()
    for reduction, given in product(REDUCTIONS, options(6, 9, device)):
        given.pop("inplace_backward", None)
        found = weighted_bce(p, sparse, reduction=reduction, **given)
        wanted = weighted_bce(p, y, reduction=reduction, **given)
        torch.testing.assert_close(found, wanted)
        own, other = (torch.autograd.grad(t.sum(), p)[0] for t in (found, wanted))
        torch.testing.assert_close(own, other)
    torch.testing.assert_close(WeightedBCELoss()(p, sparse), WeightedBCELoss()(p, y))


def test_derivatives_of_every_kind(device: str) -> None:
    y = labels(4, 5, device=device)
    y[0, 0] = True
    sparse = positives_of(y)
    x = torch.randn(4, 5, dtype=torch.float64, device=device, requires_grad=True)
    p = torch.rand(5, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.rand(4, 1, dtype=torch.float64, device=device, requires_grad=True)

    def loss(x: Tensor, **given: Any) -> Tensor:
        return weighted_bce_with_logits(x, sparse, **given)

    for reduction in REDUCTIONS:
        given: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
        assert torch.autograd.gradcheck(lambda x: loss(x, pos_weight=3.0, **given), (x,))  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda x: loss(x, pos_weight=3.0, **given), (x,))  # noqa: B023
        assert torch.autograd.gradcheck(
            lambda x, p, w: loss(x, pos_weight=p, weight=w, **given),  # noqa: B023
            (x, p, w),
            nondet_tol=0 if x.is_cpu else 1e-12,  # a GPU adds up in any order
        )


@pytest.mark.parametrize("inplace", [False, True])
def test_a_guessed_and_a_wrong_scale(device: str, inplace: bool) -> None:
    y = labels(30, 40, device=device)
    for scale in (1.0, 1.0, 1024.0, 1024.0, 0.0, -2.5):
        grads = []
        for target in (positives_of(y), y):
            x = torch.linspace(-5, 5, 1200, device=device).view(30, 40).requires_grad_()
            loss = weighted_bce_with_logits(x * 1, target, inplace_backward=inplace)
            (loss * scale).backward()
            grads.append(x.grad)
        assert torch.equal(*grads)  # type: ignore[arg-type]


def test_the_graph_may_be_kept(device: str) -> None:
    x, y = logits(6, 9, device=device).requires_grad_(), labels(6, 9, device=device)
    loss = weighted_bce_with_logits(x, positives_of(y))
    first, second = (torch.autograd.grad(loss * k, x, retain_graph=True)[0] for k in (1, 3))
    torch.testing.assert_close(second, 3 * first)
    y_index = positives_of(y)
    loss = weighted_bce_with_logits(x, y_index)
    y_index.col_indices[:1] = 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss * 2).backward()


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize("index", INDICES)
def test_a_part_of_the_labels_and_rows(kernel_device: str, index: torch.dtype) -> None:
    """The ops use the list of all rows and labels, uncut, for some of them."""
    ops = torch.ops.weighted_bce
    x, y = logits(12, 2000, device=kernel_device), labels(12, 2000, device=kernel_device)
    crow, col = positives_of(y, index)
    one = torch.tensor(1.0, device=kernel_device)
    for rows, columns in product(
        (slice(0, 12), slice(0, 5), slice(5, 12), slice(4, 4)),
        (slice(0, 2000), slice(0, 700), slice(700, 1999), slice(1999, 2000), slice(9, 9)),
    ):
        part, own = x[rows, columns].contiguous(), y[rows, columns]
        for ignore in (None, 0.0, 1.0):
            rest = (None, None, 7.0, 0.0, ignore)
            listed = (col, crow[rows.start : rows.stop + 1], *rest, columns.start, 1)
            dense = (own, None, *rest, None, 1)
            for found, wanted in zip(
                ops.loss_and_grad(one, part, *listed),
                ops.loss_and_grad(one, part, *dense),
                strict=True,
            ):
                torch.testing.assert_close(found, wanted, equal_nan=True)


def test_no_dense_target_is_made(device: str) -> None:
    """Neither for the kernels nor by the reference."""
    x, y = logits(20, 50, device=device).requires_grad_(), labels(20, 50, device=device)
    sparse = positives_of(y)
    made: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = op(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.shape == y.shape:
                    made.append(str(op)) if torch.equal(tensor.double(), y.double()) else None
            return result

    for chosen in backends(device):
        with backend(chosen), Watch():
            weighted_bce_with_logits(x, sparse, pos_weight=7.0).backward()
            weighted_bce_with_logits(x, sparse, ignore_index=0)
            assert not made
            weighted_bce_with_logits(x, y.float() * 1)
        assert made  # it would have been seen
        made.clear()
