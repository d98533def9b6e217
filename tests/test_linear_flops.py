"""FlopCounterMode counts the products of the linear layer that are made."""

from typing import Any

import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from weighted_bce import LinearWeightedBCEWithLogitsLoss, SparseLabels

from .linear_cases import FEATURES, LABELS, ROWS
from .scripts import run_python

PRODUCT = 2 * ROWS * FEATURES * LABELS  # as torch counts it for nn.Linear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear_loss", "linear_grads", "linear_topk"):
        op = getattr(torch.ops.weighted_bce, name)
        monkeypatch.delitem(flop_counter.flop_registry, op, raising=False)


def products(call: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / PRODUCT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_labels", [None, 1, 64])
@pytest.mark.parametrize("sparse", [False, True])
def test_training(device: str, sparse: bool, chunk_labels: int | None, dtype: torch.dtype) -> None:
    """The logits twice, since the ops are separate, and those gradients that are needed."""
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, chunk_labels=chunk_labels, device=device, dtype=dtype
    )
    x = torch.randn(ROWS, FEATURES, device=device).to(dtype)
    y: Any = torch.rand(ROWS, LABELS, device=device) < 0.1
    y = SparseLabels.from_dense(y) if sparse else y
    assert products(lambda: criterion(x.requires_grad_(), y).backward()) == 4
    assert products(lambda: criterion(x.detach(), y).backward()) == 3
    criterion.linear.weight.requires_grad_(False)
    assert products(lambda: criterion(x, y).backward()) == 3
    assert products(lambda: criterion(x.detach(), y).backward()) == 2  # the bias needs the logits


def test_evaluation(device: str) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
    x, y = torch.randn(ROWS, FEATURES, device=device), torch.zeros(ROWS, LABELS, device=device)
    with torch.no_grad():
        assert products(lambda: criterion(x, y)) == 1
        assert products(lambda: criterion.topk(x, 3)) == 1
        assert products(lambda: criterion.logits(x)) == 1


@pytest.mark.filterwarnings("ignore:all logits are held")
def test_a_layer_with_hooks(device: str) -> None:
    """Its own forward makes a product, and backward two."""
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
    criterion.linear.register_forward_hook(lambda *_: None)
    x, y = torch.randn(ROWS, FEATURES, device=device), torch.zeros(ROWS, LABELS, device=device)
    assert products(lambda: criterion(x.requires_grad_(), y).backward()) == 3


def test_import_does_not_bring_the_counter() -> None:
    """It imports triton, which takes long where there is one."""
    run_python("import sys, weighted_bce; assert 'torch.utils.flop_counter' not in sys.modules")
