"""Gradient memory is reused, bounded, never shared."""

import copy
import io
import pickle
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

pytest.importorskip("psutil")

import psutil
from torch import Tensor

from weighted_bce import SparseLabels, empty_cache, weighted_bce_with_logits
from weighted_bce._extension import extension

from .grids import one_at_a_time
from .truth import SUM

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

ROWS, LABELS = 512, 1024  # a gradient of 2 MiB, large enough to be kept


def gradient(rows: int = ROWS, value: float = 0.0) -> Tensor:
    x = torch.full((rows, LABELS), value, requires_grad=True)
    weighted_bce_with_logits(x, torch.zeros_like(x, dtype=torch.bool), reduction="sum").backward()
    assert x.grad is not None
    return x.grad


def kept() -> int:
    assert extension is not None
    return int(extension.kept_bytes())


@pytest.fixture(autouse=True)
def _empty() -> None:
    empty_cache()


def test_memory_of_a_dead_gradient_is_reused() -> None:
    """But a small gradient does not lie in the memory of a large one."""
    large = gradient(16 * ROWS)
    pointer = large.data_ptr()
    del large
    assert kept() >= 16 * ROWS * LABELS * 4
    small = gradient()
    assert small.data_ptr() != pointer
    again = gradient(16 * ROWS)
    assert again.data_ptr() == pointer
    assert kept() == 0


@pytest.mark.parametrize("part", [..., (slice(100, 200), slice(None, None, 2))])
def test_living_gradients_share_nothing(part: Any) -> None:
    """A view of one keeps its memory as well."""
    living = [gradient(value=float(i))[part] for i in range(5)]
    for i, grad in enumerate(living):
        torch.testing.assert_close(grad, torch.sigmoid(torch.full_like(grad, float(i))))


def test_a_saved_gradient_keeps_the_memory() -> None:
    """Held by the graph alone, between forward and backward."""
    xs = [torch.full((ROWS, LABELS), float(i), requires_grad=True) for i in range(3)]
    y = torch.zeros(ROWS, LABELS, dtype=torch.bool)
    losses = [weighted_bce_with_logits(x, y, reduction="sum") for x in xs]
    for loss in reversed(losses):
        loss.backward()
    for i, x in enumerate(xs):
        torch.testing.assert_close(x.grad, torch.sigmoid(torch.full_like(x, float(i))))


def test_a_gradient_goes_where_others_go() -> None:
    """Its storage cannot be resized; what copies, moves, packs or shares a gradient does not."""
    holder = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(ROWS, LABELS))])
    grad = holder[0].grad = gradient(value=3.0)
    assert not grad.untyped_storage().resizable()
    expected = grad.clone()
    file = io.BytesIO()
    torch.save(grad, file)
    file.seek(0)
    leaf = grad.detach().requires_grad_()
    with torch.autograd.graph.save_on_cpu():
        squared = leaf.square().sum()
    squared.backward()
    copies = [
        torch.load(file),
        copy.deepcopy(grad),
        pickle.loads(pickle.dumps(grad)),
        torch.from_numpy(grad.numpy()),
        torch.from_dlpack(grad),
        leaf.grad / 2,
        holder.double()[0].grad.float(),
        gradient(value=3.0).share_memory_(),
    ]
    assert copies[-1].is_shared()
    for same in copies:
        assert torch.equal(same, expected)
    holder.float()[0].grad = gradient(value=3.0)
    torch.nn.utils.clip_grad_norm_(holder.parameters(), 1.0)
    torch.testing.assert_close(holder[0].grad, expected / expected.norm())
    holder.to("meta")
    assert holder[0].grad.is_meta


def test_empty_cache_gives_it_back() -> None:
    process = psutil.Process()
    grad = gradient(64 * ROWS)  # 128 MiB
    empty_cache()
    assert torch.isfinite(grad).all()
    held = process.memory_info().rss
    del grad
    assert kept() >= 128 << 20
    empty_cache()
    assert kept() == 0
    assert process.memory_info().rss < held - (100 << 20)


