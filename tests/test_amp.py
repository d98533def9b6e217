"""Automatic mixed precision: the kernels read the half logits, and gradients may be scaled."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_bce import weighted_bce_with_logits

from . import linear_cases
from .comparison import assert_grad
from .linear_cases import assert_loss, base, grads_of
from .truth import REDUCTIONS, Case, labels, truth
from .ways import assert_grads, in_each_way, leaves_of, one_case

HALVES = (torch.float16, torch.bfloat16)
WHAT_COPIES = {"aten::_to_copy", "aten::copy_", "aten::clone", "aten::contiguous"}


def half_logits(device: str, dtype: torch.dtype) -> Tensor:
    """The logits of a layer under autocast, as a leaf."""
    layer = nn.Linear(20, 900, device=device)
    with torch.autocast(device, dtype):
        x: Tensor = layer(torch.randn(40, 20, device=device))
    assert x.dtype == dtype
    return x.detach().requires_grad_()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_makes_no_copy(
    kernel_device: str, dtype: torch.dtype, reduction: str, sparse: torch.dtype | None
) -> None:
    """Forward and backward convert and copy nothing; a reduced loss is float32, and both right."""
    x, y = half_logits(kernel_device, dtype), labels(40, 900, device=kernel_device)
    case = Case(x.detach(), y, None, 7.0, reduction, sparse=sparse)
    target = case.given
    with torch.autograd.profiler.profile() as profile, torch.autocast(kernel_device, dtype):
        loss = weighted_bce_with_logits(x, target, None, 7.0, reduction)
        with torch.no_grad():
            weighted_bce_with_logits(x, target, None, 7.0, reduction)
        loss.backward(torch.ones_like(loss))
    names = {event.name for event in profile.function_events}
    assert "FusedLossBackward" in names
    assert not names & WHAT_COPIES
    assert loss.dtype == (dtype if reduction == "none" else torch.float32)
    assert_grad(x.grad, case, 1)
    expected = truth(case).loss.mean().float()
    if reduction == "mean":
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)


class Seen(TorchDispatchMode):
    """Remembers each op and the dtypes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[str, list[torch.dtype]]] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.ops.append((str(op), [a.dtype for a in args if isinstance(a, Tensor)]))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", HALVES)
def test_modes_and_hooks_see_the_half_logits(kernel_device: str, dtype: torch.dtype) -> None:
    x, y = half_logits(kernel_device, dtype), labels(40, 900, device=kernel_device)
    saved: list[Tensor] = []
    seen = Seen()
    for observer in (saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), seen):
        with observer, torch.autocast(kernel_device, dtype):
            weighted_bce_with_logits(x, y, reduction="sum").backward()
    assert any(t.data_ptr() == x.data_ptr() for t in saved)
    assert {t.dtype for t in saved if t.numel() > 1} == {dtype, torch.bool}
    assert [op for op in seen.ops if op[0].startswith("weighted_bce")] == [
        ("weighted_bce.loss.default", [dtype, torch.bool]),
        ("weighted_bce.grad.default", [torch.float32, dtype, torch.bool]),
    ]
    assert not [name for name, _ in seen.ops if "copy" in name]


@pytest.mark.parametrize("half", HALVES)
def test_autocast_of_a_layer(device: str, half: torch.dtype) -> None:
    """The gradients have the dtypes of what they belong to; half precision and float32 may mix."""
    single, double = base(torch.float32, device), base(torch.float64, device)
    mixed = replace(single, input=single.input.to(half))
    close = None if device == "cpu" else 0.02
    for case, relative in ((single, close), (mixed, 0.02), (double, None)):
        leaves = case.leaves()
        with torch.autocast(device, half):
            loss = case(*leaves)
        loss.backward()
        assert_loss(loss, case, relative)
        linear_cases.assert_grads(grads_of(leaves), case, 1.0, relative)


@in_each_way
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_any_scale(device: str, way: str, dtype: torch.dtype, reduction: str) -> None:
    """Each micro step is right, also the first after the scale or the number of steps changed."""
    case = one_case(way, device, dtype, reduction=reduction)
    for scale, steps in ((1024.0, 4), (2048.0, 4), (512.0, 3), (512.0, 1)):
        scaler = torch.amp.GradScaler(device, init_scale=scale)
        for _ in range(steps):
            leaves = leaves_of(case)
            scaler.scale(case(*leaves) / steps).backward()
            assert_grads(grads_of(leaves), case, scale / steps)
