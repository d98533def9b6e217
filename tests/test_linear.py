"""The loss of a linear layer equals that of its logits, whatever the chunks."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from weighted_bce import (
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    backend,
    linear_weighted_bce_with_logits,
)
from weighted_bce.linear import _chunks

from .linear_cases import (
    DTYPES,
    FEATURES,
    LABELS,
    REDUCTIONS,
    assert_near,
    assert_right,
    base,
    cases,
    expected,
    tolerance,
)
from .truth import backends

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients(device: str, dtype: torch.dtype) -> None:
    for case in cases(device, dtype):
        for chosen in backends(device):
            with backend(chosen):
                assert_right(case if case.target.numel() else case.with_options(reduction="sum"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(device: str, reduction: str) -> None:
    for dtype in DTYPES:
        for sparse in (None, torch.int64):
            case = replace(base(dtype, device), sparse=sparse)
            assert_right(case.with_options(reduction=reduction, pos_weight=3.0))


def test_without_gradients(device: str) -> None:
    for case in cases(device, torch.float32):
        if case.target.numel():
            loss = case()
            assert not loss.requires_grad
            assert_near(loss, expected(case)[0], tolerance(loss.dtype), case.name)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_average(device: str, shape: tuple[int, int]) -> None:
    case = base(torch.float32, device, *shape)
    leaves = case.leaves()
    loss = case(leaves)
    assert loss.isnan()
    loss.backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape


def test_no_features(device: str) -> None:
    case = base(torch.float32, device)
    case = replace(case, input=case.input[:, :0], linear_weight=case.linear_weight[:, :0])
    leaves = case.leaves()
    loss = case(leaves)
    assert_near(loss, expected(case)[0], tolerance(loss.dtype))
    loss.backward()
    assert_near(leaves[2].grad, expected(case)[1][2], tolerance(loss.dtype))


def test_layouts_of_the_layer(device: str) -> None:
    case = base(torch.float32, device)
    rows, labels = case.target.shape
    x = torch.randn(FEATURES, rows, device=device).T
    by_columns = case.linear_weight.T.contiguous().T
    every_other = torch.randn(2 * labels, 2 * FEATURES, device=device)[::2, ::2]
    shared = torch.randn(1, FEATURES, device=device).expand(labels, FEATURES)
    for weight in (by_columns, every_other, shared):
        assert_right(replace(case, linear_weight=weight))
        assert_right(replace(case, input=x, linear_weight=weight))
    bias = torch.randn(2 * labels, device=device)[::2]
    assert_right(replace(case, linear_bias=bias))


def test_gradients_have_the_layout_of_the_weight() -> None:
    case = base()
    weight = case.linear_weight.T.contiguous().T.requires_grad_()
    case((case.input, weight, None)).backward()
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


def test_target_as_torch_sparse_tensor(device: str) -> None:
    case = replace(base(torch.float32, device), sparse=torch.int64)
    x, weight, bias = case.layer
    for target in (case.target.float().to_sparse_csr(), case.target.float().to_sparse_coo()):
        loss = linear_weighted_bce_with_logits(x, weight, target, linear_bias=bias)
        assert_near(loss, expected(case)[0], tolerance(loss.dtype))


def test_half_precision_is_not_rounded_before_the_loss(device: str) -> None:
    """Logits around 300 are 2 apart in bfloat16; those of the two rows are closer."""
    x = torch.tensor([[300.0, 0.5], [300.0, 1.0]], device=device).bfloat16()
    weight = torch.ones(1, 2, device=device, dtype=torch.bfloat16)
    target = torch.zeros(2, 1, device=device)
    loss = linear_weighted_bce_with_logits(x, weight, target, reduction="sum")
    assert loss.item() == 601.5


def test_tiny_factors_do_not_vanish(device: str) -> None:
    """1 / (rows * labels) is below the smallest float16 where the gradient is not."""
    rows, labels = 4, 30_000_000 // 4
    x = torch.ones(rows, 1, device=device, dtype=torch.float16).requires_grad_()
    weight = torch.zeros(labels, 1, device=device, dtype=torch.float16)
    target = SparseLabels.from_lists([[]] * rows).to(device)
    loss = linear_weighted_bce_with_logits(x, weight + 1, target)
    (grad,) = torch.autograd.grad(loss, x)
    assert_near(grad, torch.full_like(x, torch.tensor(1.0).sigmoid().item() / rows), 1e-3)


def test_products_of_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: half precision goes into the products, float32 comes out, and the scale comes
    last. A product that torch gives on CUDA alone is made of others here."""

    def wide_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        assert a.dtype == b.dtype
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)

    def half_operands(self: _chunks.Chunks, *arguments: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(_chunks, "_multiplies_halves", lambda x: True)
            original(self, *arguments)

    original = _chunks.Chunks.__init__
    monkeypatch.setattr(_chunks.Chunks, "__init__", half_operands)
    monkeypatch.setattr("weighted_bce.linear._chunks.product", wide_product)
    monkeypatch.setattr("weighted_bce.linear._passes.product", wide_product)
    for dtype in (torch.bfloat16, torch.float16):
        rounding = 2.0 ** -(8 if dtype == torch.bfloat16 else 11)
        for case in cases("cpu", dtype):
            if not case.target.numel():
                continue
            leaves = case.leaves()
            loss = case((*leaves, None)[:3])
            value, grads = expected(case, 2.5)
            assert_near(loss, value, tolerance(torch.float32), case.name)
            found = torch.autograd.grad(loss, leaves, torch.full_like(loss, 2.5))
            for leaf, actual, wanted in zip(leaves, found, grads, strict=True):
                assert actual.dtype == leaf.dtype
                assert_near(actual, wanted, 3 * rounding, case.name)  # the slopes are rounded too


def test_chunks_cover_all_labels_once() -> None:
    case = base()
    for size in (None, 1, 7, LABELS - 1, LABELS, 1000):
        chunks = _chunks.Chunks(_chunks.Layer(*case.layer), _chunks.ChunkOptions(None, size))
        found = [label for part in chunks for label in range(LABELS)[part]]
        assert found == list(range(LABELS))


def test_chunks_on_cuda_leave_most_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what torch's allocator keeps is free; it is asked only where little else is."""
    x = cast(Any, SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0)))
    asked: list[str] = []
    state = {"free": 0, "memory_reserved": 0, "memory_allocated": 0}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (state["free"], 2**37))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _, n=name: asked.append(n) or state[n])
    rows, most = 1024, 2**25 // (4 * 1024)
    for free, reserved, allocated, labels in (
        (2**30, 2**36, 2**36, most),
        (2**20, 2**36, 2**35, most),
        (2**26, 2**36, 2**36 - 2**26, most // 2),
        (0, 2**36, 2**36, 1024),
    ):
        state.update(free=free, memory_reserved=reserved, memory_allocated=allocated)
        asked.clear()
        assert _chunks._chosen_labels(rows, x, torch.float32) == labels
        assert bool(asked) == (free < 2**28)


def test_module() -> None:
    torch.manual_seed(0)
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, pos_weight=3.0, reduction="sum", label_smoothing=0.1, chunk_labels=64
    )
    plain = nn.Linear(FEATURES, LABELS)
    plain.load_state_dict(criterion.linear.state_dict())
    case = base()
    x = case.input.requires_grad_()
    wanted = linear_weighted_bce_with_logits(
        x,
        plain.weight,
        case.target,
        linear_bias=plain.bias,
        pos_weight=3.0,
        reduction="sum",
        label_smoothing=0.1,
        chunk_labels=64,
    )
    assert torch.equal(criterion(x, case.target), wanted)
    assert torch.equal(criterion.logits(x), plain(x))
    assert set(criterion.state_dict()) == {"linear.weight", "linear.bias"}
    assert "pos_weight=3.0, reduction='sum', label_smoothing=0.1" in repr(criterion)
    assert LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, False).linear.bias is None


