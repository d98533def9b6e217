"""Training whose loss, backward, or both are compiled ends where eager training does."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.fx import GraphModule

from weighted_bce import WeightedBCEWithLogitsLoss
from weighted_bce._extension import extension

from .test_compile import COMPILERS, error_on_recompile
from .truth import REDUCTIONS, labels, outcome, sample_inputs

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 9)).to(device)


def train(
    device: str, wrap: Callable[[Any], Any], autocast: bool, whole: bool = False
) -> tuple[list[float], list[Tensor]]:
    """Six steps of as many loss scales; none but the first may compile."""
    model = network(device)
    criterion = WeightedBCEWithLogitsLoss(None, torch.full((9,), 7.0)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(12, 20).to(device), labels(12, 9, device=device)

    def forward(scale: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, autocast):
            loss = criterion(model(x), y)
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
    return losses, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("autocast", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_training_under_inductor(kernel_device: str, autocast: bool) -> None:
    seed = torch.initial_seed()
    results = []
    for wrap in (lambda f: f, partial(torch.compile, fullgraph=True)):
        torch.manual_seed(seed)
        results.append(train(kernel_device, wrap, autocast))
    close = dict(rtol=0.02, atol=2e-3) if autocast else dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1], results[0], **close)
    assert results[0][0][-1] < results[0][0][0]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_autograd(kernel_device: str, compiler: str) -> None:
    """Loss and backward in one compiled function: two graphs, one with each op."""
    seed = torch.initial_seed()
    expected = train(kernel_device, lambda f: f, False, whole=True)
    seen: list[str] = []

    def remember(graph: GraphModule, example: Any) -> Any:
        seen.extend(str(n.target) for n in graph.graph.nodes if "weighted_bce" in str(n.target))
        return torch._dynamo.lookup_backend(compiler)(graph, example)

    torch.manual_seed(seed)
    with torch._dynamo.config.patch(compiled_autograd=True):
        wrap = partial(torch.compile, backend=remember)
        result = train(kernel_device, wrap, False, whole=True)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert len(seen) == 2
    assert "loss" in seen[0]
    assert "grad" in seen[1]


def test_compiled_backward_of_an_eager_loss(kernel_device: str, runs_everything: bool) -> None:
    """It has every reduction of the first case; with --all of each."""
    for case in sample_inputs(kernel_device, (torch.float32,)):
        torch.compiler.reset()  # the cases differ in constants, and there is a limit of versions
        reductions = REDUCTIONS if case.input.dim() else REDUCTIONS[:3]
        for reduction in reductions if runs_everything or case.name == "plain" else ("mean",):
            case.reduction = reduction
            expected = outcome(case, case.input, -2.5)[1]
            x = case.input.detach().requires_grad_()
            with compiled_autograd._enable(partial(torch.compile, backend="eager", fullgraph=True)):
                result = case(x)
                result.backward(torch.full_like(result, -2.5))
            torch.testing.assert_close(x.grad, expected, rtol=0, atol=0, equal_nan=True)
