"""torch.compile keeps the fused ops, every bit, and one graph for all steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from weighted_bce import (
    WeightBCEWithLogitsLoss,
    WeightedBCEWithLogitsLoss,
    backend,
    weighted_bce_with_logits,
)
from weighted_bce._extension import extension
from weighted_bce._kernels import runs_on, why_not_on_cuda

from .grids import one_at_a_time
from .truth import REDUCTIONS, Case, labels, logits, sample_inputs

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

# What Inductor makes of the rest of a graph is not ours, and takes seconds: where the graph that
# Dynamo and AOTAutograd make tells the same, it is run by torch's eager kernels.
COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]


class Graphs:
    """A backend of torch.compile that runs eagerly and remembers which of our ops it met."""

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.backend = aot_autograd(
            fw_compiler=partial(_remember, self.forward),
            bw_compiler=partial(_remember, self.backward),
        )


def _remember(names: list[str], graph: GraphModule, _: Any) -> Any:
    names.extend(fused_ops(graph))
    return make_boxed_func(graph.forward)


def fused_ops(graph: GraphModule) -> list[str]:
    """In the order of the graph, such as ["loss"]."""
    targets = [str(n.target).split(".") for n in graph.graph.nodes if n.op == "call_function"]
    return [op for namespace, op, *_ in (t for t in targets if t[0] == "weighted_bce")]


def error_on_recompile(on: bool) -> Any:
    return torch._dynamo.config.patch(error_on_recompile=on)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def outcome(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    result = loss(x)
    result.backward(torch.full_like(result, -2.5))
    assert x.grad is not None
    return result.detach(), x.grad


def assert_as_eager(
    compiled: Callable[..., Tensor], eager: Callable[..., Tensor], x: Tensor
) -> None:
    """To the bit, and in the same dtypes."""
    for one, other in zip(outcome(compiled, x), outcome(eager, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)]
)
def test_the_graph_holds_the_op_and_its_gradient(kernel_device: str, dtype: torch.dtype) -> None:
    """Weights as numbers and tensors, smoothing, ignore_index, transposed, empty, 0-d."""
    for case in sample_inputs(kernel_device, (dtype,)):
        torch._dynamo.reset()
        graphs = Graphs()
        compiled = torch.compile(case, backend=graphs.backend, fullgraph=True)
        assert_as_eager(compiled, case, case.input)
        assert (graphs.forward, graphs.backward) == (["loss"], ["grad"]), case.name


@pytest.mark.parametrize("reduction", [*REDUCTIONS, torch.sum])
@pytest.mark.parametrize("ignore_index", [None, -1, float("nan")])
def test_every_reduction(kernel_device: str, reduction: Any, ignore_index: float | None) -> None:
    y = labels(6, 9, device=kernel_device).float()
    target = torch.where(torch.rand_like(y) < 0.2, ignore_index or 0.0, y)
    x = logits(6, 9, device=kernel_device)
    options = dict(reduction=reduction, ignore_index=ignore_index, label_smoothing=0.1)
    criterion = WeightedBCEWithLogitsLoss(torch.rand(9), 7.0, **options).to(kernel_device)
    graphs = Graphs()
    compiled = torch.compile(criterion, backend=graphs.backend, fullgraph=True)
    assert_as_eager(lambda x: compiled(x, target), lambda x: criterion(x, target), x)
    whole = reduction in ("none", torch.sum)
    assert (graphs.forward, graphs.backward) == (["unreduced" if whole else "loss"], ["grad"])


@pytest.mark.parametrize("reduction", [None, torch.mean, torch.sum, "none"])
def test_the_module_of_the_question(kernel_device: str, reduction: Any) -> None:
    criterion = WeightBCEWithLogitsLoss(7.0, reduction)
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    assert_as_eager(lambda x: compiled(x, y), lambda x: criterion(x, y), x)


def test_without_a_gradient_only_the_loss_is_computed(kernel_device: str) -> None:
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    case, graphs = Case(x, y, None, 7.0), Graphs()
    compiled = torch.compile(case, backend=graphs.backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(case.input), case())
    assert (graphs.forward, graphs.backward) == (["loss"], [])


def test_the_chosen_backend_is_followed(kernel_device: str) -> None:
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    case, graphs = Case(x, y, torch.rand(9, device=kernel_device), 7.0), Graphs()
    compiled = torch.compile(case, backend=graphs.backend, fullgraph=True)
    with backend("reference"):
        assert_as_eager(compiled, case, case.input)
        assert (graphs.forward, graphs.backward) == ([], [])
    with backend("fused"):
        assert_as_eager(compiled, case, case.input)
        assert (graphs.forward, graphs.backward) == (["loss"], ["grad"])


@one_at_a_time(
    how=["automatic", "dynamic", "mark_dynamic"],
    reduction=["mean", "none", "sum", "batchmean"],
    ignore_index=[None, -1],
)
def test_batch_size_may_change(
    kernel_device: str, how: str, reduction: str, ignore_index: float | None
) -> None:
    """Without compiling anew; by default once, when the size is first seen to change."""
    criterion = WeightedBCEWithLogitsLoss(None, 7.0, reduction, ignore_index=ignore_index)
    dynamic = True if how == "dynamic" else None
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True, dynamic=dynamic)

    def marked(t: Tensor) -> Tensor:
        if how == "mark_dynamic":
            torch._dynamo.mark_dynamic(t, 0)
        return t

    for call, rows in enumerate((8, 13, 21, 34)):
        y = marked(labels(rows, 9, dtype=torch.int64, device=kernel_device))
        compilations = 2 if how == "automatic" else 1
        with error_on_recompile(call >= compilations):
            assert_as_eager(
                lambda x, y=y: compiled(marked(x), y),
                partial(criterion, target=y),
                logits(rows, 9, device=kernel_device),
            )


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_weight_may_change(kernel_device: str, compiler: str) -> None:
    """Without compiling anew in a tensor; as a number once, when it is first seen to change."""
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    for number in (False, True):
        criterion = WeightedBCEWithLogitsLoss().to(kernel_device)
        compiled = torch.compile(criterion, backend=compiler, fullgraph=True)
        for call, value in enumerate((1.5, 2.0, 7.3, 0.1)):
            criterion.pos_weight = value if number else torch.tensor(value, device=kernel_device)
            with error_on_recompile(call > number):
                assert_as_eager(lambda x, f=compiled: f(x, y), lambda x, f=criterion: f(x, y), x)


def test_a_number_beside_a_tensor(kernel_device: str) -> None:
    """One graph for each; no more where calls take turns."""
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    compiled = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
    for call, weight in enumerate([7.0, torch.tensor(7.0, device=kernel_device)] * 3):
        with error_on_recompile(call > 1):
            assert_as_eager(
                lambda x, w=weight: compiled(x, y, pos_weight=w),
                lambda x: weighted_bce_with_logits(x, y, pos_weight=7.0),
                x,
            )


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
    found: list[str] = []

    def remember(graph: GraphModule, example: Any) -> Any:
        found.extend(str(n.target) for n in graph.graph.nodes if "weighted_bce" in str(n.target))
        return torch._dynamo.lookup_backend(compiler)(graph, example)

    torch.manual_seed(seed)
    with torch._dynamo.config.patch(compiled_autograd=True):
        wrap = partial(torch.compile, backend=remember)
        result = train(kernel_device, wrap, False, whole=True)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert len(found) == 2
    assert "loss" in found[0]
    assert "grad" in found[1]


def test_compiled_backward_of_an_eager_loss(kernel_device: str, runs_everything: bool) -> None:
    """It has every reduction of the first case; with --all of each."""
    for case in sample_inputs(kernel_device, (torch.float32,)):
        reductions = REDUCTIONS if case.input.dim() else REDUCTIONS[:3]
        for reduction in reductions if runs_everything or case.name == "plain" else ("mean",):
            case.reduction = reduction
            expected = outcome(case, case.input)[1]
            x = case.input.detach().requires_grad_()
            with compiled_autograd._enable(partial(torch.compile, backend="eager", fullgraph=True)):
                result = case(x)
                result.backward(torch.full_like(result, -2.5))
            torch.testing.assert_close(x.grad, expected, rtol=0, atol=0, equal_nan=True)


def test_the_choice_of_cuda_kernels_is_no_graph_break() -> None:
    def chosen(x: Tensor) -> Tensor:
        return x + 1 if why_not_on_cuda(max(0, x.get_device())) is None else x + 2

    x = torch.zeros(3)
    assert torch.equal(torch.compile(chosen, backend="eager", fullgraph=True)(x), chosen(x))


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        *(((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 3), True)),
        *(((12, 1), True), ((13, 0), True)),  # by PTX
        *(((7, 5), False), ((11, 0), False)),
    ],
)
def test_which_gpu_runs_what(capability: tuple[int, int], runs: bool) -> None:
    assert runs_on("sm_80, sm_90, sm_100, sm_120, compute_120", capability) == runs
