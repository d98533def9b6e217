"""The loss of a linear layer under torch.compile and torch.export: opaque ops, one graph."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from weighted_bce import LinearWeightedBCEWithLogitsLoss, SparseLabels
from weighted_bce import linear_weighted_bce_with_logits as linear_loss
from weighted_bce._extension import extension

from .linear_cases import (
    FEATURES,
    LABELS,
    REDUCTIONS,
    LinearCase,
    assert_all_near,
    assert_grads,
    assert_loss,
    base,
    cases,
    dense_and_sparse,
    grads_of,
)
from .test_compile import COMPILERS, Graphs, error_on_recompile, fused_ops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def results(case: LinearCase, function: Any) -> tuple[Tensor, ...]:
    """Returns the loss and, for a grad_output of 2.5, the gradients."""
    x, weight, bias = leaves = case.leaves()
    loss = function(x, weight, case.of_logits().given, linear_bias=bias, **case.options)
    return loss.detach(), *torch.autograd.grad(loss * 2.5, leaves)


@pytest.mark.parametrize("sparse", [None, torch.int64])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_numbers_of_eager_mode(device: str, sparse: torch.dtype | None, compiler: str) -> None:
    compiled = torch.compile(linear_loss, backend=compiler, fullgraph=True)
    per_label = torch.rand(LABELS, device=device)
    for options in ({"reduction": "sum"}, {"pos_weight": per_label, "weight": per_label}):
        case = replace(base(torch.float32, device, **options), sparse=sparse)
        assert all(map(torch.equal, results(case, compiled), results(case, linear_loss)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_graph_of_two_ops(device: str, reduction: str) -> None:
    """The graph serves any number of rows and positives."""
    graphs = Graphs()
    function = torch.compile(linear_loss, backend=graphs.backend, fullgraph=True, dynamic=True)
    for rows in (5, 9, 6, 14):
        case = base(torch.float32, device, rows, reduction=reduction)
        case.sparse = torch.int64
        with error_on_recompile(rows > 9):
            loss, *grads = results(case, function)
        assert_loss(loss, case)
        assert_grads(grads, case, 2.5)
    assert set(graphs.forward) == {"linear_loss"}
    assert set(graphs.backward) == {"linear_grads"}


def test_only_what_is_needed(device: str) -> None:
    case = base(torch.float32, device)
    x, weight, bias = case.layer
    function = torch.compile(case, backend="aot_eager", fullgraph=True)
    weight.requires_grad_()
    function(x, weight, bias).backward()
    wanted = torch.autograd.grad(case(), weight)
    assert_all_near([weight.grad], wanted, 1e-5)


def trained(device: str, compiled: bool) -> list[Tensor]:
    """Returns the parameters of an encoder and a classifier after three steps."""
    torch.manual_seed(0)
    encoder = nn.Linear(20, FEATURES, device=device)
    criterion = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, pos_weight=3.0, chunk_labels=64, device=device
    )
    parameters: list[Tensor] = [*encoder.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, 1.0)

    def loss(x: Tensor, target: SparseLabels) -> Any:
        return criterion(encoder(x), target)

    run = torch.compile(loss, fullgraph=True) if compiled else loss
    for _ in range(3):
        x, target = torch.randn(6, 20, device=device), base(torch.float32, device, 6).target
        optimizer.zero_grad()
        run(x, SparseLabels.from_dense(target)).backward()
        optimizer.step()
    return parameters


def test_a_training_loop_under_inductor(device: str) -> None:
    assert_all_near(trained(device, True), trained(device, False), 1e-5)


def test_autocast(device: str) -> None:
    case = base(torch.float32, device)
    function = torch.compile(linear_loss, backend="aot_eager", fullgraph=True)
    with torch.autocast(device, torch.bfloat16):
        _, *grads = results(case, function)
    assert_grads(grads, case, 2.5, None if device == "cpu" else 0.02)


def test_topk(device: str) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
    x = base(torch.float32, device).input
    function = torch.compile(criterion.topk, backend="aot_eager", fullgraph=True)
    assert torch.equal(function(x, 5).indices, criterion.topk(x, 5).indices)


def test_wrong_labels_raise(kernel_device: str) -> None:
    if kernel_device != "cpu":
        pytest.skip("on CUDA nobody waits for the labels")
    x, weight, _ = base().layer
    function = torch.compile(linear_loss, backend="aot_eager", fullgraph=True)
    wrong = SparseLabels(torch.tensor([0, 1, 1, 1, 1, 1, 1, 1]), torch.tensor([LABELS]))
    with pytest.raises((ValueError, RuntimeError), match="must be below 150"):
        function(x, weight, wrong)


@pytest.mark.parametrize("strict", [True, False])
def test_export(tmp_path: Path, strict: bool) -> None:
    module = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, pos_weight=3.0)
    case, rows = base(), torch.export.Dim("rows", min=2, max=1000)
    program = torch.export.export(
        module, (case.input, case.target), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    assert fused_ops(program.graph_module) == ["linear_loss"]
    torch.export.save(program, tmp_path / "loss.pt2")
    loaded = torch.export.load(tmp_path / "loss.pt2").module()
    for case in (base(), base(rows=3)):
        assert torch.equal(loaded(case.input, case.target), module(case.input, case.target))


@pytest.mark.parametrize(("device", "mode"), [("cpu", FakeTensorMode), ("meta", nullcontext)])
def test_tensors_without_numbers(device: str, mode: Any) -> None:
    with mode():
        case = base(torch.float32, device)
        leaves = case.leaves()
        loss = case(*leaves)
        loss.backward()
    assert loss.shape == ()
    assert loss.device.type == device
    for leaf, grad in zip(leaves, grads_of(leaves), strict=True):
        assert grad is not None
        assert grad.shape == leaf.shape


def test_make_fx() -> None:
    case = base()
    graph = make_fx(lambda *layer: case(*layer))(*case.layer)
    assert torch.equal(graph(*case.layer), case())


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize(("dtype", "every"), [(torch.float32, 5), (torch.bfloat16, 11)])
def test_opcheck(device: str, dtype: torch.dtype, every: int) -> None:
    ops = torch.ops.weighted_bce
    some = [case for case in cases(device, dtype) if case.target.numel()][::every]
    for case in some:
        x, weight, bias, *rest = args = case.op_args()
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
        torch.library.opcheck(ops.linear_loss.default, args)
        torch.library.opcheck(ops.linear_loss.default, (*leaves, *rest))
        grad_output = torch.ones_like(ops.linear_loss(*args))
        needs = [True, False, bias is not None]
        *before, loss, parameters = args
        of_grads = grad_output, *before, needs, loss, parameters
        torch.library.opcheck(ops.linear_grads.default, of_grads)
    torch.library.opcheck(ops.linear_topk.default, (x, weight, bias, 1, None, 3))


def test_the_ops_have_gradients(device: str) -> None:
    for case in dense_and_sparse(device):
        leaves = case.leaves()
        rest = case.op_args()[3:]
        loss = torch.ops.weighted_bce.linear_loss(*leaves, *rest)
        assert_grads(torch.autograd.grad(loss, leaves), case)
    wrong = torch.ones(LABELS, device=device, requires_grad=True)
    with pytest.raises(NotImplementedError, match="has no gradient with respect to target"):
        torch.ops.weighted_bce.linear_loss(*case.layer, *rest[:2], wrong, *rest[3:])
