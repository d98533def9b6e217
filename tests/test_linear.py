"""The loss of a linear layer equals that of its logits, whatever the chunks."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from weighted_bce import LinearWeightedBCEWithLogitsLoss, SparseLabels, backend
from weighted_bce import linear_weighted_bce_with_logits as linear_loss
from weighted_bce.linear import _chunks

from .comparison import backends
from .linear_cases import (
    DTYPES,
    FEATURES,
    LABELS,
    REDUCTIONS,
    assert_grads,
    assert_loss,
    assert_near,
    assert_right,
    base,
    cases,
    grads_of,
    multiply_halves,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients(device: str, dtype: torch.dtype) -> None:
    for case in cases(device, dtype):
        for chosen in backends(device):
            with backend(chosen):
                loss, *_ = assert_right(case)
        assert_near(case(), loss)  # without gradients


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_average(device: str, shape: tuple[int, int]) -> None:
    leaves = base(torch.float32, device, *shape).leaves()
    loss = base(torch.float32, device, *shape)(*leaves)
    assert loss.isnan()
    loss.backward()
    for leaf, grad in zip(leaves, grads_of(leaves), strict=True):
        assert grad is not None
        assert grad.shape == leaf.shape


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_has_no_gradient_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, reduction: str, shape: tuple[int, int]
) -> None:
    """The divisor, which comes last there, is 0; the products are 0 too."""
    multiply_halves(monkeypatch)
    leaves = base(dtype, "cpu", *shape, reduction=reduction).leaves()
    loss = base(dtype, "cpu", *shape, reduction=reduction)(*leaves)
    for grad, leaf in zip(torch.autograd.grad(loss.sum() * 1024, leaves), leaves, strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_layouts_of_the_layer(device: str) -> None:
    case = base(torch.float32, device)
    x = case.input.T.contiguous().T
    by_columns = case.linear_weight.T.contiguous().T
    every_other = torch.randn(2 * LABELS, 2 * FEATURES, device=device)[::2, ::2]
    repeated = torch.randn(1, FEATURES, device=device).expand(LABELS, FEATURES)
    for weight in (by_columns, every_other, repeated):
        assert_right(replace(case, linear_weight=weight))
        assert_right(replace(case, input=x, linear_weight=weight))
    assert_right(replace(case, linear_bias=torch.randn(2 * LABELS, device=device)[::2]))
    leaves = replace(case, linear_weight=by_columns).leaves()
    case(*leaves).backward()
    assert leaves[1].grad is not None
    assert leaves[1].grad.stride() == by_columns.stride()


def test_target_as_torch_sparse_tensor(device: str) -> None:
    case = base(torch.float32, device)
    for target in (case.target.float().to_sparse_csr(), case.target.float().to_sparse_coo()):
        assert_loss(case(target=target), case)


def test_half_precision_is_not_rounded_before_the_loss(device: str) -> None:
    """Logits around 300 are 2 apart in bfloat16; those of the two rows are closer."""
    x = torch.tensor([[300.0, 0.5], [300.0, 1.0]], device=device).bfloat16()
    weight = torch.ones(1, 2, device=device, dtype=torch.bfloat16)
    loss = linear_loss(x, weight, torch.zeros(2, 1, device=device), reduction="sum")
    assert loss.item() == 601.5


def test_tiny_factors_do_not_vanish(device: str) -> None:
    """1 / (rows * labels) is below the smallest float16 where the gradient is not."""
    rows, labels = 4, 30_000_000 // 4
    x = torch.ones(rows, 1, device=device, dtype=torch.float16).requires_grad_()
    weight = torch.ones(labels, 1, device=device, dtype=torch.float16)
    target = SparseLabels.from_lists([[]] * rows).to(device)
    (grad,) = torch.autograd.grad(linear_loss(x, weight, target), x)
    assert_near(grad, torch.full_like(x, torch.tensor(1.0).sigmoid().item() / rows), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Half precision goes into the products, float32 comes out, and the divisor comes last."""
    operands = multiply_halves(monkeypatch)
    rounding = 2.0 ** -(8 if dtype == torch.bfloat16 else 11)
    for case in cases("cpu", dtype):
        assert_right(case, 2.5, 3 * rounding)  # the slopes are rounded too
    case = base()
    leaves = case.leaves()
    with torch.autocast("cpu", dtype):
        loss = case(*leaves)
    loss.backward()
    assert_loss(loss, case, 10 * rounding)
    assert_grads(grads_of(leaves), case, 1.0, 10 * rounding)
    assert operands == {dtype}


