"""The loss of sparse labels is that of the dense target which they stand for, bit for bit."""

from collections.abc import Iterator
from itertools import product
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weighted_bce import backend, weighted_bce_with_logits
from weighted_bce._extension import extension

from .comparison import backends, outcome
from .truth import INPUT_DTYPES, REDUCTIONS, labels, logits, options_of, positives_of

INDICES = (torch.int32, torch.int64)
# Around the vectors, blocks (384 or 768) and chunks (32768) of the CPU and the groups of a GPU.
SHAPES = (
    *((1, 1), (5, 1), (1, 7), (9, 16), (40, 3), (3, 385), (2, 769), (700, 2), (1, 70_000)),
    *((3, 33_000), (0, 4), (4, 0), (8, 1), (8, 5), (8, 40), (8, 800), (8, 2000)),
)


def hard(rows: int, labels: int, device: str) -> Tensor:
    """Few positives; of 8 rows, one has none, others have all, the first, the last, every other."""
    y = torch.rand(rows, labels) < (0.01 if rows == 8 else 0.1)
    if rows == 8:
        y[0] = False
        y[1] = True
        y[3, 0] = y[4, -1] = True
        y[5, ::2] = True
    return y.to(device)


def both(x: Tensor, y: Tensor, index: torch.dtype, **given: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The loss of sparse labels and of the dense target, and the gradients."""
    shape = x.shape if given.get("reduction") == "none" else ()
    dtype = x.dtype if shape or x.dtype == torch.float64 else torch.float32
    grad_output = torch.randn(shape, dtype=dtype, device=x.device)  # that was not expected
    results = (
        outcome(lambda x, t=target: weighted_bce_with_logits(x * 1, t, **given), x, grad_output)
        for target in (positives_of(y, index), y)
    )
    return zip(*results, strict=True)


def assert_same(x: Tensor, y: Tensor, index: torch.dtype = torch.int64, **given: Any) -> None:
    """Logits that lie in another order, or on a GPU, are summed in another order."""
    for sparse, dense in both(x, y, index, **given):
        if x.is_cpu and x.is_contiguous() and extension is not None:
            assert torch.equal(sparse.nan_to_num(77), dense.nan_to_num(77)), given.keys()
        else:
            torch.testing.assert_close(sparse, dense, equal_nan=True)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(device: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, y = logits(*shape, dtype=dtype, device=device), hard(*shape, device)
    for k, given in enumerate(options_of(*shape, device)):
        for reduction in REDUCTIONS:
            assert_same(x, y, INDICES[k % 2], **given, reduction=reduction)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_every_layout(device: str, dtype: torch.dtype) -> None:
    """The rows of the labels are those of the logits, however these lie in memory."""
    x, y = logits(90, 60, dtype=dtype, device=device), labels(60, 90, device=device)
    full = torch.rand(90, 60, device=device)
    for given in ({}, {"weight": full.t()}, {"reduction": "none", "pos_weight": full[:, 0]}):
        assert_same(x.t(), y, **given)
    assert_same(x.t()[::2], y[::2])
    assert_same(x[:45].t()[:, 1:40], y[:, 1:40], torch.int32, pos_weight=3.0)
    assert_same(x[0].expand(60, 60), y[:, :60], torch.int32, pos_weight=3.0)


def test_indices_of_any_stride(device: str) -> None:
    x, y = logits(3, 5, device=device), labels(3, 5, device=device)
    crow, col = positives_of(y)
    expected = weighted_bce_with_logits(x, y)
    for strided in (
        positives_of(y)._replace(crow_indices=crow.repeat_interleave(2)[::2]),
        positives_of(y)._replace(col_indices=torch.stack([col, col], 1)[:, 0]),
    ):
        torch.testing.assert_close(weighted_bce_with_logits(x, strided), expected)


def test_extreme_logits(device: str, chosen: str) -> None:
    """Infinite logits and NaN, of positives and of others."""
    x = torch.tensor([inf, -inf, nan, 100.0, -100.0, 0.0], device=device).repeat(2, 1)
    y = torch.zeros(2, 6, dtype=torch.bool, device=device)
    y[0] = True
    for given in options_of(2, 6, device):
        for sparse, dense in both(x, y, torch.int64, **given):
            torch.testing.assert_close(sparse, dense, equal_nan=True)


@pytest.mark.parametrize("index", INDICES)
def test_torchs_own_sparse_tensors(device: str, index: torch.dtype) -> None:
    x, y = logits(6, 9, device=device), labels(6, 9, device=device)
    expected = weighted_bce_with_logits(x, y, pos_weight=7.0)
    csr = y.float().to_sparse_csr()
    csr = torch.sparse_csr_tensor(
        csr.crow_indices().to(index), csr.col_indices().to(index), csr.values(), csr.shape
    )
    close = {"rtol": 0, "atol": 0} if x.is_cpu else {}  # as in assert_same
    for target in (csr, y.to_sparse_coo(), y.long().to_sparse_coo()):
        actual = weighted_bce_with_logits(x, target, pos_weight=7.0)
        torch.testing.assert_close(actual, expected, **close)


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize("index", INDICES)
def test_a_part_of_the_labels_and_rows(kernel_device: str, index: torch.dtype) -> None:
    """The ops take the indices of all rows and labels, uncut, for some of them."""
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
            sparse = (col, crow[rows.start : rows.stop + 1], *rest, columns.start, 1)
            dense = (own, None, *rest, None, 1)
            for actual, expected in zip(
                ops.loss_and_grad(one, part, *sparse),
                ops.loss_and_grad(one, part, *dense),
                strict=True,
            ):
                torch.testing.assert_close(actual, expected, equal_nan=True)


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
