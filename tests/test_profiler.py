"""A profiler sees the ops by their names, in every thread; without one nothing changes."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile, schedule

from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    weighted_bce_with_logits,
)
from weighted_bce._extension import extension
from weighted_bce._kernels import on_cpu, recorded

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    # torch 2.11 says so of every profile
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events"),
]

ROWS, LABELS, FEATURES = 8, 150, 12


def events(call: Callable[[], Any], **options: Any) -> list[Any]:
    """Returns what a profiler has recorded of our ops."""
    with profile(activities=[ProfilerActivity.CPU], **options) as profiler:
        call()
    return [e for e in profiler.events() if e.name.startswith("weighted_bce::")]


def names(call: Callable[[], Any], **options: Any) -> list[str]:
    """Returns the names of our ops in the order of their calls, without that of the package."""
    return [event.name.removeprefix("weighted_bce::") for event in events(call, **options)]


def dense(device: str = "cpu") -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, LABELS, device=device, requires_grad=True)
    return x, torch.rand(ROWS, LABELS, device=device) < 0.1


def train(x: Tensor, y: Any, factor: float = 1.0, **options: Any) -> Tensor:
    (weighted_bce_with_logits(x, y, pos_weight=7.0, **options).sum() * factor).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("sparse", [False, True])
def test_training(device: str, sparse: bool) -> None:
    x, y = dense(device)
    labels = SparseLabels.from_dense(y) if sparse else y
    train(x, labels)  # it expects 1
    assert names(lambda: train(x, labels))[0] == "loss_and_grad"
    assert names(lambda: train(x, labels, 3.0)) == ["loss_and_grad", "update_grad_"]
    assert names(lambda: train(x, labels, reduction="none")) == ["unreduced", "grad"]
    in_place = names(lambda: weighted_bce_with_logits(x, labels, inplace_backward=True).backward())
    assert in_place == ["loss", "grad_"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation(device: str, mode: Any) -> None:
    x, y = dense(device)
    with mode():
        assert names(lambda: weighted_bce_with_logits(x, y)) == ["loss"]
        assert names(lambda: weighted_bce_with_logits(x, y, reduction="none")) == ["unreduced"]


def layer(**options: Any) -> tuple[LinearWeightedBCEWithLogitsLoss, Tensor, Tensor]:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, chunk_labels=64, **options)
    return criterion, torch.randn(ROWS, FEATURES), torch.rand(ROWS, LABELS) < 0.1


def test_a_linear_layer() -> None:
    criterion, x, y = layer()
    assert names(lambda: criterion(x, y).backward()) == ["empty_grad", "linear_pass_"]
    again = names(lambda: (criterion(x, y) * 3).backward())
    assert again == ["empty_grad", "linear_pass_", "linear_grads", "empty_grad", "linear_pass_"]
    with torch.no_grad():
        assert names(lambda: criterion(x, y)) == ["linear_loss", "linear_pass_"]
        assert names(lambda: criterion.topk(x, 3)) == ["linear_topk"]


def test_the_chunks_of_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for devices other than the CPU. There are three."""
    criterion, x, y = layer()
    monkeypatch.setattr("weighted_bce.linear._tiles.kernels_of", lambda *_: None)
    once = names(lambda: criterion(x, y).backward())
    assert once == [*["empty_grad"] * 2, *["loss_and_grad_"] * 3]
    with torch.no_grad():
        assert names(lambda: criterion(x, y)) == ["linear_loss", *["loss"] * 3]
        each_row = LinearWeightedBCEWithLogitsLoss(
            FEATURES, LABELS, chunk_labels=64, reduction="none"
        )
        assert names(lambda: each_row(x, y)) == ["linear_loss", *["unreduced"] * 3]


@pytest.mark.parametrize(
    ("optimizer", "op"), [(FusedSGD, "linear_sgd_"), (FusedAdam, "linear_adam_")]
)
def test_a_fused_step(optimizer: Any, op: str) -> None:
    criterion, x, y = layer()
    criterion.fused_step = optimizer(criterion.parameters(), lr=0.1)

    def step() -> None:
        criterion(x, y).backward()
        criterion.fused_step.step()

    assert names(step) == ["linear_pass_", "linear_call", op]
    criterion(x, y).backward()
    assert criterion.linear.weight.grad is not None
    norm = names(criterion.linear.weight.grad.norm)
    assert norm == ["linear_call", *["linear_weight_grad_"] * 3]


def test_threads() -> None:
    """A profiler of all threads sees each; one of its own thread does not disturb others."""
    pairs = [dense() for _ in range(4)]
    expected = [train(*pair).clone() for pair in pairs]

    def work(number: int) -> None:
        x, y = pairs[number]
        for _ in range(20):
            x.grad = None
            assert torch.equal(train(x, y), expected[number])

    def all_work() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))  # raises what a thread raised

    in_all = _ExperimentalConfig(profile_all_threads=True)
    assert names(all_work, experimental_config=in_all) == ["loss_and_grad"] * 80
    assert names(all_work) == []


def test_backward_in_a_thread() -> None:
    """The profiler begins and ends between the forward and the backward pass of others."""
    x, y = dense()
    loss = weighted_bce_with_logits(x, y) * 5
    in_all = _ExperimentalConfig(profile_all_threads=True)

    def backward() -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(loss.backward).result()

    assert names(backward, experimental_config=in_all) == ["update_grad_"]


def test_shapes() -> None:
    x, y = dense()
    options = {"record_shapes": True, "with_flops": True, "with_stack": True}
    (event,) = events(lambda: train(x, y), **options)
    assert event.input_shapes[:3] == [[], [ROWS, LABELS], [ROWS, LABELS]]
    assert event.flops == 0  # as torch counts elementwise operations of other names


def test_the_older_profiler() -> None:
    x, y = dense()
    with torch.autograd.profiler.profile() as profiler:
        train(x, y)
    assert "weighted_bce::loss_and_grad" in {event.name for event in profiler.function_events}


def test_a_schedule() -> None:
    """Of five steps it records the third and the fourth."""
    x, y = dense()
    recorded_names: list[str] = []
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=1, warmup=1, active=2, repeat=1),
        on_trace_ready=lambda p: recorded_names.extend(event.name for event in p.events()),
    ) as profiler:
        for _ in range(5):
            train(x, y)
            profiler.step()
    assert recorded_names.count("weighted_bce::loss_and_grad") == 2


def test_an_execution_trace(tmp_path: Path) -> None:
    path, (x, y) = tmp_path / "trace.json", dense()
    observer = ExecutionTraceObserver().register_callback(str(path))
    with profile(activities=[ProfilerActivity.CPU], execution_trace_observer=observer):
        train(x, y)
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    assert "weighted_bce::loss_and_grad" in {node["name"] for node in nodes}


def test_the_same_bits() -> None:
    x, y = dense()
    expected = train(x, y).clone()
    x.grad = None
    with profile(activities=[ProfilerActivity.CPU]):
        assert torch.equal(train(x, y), expected)


def test_direct_calls_without_a_profiler() -> None:
    assert on_cpu is not None
    with profile(activities=[ProfilerActivity.CPU]):
        assert recorded(on_cpu) is not on_cpu
    assert recorded(on_cpu) is on_cpu


def test_the_compiler_does_not_look() -> None:
    """A profiler is no reason to compile again."""
    x, y = dense()
    compiled = torch.compile(weighted_bce_with_logits, backend="eager", fullgraph=True)
    compiled(x, y)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert names(lambda: compiled(x, y)) == ["loss"]