def test_kept_memory_is_bounded() -> None:
    y = torch.zeros(1, LABELS, dtype=torch.bool)
    args = (None, None, None, 1.0, 0.0, None, None, SUM)
    one = torch.zeros(1, LABELS)
    rows = 48 * ROWS  # 96 MiB, 14 of which are more than 1 GiB
    living = [
        torch.ops.weighted_bce.loss_and_grad(
            torch.tensor(1.0), one.expand(rows, -1), y.expand(rows, -1), *args
        )[1]
        for _ in range(14)
    ]
    assert kept() == 0
    del living
    assert 0 < kept() <= 1 << 30
    empty_cache()


def test_many_threads() -> None:
    def work(number: int) -> None:
        for step in range(12):
            value = float(number * 100 + step) / 100
            grad = gradient(ROWS * (1 + (number + step) % 3), value)
            if step % 5 == 0:
                empty_cache()
            expected = torch.sigmoid(torch.tensor(value))
            assert torch.allclose(grad, expected.expand_as(grad)), (number, step)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))  # raises what a thread raised


def test_nothing_outlives_the_loss(device: str) -> None:
    """No cycle or cache holds the logits, the target or the gradient."""
    x = torch.zeros(ROWS, LABELS, device=device, requires_grad=True)
    y = torch.zeros(ROWS, LABELS, dtype=torch.bool, device=device)
    loss = weighted_bce_with_logits(x, y)
    loss.backward(torch.tensor(3.0, device=device))
    references = [weakref.ref(t) for t in (x, y, loss)]
    del x, y, loss
    for _ in range(100):  # a thread of autograd may hold them a moment longer
        if any(r() is not None for r in references):
            time.sleep(0.01)
    assert [r() for r in references] == [None, None, None]


def available_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


@pytest.mark.large
@one_at_a_time(sparse=[True, False], inplace=[True, False])
def test_more_than_two_to_the_31_elements(device: str, sparse: bool, inplace: bool) -> None:
    """An index of 32 bits would be negative at the far end."""
    gibibytes = 13 - 4 * inplace - 2 * sparse
    if available_bytes(device) < gibibytes << 30:
        available = available_bytes(device) / 2**30
        pytest.skip(f"needs {gibibytes} GiB, {available:.1f} GiB are available")
    rows, columns = (1 << 21) + 3, 1024
    x = torch.zeros(rows, columns, dtype=torch.bfloat16, device=device)
    x[-1], x[1 << 20, 7] = 3.0, -2.0
    crow = torch.zeros(rows + 1, dtype=torch.int32, device=device)
    crow[(1 << 20) + 1 :], crow[-1] = 1, 6
    col = torch.tensor([7, *range(columns - 5, columns)], dtype=torch.int32, device=device)
    labels = SparseLabels(crow, col)
    x.requires_grad_()
    y = labels if sparse else labels.to_dense(columns)
    loss = weighted_bce_with_logits(x, y, pos_weight=7.0, reduction="sum", inplace_backward=inplace)
    loss.backward()
    assert x.grad is not None
    three, two = (torch.tensor(v, dtype=torch.float64, device=device) for v in (3.0, 2.0))
    softplus = torch.nn.functional.softplus
    expected = (rows * columns - columns - 1) * two.log()
    expected += (columns - 5) * softplus(three) + 5 * 7 * softplus(-three) + 7 * softplus(two)
    assert abs(loss.item() / expected.item() - 1) < 1e-6
    assert (x.grad[:2] == 0.5).all()
    assert (x.grad[-2] == 0.5).all()
    assert (x.grad[-1, :-5] == torch.sigmoid(three).bfloat16()).all()
    assert (x.grad[-1, -5:] == (-7 * torch.sigmoid(-three)).bfloat16()).all()
    assert x.grad[1 << 20, 7] == (-7 * torch.sigmoid(two)).bfloat16()
    del x, y, loss
    empty_cache()
    if device == "cuda":  # other processes may want it
        torch.cuda.empty_cache()
