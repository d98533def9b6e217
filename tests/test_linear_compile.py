"""The loss of a linear layer under torch.compile and torch.export: opaque ops, one graph."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from weighted_bce import (
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    linear_weighted_bce_with_logits,
)
from weighted_bce._extension import extension

from .linear_cases import (
    DTYPES,
    FEATURES,
    LABELS,
    REDUCTIONS,
    LinearCase,
    assert_near,
    base,
    cases,
    expected,
    tolerance,
)
from .test_compile import COMPILERS, Graphs, error_on_recompile, fused_ops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def gradients(case: LinearCase, function: Any) -> tuple[Tensor, ...]:
    leaves = case.leaves()
    target, options = case.case().given, case.options
    loss = function(*leaves, target, **options)
    return loss.detach(), *torch.autograd.grad(loss * 2.5, leaves)


def loss_of(x: Tensor, classifier: Tensor, bias: Tensor, target: Any, **options: Any) -> Tensor:
    return linear_weighted_bce_with_logits(x, classifier, target, linear_bias=bias, **options)


@pytest.mark.parametrize("sparse", [None, torch.int64])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_numbers_of_eager_mode(device: str, sparse: torch.dtype | None, compiler: str) -> None:
    case = base(torch.float32, device)
    case.sparse = sparse
    compiled = torch.compile(loss_of, backend=compiler, fullgraph=True)
    per_label = torch.rand(LABELS, device=device)
    for options in ({"reduction": "sum"}, {"pos_weight": per_label, "weight": per_label}):
        here = case.with_options(**options)
        for actual, wanted in zip(gradients(here, compiled), gradients(here, loss_of), strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_graph_of_two_ops(device: str, reduction: str) -> None:
    """For any number of rows and positives."""
    graphs = Graphs()
    function = torch.compile(loss_of, backend=graphs.backend, fullgraph=True, dynamic=True)
    for rows in (5, 9, 6, 14):
        case = base(torch.float32, device, rows=rows).with_options(reduction=reduction)
        case.sparse = torch.int64
        with error_on_recompile(rows > 9):
            found = gradients(case, function)
        for actual, wanted in zip(found[1:], expected(case, 2.5)[1], strict=True):
            assert_near(actual, wanted, 1e-5)
    assert set(graphs.forward) == {"linear_loss"}
    assert set(graphs.backward) == {"linear_grads"}


def test_only_what_is_needed(device: str) -> None:
    case = base(torch.float32, device)
    x, weight, bias = case.layer
    function = torch.compile(case, backend="aot_eager", fullgraph=True)
    weight = weight.clone().requires_grad_()
    function((x, weight, bias)).backward()
    assert_near(weight.grad, expected(case)[1][1], 1e-5)


def test_a_training_loop_under_inductor(device: str) -> None:
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        encoder = nn.Linear(20, FEATURES, device=device)
        criterion = LinearWeightedBCEWithLogitsLoss(
            FEATURES, LABELS, pos_weight=3.0, chunk_labels=64, device=device
        )
        parameters = [*encoder.parameters(), *criterion.parameters()]
        optimizer = torch.optim.SGD(parameters, 1.0)

        def step(x: Tensor, target: SparseLabels, own: Any = (encoder, criterion)) -> Tensor:
            loss: Tensor = own[1](own[0](x), target)
            return loss

        run = torch.compile(step, fullgraph=True) if compiled else step
        for seed in range(3):
            torch.manual_seed(seed)
            x, target = torch.randn(6, 20, device=device), base(torch.float32, device, 6).target
            optimizer.zero_grad()
            run(x, SparseLabels.from_dense(target)).backward()
            optimizer.step()
        ends.append(parameters)
    for actual, wanted in zip(*ends, strict=True):
        assert_near(actual, wanted.double(), 1e-5)


def test_autocast(device: str) -> None:
    case = base(torch.float32, device)
    function = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    with torch.autocast(device, torch.bfloat16):
        found = gradients(case, function)
    close = 5e-6 if device == "cpu" else 0.02
    for actual, wanted in zip(found[1:], expected(case, 2.5)[1], strict=True):
        assert actual.dtype == torch.float32
        assert_near(actual, wanted, close)


def test_topk(device: str) -> None:
    criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, device=device)
    x = base(torch.float32, device).input
    function = torch.compile(criterion.topk, backend="aot_eager", fullgraph=True)
    assert torch.equal(function(x, 5).indices, criterion.topk(x, 5).indices)


def test_wrong_labels_raise(kernel_device: str) -> None:
    if kernel_device != "cpu":
        pytest.skip("on CUDA nobody waits for the labels")
    case = base()
    function = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    wrong = SparseLabels(torch.tensor([0, 1, 1, 1, 1, 1, 1, 1]), torch.tensor([LABELS]))
    with pytest.raises((ValueError, RuntimeError), match="must be below 150"):
        function(*case.layer, wrong)


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, pos_weight=3.0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.criterion(x, y)
        return loss


@pytest.mark.parametrize("strict", [True, False])
def test_export(tmp_path: Path, strict: bool) -> None:
    module, rows = Scored(), torch.export.Dim("rows", min=2, max=1000)
    case = base()
    program = torch.export.export(
        module, (case.input, case.target), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    assert fused_ops(program.graph_module) == ["linear_loss"]
    torch.export.save(program, tmp_path / "scored.pt2")
    loaded = torch.export.load(tmp_path / "scored.pt2").module()
    for rows in (7, 3):
        case = base(rows=rows)
        assert torch.equal(loaded(case.input, case.target), module(case.input, case.target))


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        case = base()
    with mode:
        leaves = case.leaves()
        loss = case(leaves)
        assert loss.shape == ()
        loss.backward()
        assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)


def test_make_fx() -> None:
    case = base()
    graph = make_fx(lambda *layer: case(layer))(*case.layer)
    assert torch.equal(graph(*case.layer), case())


def test_meta_tensors() -> None:
    case = base()
    layer = [t.to("meta").requires_grad_() for t in case.layer if t is not None]
    loss = linear_weighted_bce_with_logits(*layer[:2], case.target.to("meta"), linear_bias=layer[2])
    loss.backward()
    assert loss.is_meta
    assert all(t.grad is not None and t.grad.shape == t.shape for t in layer)


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    ops = torch.ops.weighted_bce
    some = [case for case in cases(device, dtype) if case.target.numel()][
        :: 4 if dtype == torch.float32 else 9
    ]
    for case in some:
        args = case.op_args()
        x, weight, bias, *rest = args
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
        torch.library.opcheck(ops.linear_loss.default, args)
        torch.library.opcheck(ops.linear_loss.default, (*leaves, *rest))
        upstream = torch.ones_like(ops.linear_loss(*args))
        needs = [True, False, bias is not None]
        torch.library.opcheck(ops.linear_grads.default, (upstream, *args, needs))
    torch.library.opcheck(ops.linear_topk.default, (x, weight, bias, 1, None, 3))


def test_the_ops_have_gradients(device: str) -> None:
    for dtype in DTYPES:
        case = base(dtype, device)
        leaves = case.leaves()
        _, _, _, *rest = case.op_args()
        loss = torch.ops.weighted_bce.linear_loss(*leaves, *rest)
        for grad, leaf, wanted in zip(
            torch.autograd.grad(loss, leaves), leaves, expected(case)[1], strict=True
        ):
            assert_near(grad, wanted, tolerance(leaf.dtype))
    wrong = torch.ones(LABELS, device=device, requires_grad=True)
    with pytest.raises(NotImplementedError, match="has no gradient with respect to target"):
        torch.ops.weighted_bce.linear_loss(*case.layer, rest[0], None, wrong, *rest[3:])
