"""torch.compile keeps the fused ops, every bit, and one graph for all steps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from weighted_bce import (
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    WeightBCEWithLogitsLoss,
    WeightedBCEWithLogitsLoss,
    backend,
    weighted_bce_with_logits,
)
from weighted_bce import linear_weighted_bce_with_logits as linear_loss
from weighted_bce._extension import extension
from weighted_bce._kernels import runs_on, why_not_on_cuda

from .grids import one_at_a_time
from .truth import Case, as_given, labels, logits, sample_inputs
from .ways import WAYS, assert_grads, in_each_way, leaves_of, one_case, target_of

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

# What Inductor makes of the rest of a graph is not ours, and takes seconds: where the graph that
# Dynamo and AOTAutograd make tells the same, it is run by torch's eager kernels.
COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]
REDUCTIONS = ("mean", "none", "sum", "batchmean")


class Graphs:
    """A backend of torch.compile that runs eagerly and remembers which of our ops it met."""

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.backend = aot_autograd(
            fw_compiler=partial(_remember, self.forward),
            bw_compiler=partial(_remember, self.backward),
        )

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=self.backend, fullgraph=True)


def _remember(names: list[str], graph: GraphModule, _: Any) -> Any:
    names.extend(fused_ops(graph))
    return make_boxed_func(graph.forward)


def fused_ops(graph: GraphModule) -> list[str]:
    """The names of our ops in the order of the graph, such as ["loss"], and of what sends."""
    targets = [str(n.target).split(".") for n in graph.graph.nodes if n.op == "call_function"]
    ours = (t for t in targets if t[0] in ("weighted_bce", "_c10d_functional"))
    return [op for _, op, *_ in ours if op != "wait_tensor"]


def ops_of(way: str, reduction: Any = "mean") -> tuple[list[str], list[str]]:
    """The ops that the graphs of a loss and of its gradient have."""
    if "linear" in way:
        return ["linear_loss"], ["linear_grads"]
    return ["unreduced" if reduction in ("none", torch.sum) else "loss"], ["grad"]


def error_on_recompile(on: bool) -> Any:
    return torch._dynamo.config.patch(error_on_recompile=on)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def assert_as_eager(
    compiled: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    *leaves: Tensor,
    parameters: tuple[Tensor, ...] = (),
) -> None:
    """The loss and the gradients are equal to the bit, and in the same dtypes."""
    results = []
    for function in (compiled, eager):
        own = [leaf.detach().requires_grad_() for leaf in leaves]
        loss = function(*own)
        grad_output = torch.full_like(loss, -2.5)
        results.append((loss, *torch.autograd.grad(loss, (*own, *parameters), grad_output)))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def criterion_of(way: str, device: str, **options: Any) -> nn.Module:
    """A loss of 9 labels, which takes logits or, with the layer in it, 9 features."""
    if "linear" in way:
        return LinearWeightedBCEWithLogitsLoss(9, 9, chunk_labels=4, **options).to(device)
    return WeightedBCEWithLogitsLoss(**options).to(device)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)]
)
def test_the_graph_holds_the_op_and_its_gradient(kernel_device: str, dtype: torch.dtype) -> None:
    """Weights as numbers and tensors, smoothing, ignore_index, transposed, empty, 0-d."""
    of_layers = (one_case(way, kernel_device, dtype) for way in WAYS[2:])
    for case in (*sample_inputs(kernel_device, (dtype,)), *of_layers):
        torch._dynamo.reset()
        graphs = Graphs()
        compiled, leaves = graphs.compiled(case), leaves_of(case)
        assert_as_eager(compiled, case, *leaves)
        assert_grads(torch.autograd.grad(compiled(*leaves) * 2.5, leaves), case, 2.5)
        ops = ops_of("dense" if isinstance(case, Case) else "linear")
        assert (graphs.forward, graphs.backward) == ops, case.name


OPTIONS: dict[str, dict[str, Any]] = {
    "number": {"pos_weight": 7.0},
    "tensors": {"pos_weight": torch.rand(9) + 0.5, "weight": torch.rand(9)},
    "ignored": {"ignore_index": 1, "label_smoothing": 0.1},
    "ignored NaN": {"ignore_index": math.nan, "label_smoothing": 0.1},
}


@one_at_a_time(reduction=[*REDUCTIONS, torch.sum], name=[*OPTIONS], way=WAYS)
def test_every_reduction(kernel_device: str, way: str, name: str, reduction: Any) -> None:
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    if "linear" in way and reduction is torch.sum:
        pytest.skip("the layer takes no callable")
    if name == "ignored NaN":
        if "sparse" in way:
            pytest.skip("sparse labels are 0 and 1")
        y = y.float().masked_fill(torch.rand_like(x) < 0.2, math.nan)
    target = target_of(way, y)
    criterion = criterion_of(way, kernel_device, reduction=reduction, **OPTIONS[name])
    graphs = Graphs()
    compiled, eager = (partial(f, target=target) for f in (graphs.compiled(criterion), criterion))
    assert_as_eager(compiled, eager, x, parameters=(*criterion.parameters(),))
    assert (graphs.forward, graphs.backward) == ops_of(way, reduction)


@pytest.mark.parametrize("reduction", [None, torch.mean, torch.sum, "none"])
def test_the_module_of_masked_multiplies(kernel_device: str, reduction: Any) -> None:
    criterion = WeightBCEWithLogitsLoss(7.0, reduction)
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    assert_as_eager(lambda x: compiled(x, y), lambda x: criterion(x, y), x)


@in_each_way
def test_only_what_is_needed(kernel_device: str, way: str) -> None:
    """The loss alone without a gradient; or the gradient of one of its tensors."""
    case, graphs = one_case(way, kernel_device), Graphs()
    compiled = graphs.compiled(case)
    with torch.no_grad():
        assert torch.equal(compiled(), case())
    assert (graphs.forward, graphs.backward) == (ops_of(way)[0], [])
    for i in range(len(leaves_of(case))):
        leaves = [leaf.requires_grad_(i == k) for k, leaf in enumerate(leaves_of(case))]
        grads = (torch.autograd.grad(call(*leaves), leaves[i]) for call in (compiled, case))
        torch.testing.assert_close(*grads)


def test_the_chosen_backend_is_followed(kernel_device: str, sparse: torch.dtype | None) -> None:
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    case = Case(x, y, torch.rand(9, device=kernel_device), 7.0, sparse=sparse)
    graphs = Graphs()
    compiled = graphs.compiled(case)
    with backend("reference"):
        if sparse is None:
            assert_as_eager(compiled, case, case.input)
        else:  # AOTAutograd of 2.13 has no gradient of logsigmoid for a number of positives
            assert torch.equal(compiled(), case())
        assert (graphs.forward, graphs.backward) == ([], [])
    with backend("fused"):
        assert_as_eager(compiled, case, case.input)
        assert (graphs.forward, graphs.backward) == (["loss"], ["grad"])


@one_at_a_time(
    how=["automatic", "dynamic", "mark_dynamic"],
    way=WAYS,
    reduction=REDUCTIONS,
    ignore_index=[None, 1],
)
def test_batch_size_may_change(
    kernel_device: str, how: str, way: str, reduction: str, ignore_index: float | None
) -> None:
    """Nothing is compiled anew; by default once, when the size is first seen to change."""
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    criterion = criterion_of(way, kernel_device, pos_weight=7.0, reduction=reduction, **options)
    dynamic = True if how == "dynamic" else None
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for call, (rows, positives) in enumerate(((6, 5), (13, 7), (13, 117), (21, 33), (34, 2))):
        y = torch.zeros(rows, 9, dtype=torch.int64, device=kernel_device)
        y.view(-1)[torch.randperm(rows * 9)[:positives]] = 1
        target = target_of(way, y)

        def of_compiled(x: Tensor, target: Any = target) -> Tensor:
            if how == "mark_dynamic":
                for tensor in tree_leaves((x, target)):
                    torch._dynamo.mark_dynamic(tensor, 0)
            return compiled(x, target)

        with error_on_recompile(call >= (2 if how == "automatic" else 1)):
            x, eager = logits(rows, 9, device=kernel_device), partial(criterion, target=target)
            assert_as_eager(of_compiled, eager, x, parameters=(*criterion.parameters(),))


@in_each_way
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_weight_may_change(kernel_device: str, compiler: str, way: str) -> None:
    """A tensor is never compiled anew, a number once, when it is first seen to change; there is one
    graph for each, also where calls take turns."""
    x = logits(6, 9, device=kernel_device)
    target = target_of(way, labels(6, 9, device=kernel_device))
    criterion = criterion_of(way, kernel_device)
    compiled = torch.compile(criterion, backend=compiler, fullgraph=True)
    of_compiled, eager = (partial(f, target=target) for f in (compiled, criterion))
    for call, value in enumerate((1.5, 2.0, 7.3, 0.1, 2.0, 7.3, 0.1)):
        is_number = call < 2 or call % 2 == 0
        criterion.pos_weight = value if is_number else torch.tensor(value, device=kernel_device)
        with error_on_recompile(call not in (0, 1, 3)):
            assert_as_eager(of_compiled, eager, x, parameters=(*criterion.parameters(),))


weighted = partial(weighted_bce_with_logits, pos_weight=7.0)
gradient = torch.func.grad(weighted)


def by_the_reference(x: Tensor, y: SparseLabels) -> Tensor:
    with backend("reference"):
        return weighted(x, y)


OF_THE_OP, OF_THE_REFERENCE = "_indices must", r"index (\d+ is )?out of (bounds|range)"
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "loss": (weighted, OF_THE_OP),
    "linear layer": (lambda x, y: linear_loss(x, torch.eye(9), y), OF_THE_OP),
    "reference": (by_the_reference, OF_THE_REFERENCE),
    "gradient": (gradient, OF_THE_REFERENCE),
    "gradients of samples": (torch.vmap(gradient), OF_THE_REFERENCE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_index_is_an_error_when_it_runs(device: str, name: str, compiler: str) -> None:
    if device == "cuda":
        pytest.skip("an error there ends the process, and nothing waits to see one of the op")
    function, words = FUNCTIONS[name]
    x, y = logits(6, 9), torch.arange(54).view(6, 9) % 5 == 0
    crow, col = good = as_given(y, torch.int64)
    compiled = torch.compile(function, fullgraph=True, backend=compiler)

    def call(function: Callable[..., Tensor], labels: SparseLabels) -> Tensor:
        if name == "gradients of samples":
            return function(x[None], SparseLabels(*(t[None] for t in labels)))
        return function(x, labels)

    torch.testing.assert_close(call(compiled, good), call(function, good))
    for wrong in (
        good._replace(col_indices=col + 5),
        good._replace(col_indices=col - 5),
        good._replace(crow_indices=crow.clamp(min=1)),
        good._replace(crow_indices=crow.clamp(max=len(col) - 1)),
    ):
        with pytest.raises((RuntimeError, ValueError), match=words):
            call(compiled, wrong)


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