def test_chunks_on_cuda_leave_most_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's allocator keeps is free too; it is asked only where the driver has little."""
    rows, most = 1024, 2**25 // (4 * 1024)
    x: Any = torch.empty(rows, 1)
    weight: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    asked: list[str] = []
    state = {"free": 0, "memory_reserved": 0, "memory_allocated": 0}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (state["free"], 2**37))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _, n=name: asked.append(n) or state[n])
    for free, reserved, allocated, labels in (
        (2**30, 2**36, 2**36, most),
        (2**20, 2**36, 2**35, most),
        (2**26, 2**36, 2**36 - 2**26, most // 2),
        (0, 2**36, 2**36, 1024),
    ):
        state.update(free=free, memory_reserved=reserved, memory_allocated=allocated)
        asked.clear()
        assert _chunks._chosen_labels([x], weight) == labels
        assert bool(asked) == (free < 2**28)


@pytest.mark.parametrize("chunks", [3, 11, 23, 27, 40])
def test_the_same_bits_with_and_without_gradients(device: str, chunks: int) -> None:
    """The sums of many chunks are added in the same order."""
    labels = 100 * chunks
    x, y = torch.randn(9, 16, device=device), torch.rand(9, labels, device=device) < 0.1
    weight = torch.randn(labels, 16, device=device)
    options: dict[str, Any] = {"reduction": "sum", "chunk_labels": 100}
    wanted = linear_loss(x, weight, y, **options)
    for reads in (x, weight):
        reads.requires_grad_()
        assert torch.equal(linear_loss(x, weight, y, **options), wanted)


def test_module() -> None:
    weights = torch.rand(LABELS)
    options: dict[str, Any] = {"pos_weight": 3.0, "reduction": "sum", "label_smoothing": 0.1}
    by_number = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, chunk_labels=64, **options)
    assert "pos_weight=3.0, reduction='sum', label_smoothing=0.1" in repr(by_number)
    assert set(by_number.state_dict()) == {"linear.weight", "linear.bias"}
    tensors: dict[str, Any] = {"weight": weights, "pos_weight": weights * 2}
    by_tensors = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, chunk_labels=64, dtype=torch.float64, **tensors
    )
    assert set(dict(by_tensors.named_buffers())) == {"weight", "pos_weight"}
    assert by_tensors.linear.weight.dtype == torch.float64
    for criterion, given in ((by_number, options), (by_tensors, tensors)):
        assert isinstance(criterion.linear, torch.nn.Linear)
        case = base(criterion.linear.weight.dtype, **given)
        wanted = case(case.input, criterion.linear.weight, criterion.linear.bias)
        assert torch.equal(criterion(case.input, case.target), wanted)
        assert torch.equal(criterion.logits(case.input), criterion.linear(case.input))
    assert LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, False).linear.bias is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_labels", [None, 1, 40, LABELS])
def test_topk(device: str, dtype: torch.dtype, chunk_labels: int | None) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, chunk_labels=chunk_labels, device=device, dtype=dtype
    )
    x = base(dtype, device).input
    logits = torch.nn.functional.linear(x.double(), *(p.double() for p in criterion.parameters()))
    for k in (1, 5, LABELS):
        values, indices = criterion.topk(x, k)
        assert values.shape == indices.shape == (len(x), k)
        assert indices.dtype == torch.int64
        assert not values.requires_grad
        assert_near(values, logits.topk(k).values)
        assert_near(values, logits.gather(1, indices))
        assert len(set(indices[0].tolist())) == k


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy(integer: Any) -> None:
    case = base()
    assert_right(case.with_options(chunk_labels=integer(64)))
    assert torch.equal(case(chunk_labels=integer(64)), case())
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, chunk_labels=integer(64))
    assert torch.equal(
        criterion.topk(case.input, integer(5)).indices, criterion.topk(case.input, 5)[1]
    )


def test_topk_in_one_graph(device: str) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
    x = base(torch.float32, device).input
    compiled = torch.compile(criterion.topk, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, 5).indices, criterion.topk(x, 5).indices)
