"""Activation checkpointing, and hooks that keep what the loss saves somewhere else."""

import io
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from .comparison import assert_grad
from .linear_cases import grads_of
from .transforms import Ops
from .truth import Case, labels, truth
from .ways import (
    Scored,
    assert_grads,
    in_each_way,
    leaves_of,
    of_logits_and_layers,
    one_case,
)


@of_logits_and_layers
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(device: str, reentrant: bool, cases: Any) -> None:
    for case in cases(device):
        for _ in range(2):
            leaves = leaves_of(case)
            hidden = [leaf * 1.0 for leaf in leaves]
            (checkpoint(case, *hidden, use_reentrant=reentrant) * 3).backward()
            assert_grads(grads_of(leaves), case, 3)


@in_each_way
def test_checkpoints_of_two_scales(device: str, way: str) -> None:
    """The second forward of a checkpoint meets another expectation than the first."""
    case = one_case(way, device)
    first, second = leaves_of(case), leaves_of(case)
    losses = [checkpoint(case, *leaves, use_reentrant=False) for leaves in (first, second)]
    (losses[0] + 0.5 * losses[1]).backward()
    assert_grads(grads_of(first), case)
    assert_grads(grads_of(second), case, 0.5)


def selective(seen: list[str]) -> Any:
    """Keeps what the loss gave, computes the rest a second time."""

    def policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(str(op))
        ours = op.namespace == "weighted_bce"
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, policy)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "selective"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [{}, {"inplace_backward": True}, {"is_linear": True}])
def test_checkpointed_models(
    kernel_device: str, how: str, autocast: bool, options: dict[str, Any]
) -> None:
    """A model whose loss lies within a checkpoint, under autocast and in place as well."""
    model = Scored(pos_weight=torch.full((9,), 7.0), **options).to(kernel_device)
    x = torch.randn(12, 20, device=kernel_device, requires_grad=True)
    y, seen = labels(12, 9, device=kernel_device), list[str]()
    context = {"context_fn": selective(seen)} if how == "selective" else {}
    in_checkpoint = partial(checkpoint, model, use_reentrant=how == "reentrant", **context)
    grads, losses = [], []
    for run in (model, in_checkpoint):
        model.zero_grad()
        x.grad = None
        with torch.autocast(kernel_device, torch.bfloat16) if autocast else nullcontext():
            loss = run(x, y)
        assert loss.dtype == torch.float32
        (loss * 3).backward()
        losses.append(loss.detach())
        grads.append([x.grad, *(p.grad for p in model.parameters())])
    close = dict(rtol=0.02, atol=1e-3) if autocast else dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(*grads, **close)
    op = "linear_loss" if "is_linear" in options else "loss"
    assert (f"weighted_bce.{op}.default" in seen) == (how == "selective")


def _written(t: Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(t, file)
    return file.getvalue()


PACKED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "the same": (lambda t: t, lambda t: t),
    "cloned": (Tensor.clone, Tensor.clone),
    "detached": (Tensor.detach, lambda t: t.detach()),
    "float64": (
        lambda t: (t.double() if t.is_floating_point() else t, t.dtype),
        lambda packed: packed[0].to(packed[1]),
    ),
    "a file": (_written, lambda packed: torch.load(io.BytesIO(packed))),
    "a list of numbers": (
        lambda t: (t.flatten().tolist(), t.shape, t.dtype, t.device),
        lambda p: torch.tensor(p[0], dtype=p[2], device=p[3]).view(p[1]),
    ),
}


@of_logits_and_layers
@pytest.mark.parametrize("how", [*PACKED, "on the CPU"])
def test_saved_tensors_may_be_packed(device: str, how: str, cases: Any) -> None:
    """Whatever hooks make of the saved tensors: the gradient is right for every scale."""
    for case in cases(device):
        for grad_output in (1.0, 1.0, 3.7, 65536.0, 65536.0):
            leaves = leaves_of(case)
            with save_on_cpu() if how == "on the CPU" else saved_tensors_hooks(*PACKED[how]):
                loss = case(*leaves)
            loss.backward(torch.full_like(loss, grad_output))
            assert_grads(grads_of(leaves), case, grad_output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saved_tensors_may_be_packed_in_halves(device: str, dtype: torch.dtype) -> None:
    """Saved values are as large as the logits: a gradient of 1 / 10^6 would be 0 in float16."""
    case = Case(
        torch.randn(1000, 1000, device=device), labels(1000, 1000, device=device), None, 7.0
    )
    leaf = case.input.clone().requires_grad_()
    with saved_tensors_hooks(
        lambda t: (t.to(dtype) if t.is_floating_point() else t, t.dtype),
        lambda packed: packed[0].to(packed[1]),
    ):
        loss = case(leaf)
    loss.backward()
    assert leaf.grad is not None
    expected = truth(case).grad / case.input.numel()
    error = (leaf.grad.double() - expected).norm() / expected.norm()
    assert error < torch.finfo(dtype).eps / 4


@in_each_way
@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("early", [True, False])
def test_mode_in_one_half_of_a_checkpoint(device: str, during: str, early: bool, way: str) -> None:
    """Such as FlopCounterMode or a logger around backward alone: both forwards save as much."""
    case = one_case(way, device)
    leaves = leaves_of(case)
    with set_checkpoint_early_stop(early):
        with Ops() if during == "forward" else nullcontext():
            loss = checkpoint(case, *leaves, use_reentrant=False)
        with Ops() if during == "backward" else nullcontext():
            loss.backward()
    assert_grads(grads_of(leaves), case)


@pytest.mark.parametrize("how", ["kept graph", "checkpoint of two losses", "two losses"])
def test_in_place_under_hooks_is_right_or_raises(kernel_device: str, how: str) -> None:
    """Hooks switch off autograd's own check that what it saved was not modified."""
    case = one_case("dense", kernel_device)
    leaf = case.input.clone().requires_grad_()
    hidden = leaf * 1.0

    def twice(x: Tensor) -> Tensor:
        return case(x, inplace_backward=True) + case(x, inplace_backward=True)

    def backward() -> None:
        if how == "checkpoint of two losses":
            checkpoint(twice, hidden, use_reentrant=False).backward()
            return
        with saved_tensors_hooks(lambda t: t, lambda t: t):
            loss = twice(hidden) if how == "two losses" else case(hidden, inplace_backward=True)
        loss.backward(retain_graph=how == "kept graph")
        if how == "kept graph":
            loss.backward()

    try:
        backward()
    except RuntimeError:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            raise
    else:
        assert_grad(leaf.grad, case, 2)
