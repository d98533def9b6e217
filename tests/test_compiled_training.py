"""Training whose loss, backward, or both are compiled ends where eager training does."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.fx import GraphModule

from weighted_bce._extension import extension

from .comparison import outcome
from .test_compile import COMPILERS, error_on_recompile, fused_ops, ops_of
from .truth import REDUCTIONS, labels, sample_inputs
from .ways import Scored, assert_grads, leaves_of, one_case, target_of

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def train(
    device: str, wrap: Callable[[Any], Any], way: str, autocast: bool = False, whole: bool = False
) -> tuple[list[float], list[Tensor]]:
    """Six steps of as many loss scales; none but the first may compile."""
    torch.manual_seed(0)
    model = Scored("linear" in way, pos_weight=torch.full((9,), 7.0)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(12, 20).to(device), target_of(way, labels(12, 9, device=device))

    def forward(scale: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, autocast):
            loss = model(x, y)
        if whole:
            (loss * scale).backward()
        return loss

    forward = wrap(forward)
    losses = []
    for step in range(6):
        with error_on_recompile(step > 0):
            optimizer.zero_grad()
            scale = torch.tensor(2.0 ** (step - 3), device=device)
            loss = forward(scale)
            if not whole:
                (loss * scale).backward()
            optimizer.step()
        assert loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return losses, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("way", ["dense", "linear, sparse"])
@pytest.mark.parametrize("autocast", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_training_under_inductor(kernel_device: str, autocast: bool, way: str) -> None:
    wraps = (partial(torch.compile, fullgraph=True), lambda f: f)
    results = [train(kernel_device, wrap, way, autocast) for wrap in wraps]
    close = dict(rtol=0.02, atol=2e-3) if autocast else dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*results, **close)


@pytest.mark.parametrize("way", ["dense", "linear, sparse"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_autograd(kernel_device: str, compiler: str, way: str) -> None:
    """Loss and backward in one compiled function: two graphs, one with each op."""
    expected = train(kernel_device, lambda f: f, way, whole=True)
    seen: list[str] = []

    def remember(graph: GraphModule, example: Any) -> Any:
        seen.extend(fused_ops(graph))
        return torch._dynamo.lookup_backend(compiler)(graph, example)

    with torch._dynamo.config.patch(compiled_autograd=True):
        result = train(kernel_device, partial(torch.compile, backend=remember), way, whole=True)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert tuple(seen) == tuple(op for ops in ops_of(way) for op in ops)


def test_compiled_backward_of_an_eager_loss(kernel_device: str, runs_everything: bool) -> None:
    """It has every reduction of the first case; with --all of each."""
    for case in sample_inputs(kernel_device, (torch.float32,)):
        torch._dynamo.reset()  # it compiles a function anew only so many times
        reductions = REDUCTIONS if case.input.dim() else REDUCTIONS[:3]
        if case.normalizer is not None:
            reductions = ("mean", "sum")
        for reduction in reductions if runs_everything or case.name == "plain" else ("mean",):
            case.reduction = reduction
            expected = outcome(case, case.input, -2.5)[1]
            x = case.input.detach().requires_grad_()
            with compiled_autograd._enable(partial(torch.compile, backend="eager", fullgraph=True)):
                result = case(x)
                result.backward(torch.full_like(result, -2.5))
            torch.testing.assert_close(x.grad, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("way", ["linear", "linear, sparse"])
def test_compiled_backward_of_an_eager_layer(kernel_device: str, way: str) -> None:
    case = one_case(way, kernel_device)
    for grad_output in (1.0, -2.5):
        leaves = leaves_of(case)
        with compiled_autograd._enable(partial(torch.compile, backend="eager", fullgraph=True)):
            case(*leaves).backward(torch.tensor(grad_output, device=kernel_device))
        assert_grads([leaf.grad for leaf in leaves], case, grad_output)
