"""FlopCounterMode counts the products of the linear layer that are made, and changes none."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    backend,
    weighted_bce_with_logits,
)

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


def layer(device: str, **options: Any) -> tuple[LinearWeightedBCEWithLogitsLoss, Any, Any]:
    """Returns a linear layer, an input and a target. Chunks of 64 labels are never small."""
    options = {"chunk_labels": 64, **options}
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device, **options)
    x = torch.randn(ROWS, FEATURES, device=device).to(criterion.linear.weight.dtype)
    return criterion, x.requires_grad_(), torch.rand(ROWS, LABELS, device=device) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_labels", [None, 1, 64])
@pytest.mark.parametrize("sparse", [False, True])
def test_training(device: str, sparse: bool, chunk_labels: int | None, dtype: torch.dtype) -> None:
    """The logits, and those gradients that are needed."""
    criterion, x, y = layer(device, chunk_labels=chunk_labels, dtype=dtype)
    y = SparseLabels.from_dense(y) if sparse else y
    assert products(lambda: criterion(x, y).backward()) == 3
    assert products(lambda: criterion(x.detach(), y).backward()) == 2
    criterion.linear.weight.requires_grad_(False)
    assert products(lambda: criterion(x, y).backward()) == 2
    assert products(lambda: criterion(x.detach(), y).backward()) == 1  # the bias needs the logits


@pytest.mark.parametrize("chunk_labels", [None, 64])
def test_training_by_the_reference(device: str, chunk_labels: int | None) -> None:
    criterion, x, y = layer(device, chunk_labels=chunk_labels)
    with backend("reference"):
        assert products(lambda: criterion(x, y).backward()) == 3


def test_gradients_that_are_computed_again(device: str) -> None:
    """Three products for the grad_output that was expected, and three for the one that came."""
    criterion, x, y = layer(device)

    def step(factor: float) -> None:
        (criterion(x, y) * factor).backward()

    assert products(lambda: step(2.0)) == 6
    assert products(lambda: step(2.0)) == 3
    for factor in (3.0, 4.0, 5.0):  # now it is no longer trusted
        step(factor)
    assert products(lambda: step(6.0)) == 4


@pytest.mark.parametrize("optimizer", [FusedSGD, FusedAdam])
def test_a_fused_step(device: str, optimizer: Any) -> None:
    """It computes the logits once more."""
    criterion, x, y = layer(device)
    criterion.fused_step = optimizer(criterion.parameters(), lr=0.1)

    def step(x: Any) -> None:
        criterion(x, y).backward()
        criterion.fused_step.step()

    assert products(lambda: step(x)) == 4
    assert products(lambda: step(x.detach())) == 3


def test_a_step_of_another_optimizer(device: str) -> None:
    """It gets the whole of a deferred gradient."""
    criterion, x, y = layer(device)
    criterion.fused_step = FusedSGD(criterion.parameters(), lr=0.1)
    criterion(x, y).backward()
    assert products(torch.optim.SGD(criterion.parameters(), lr=0.1).step) == 2


def test_tensors_without_numbers() -> None:
    """The ops, which see them, compute the logits again in backward."""
    with torch.device("meta"):
        criterion, x, y = layer("meta")
    assert products(lambda: criterion(x, y).backward()) == 4
    with FakeTensorMode():
        criterion, x, y = layer("cpu")
    criterion(x, y).backward()
    assert products(lambda: criterion(x, y).backward()) == 4


def test_a_counter_changes_nothing(device: str) -> None:
    """What is counted is the training of which one wants to know it."""
    criterion, x, y = layer(device)

    def gradients(grad_output: float) -> list[Any]:
        leaves = [x, *criterion.parameters()]
        for leaf in leaves:
            leaf.grad = None
        (criterion(x, y) * grad_output).backward()
        return [leaf.grad for leaf in leaves]

    for grad_output in (1.0, 3.0):
        expected = gradients(grad_output)
        with FlopCounterMode(display=False):
            counted = gradients(grad_output)
        torch.testing.assert_close(counted, expected)


@pytest.mark.filterwarnings("error")
def test_dense_losses_count_nothing(device: str) -> None:
    """As for torch's own losses, the table says 0."""
    x = torch.randn(ROWS, LABELS, device=device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        for reduction in ("mean", "none"):
            (3 * weighted_bce_with_logits(x, x > 0, reduction=reduction).sum()).backward()
    assert counter.get_total_flops() == 0
    pytest.importorskip("tabulate", reason="torch makes its tables with tabulate")
    assert counter.get_table().split()[-3:] == ["Global", "0", "0%"]


def test_evaluation(device: str) -> None:
    criterion, x, y = layer(device)
    with torch.no_grad():
        assert products(lambda: criterion(x, y)) == 1
        assert products(lambda: criterion.topk(x, 3)) == 1
        assert products(lambda: criterion.logits(x)) == 1


@pytest.mark.filterwarnings("ignore:all logits are held")
def test_a_layer_with_hooks(device: str) -> None:
    """Its own forward makes a product, and backward two."""
    criterion, x, y = layer(device, chunk_labels=None)
    criterion.linear.register_forward_hook(lambda *_: None)
    assert products(lambda: criterion(x, y).backward()) == 3


def test_import_does_not_bring_the_counter() -> None:
    """It imports triton, which takes long where there is one."""
    run_python("import sys, weighted_bce; assert 'torch.utils.flop_counter' not in sys.modules")