def test_module_keeps_its_weights_as_buffers() -> None:
    weights = torch.rand(LABELS)
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, weight=weights, pos_weight=weights * 2, dtype=torch.float64
    )
    assert set(dict(criterion.named_buffers())) == {"weight", "pos_weight"}
    assert criterion.linear.weight.dtype == torch.float64
    case = base(torch.float64)
    layer = (case.input, criterion.linear.weight.detach(), criterion.linear.bias.detach())
    case = replace(case, linear_weight=layer[1], linear_bias=layer[2])
    wanted, _ = expected(case.with_options(weight=weights, pos_weight=weights * 2))
    assert_near(criterion(case.input, case.target), wanted, 1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_labels", [None, 1, 40, LABELS])
def test_topk(device: str, dtype: torch.dtype, chunk_labels: int | None) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, chunk_labels=chunk_labels, device=device, dtype=dtype
    )
    x = base(dtype, device).input
    wide = criterion.linear.weight.detach().double(), criterion.linear.bias.detach().double()
    logits = x.double() @ wide[0].T + wide[1]
    for k in (1, 5, LABELS):
        values, indices = criterion.topk(x, k)
        assert values.shape == indices.shape == (len(x), k)
        assert indices.dtype == torch.int64
        assert not values.requires_grad
        assert_near(values, logits.topk(k).values, tolerance(values.dtype))
        assert_near(values, logits.gather(1, indices), tolerance(values.dtype))
        assert len(set(indices[0].tolist())) == k
