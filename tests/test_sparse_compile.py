"""torch.compile and torch.export take sparse labels as an input, with any number of positives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weighted_bce import WeightedBCEWithLogitsLoss, backend, weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce.sparse import SparseLabels

from .grids import one_at_a_time
from .test_compile import COMPILERS, Graphs, error_on_recompile, fused_ops, network
from .truth import REDUCTIONS, logits, positives_of

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

OPTIONS: tuple[dict[str, Any], ...] = (
    {"pos_weight": 7.0},
    {"pos_weight": torch.rand(9) + 0.5, "weight": torch.rand(9)},
    {"label_smoothing": 0.1, "ignore_index": 1},
)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def batch(rows: int, device: str, positives: int) -> tuple[Tensor, SparseLabels]:
    y = torch.zeros(rows, 9, dtype=torch.bool)
    y.view(-1)[torch.randperm(rows * 9)[:positives]] = True
    return logits(rows, 9, device=device).requires_grad_(), positives_of(y.to(device))


def on(device: str, given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", OPTIONS, ids=lambda given: "-".join(given))
def test_every_bit_of_eager(kernel_device: str, reduction: str, given: dict[str, Any]) -> None:
    options = {**on(kernel_device, given), "reduction": reduction}

    def loss(x: Tensor, labels: SparseLabels) -> Tensor:
        return weighted_bce_with_logits(x, labels, **options)

    graphs = Graphs()
    compiled = torch.compile(loss, fullgraph=True, backend=graphs.backend)
    x, sparse = batch(6, kernel_device, 11)
    found, wanted = compiled(x, sparse), loss(x, sparse)
    assert torch.equal(found, wanted)
    own, other = (torch.autograd.grad(t.sum() * 2.5, x)[0] for t in (found, wanted))
    assert torch.equal(own, other)
    assert graphs.forward == ["unreduced" if reduction == "none" else "loss"]
    assert graphs.backward == ["grad"]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_one_graph_for_all_batches(kernel_device: str, compiler: str) -> None:
    """Once the compiler has seen that the number of positives and of rows changes."""
    criterion = WeightedBCEWithLogitsLoss(pos_weight=7.0)
    compiled = torch.compile(criterion, fullgraph=True, backend=compiler)
    compiled(*batch(6, kernel_device, 11))
    compiled(*batch(6, kernel_device, 12))
    compiled(*batch(7, kernel_device, 13))
    with error_on_recompile(True):
        for rows, positives in ((6, 5), (6, 54), (12, 30), (31, 2)):
            x, sparse = batch(rows, kernel_device, positives)
            found, wanted = compiled(x, sparse), criterion(x, sparse)
            assert torch.equal(found, wanted)
            assert torch.equal(*(torch.autograd.grad(t, x)[0] for t in (found, wanted)))
    x, nothing = batch(6, kernel_device, 0)
    assert torch.equal(compiled(x, nothing), criterion(x, nothing))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_what_the_compiler_makes_of_the_reference(device: str, compiler: str) -> None:
    x, sparse = batch(6, device, 11)
    with backend("reference"):
        wanted = weighted_bce_with_logits(x, sparse, pos_weight=7.0)
        compiled = torch.compile(weighted_bce_with_logits, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(x, sparse, pos_weight=7.0), wanted)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_transforms_inside(kernel_device: str, compiler: str) -> None:
    def gradient(x: Tensor, labels: SparseLabels) -> Tensor:
        return torch.func.grad(lambda x: weighted_bce_with_logits(x, labels, pos_weight=7.0))(x)

    x, sparse = batch(6, kernel_device, 11)
    x = x.detach()
    compiled = torch.compile(gradient, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(x, sparse), gradient(x, sparse))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_index_is_an_error_when_it_runs(device: str, compiler: str) -> None:
    if device == "cuda":
        pytest.skip("there nobody waits to see it")
    compiled = torch.compile(weighted_bce_with_logits, fullgraph=True, backend=compiler)
    x, sparse = batch(6, device, 11)
    compiled(x, sparse)
    wrong = sparse._replace(col_indices=sparse.col_indices + 5)
    with pytest.raises(RuntimeError, match="col_indices must be below 9, the number of labels"):
        compiled(x, wrong)


# Where the compiler takes the reference, which makes of them an index that is out of bounds.
WRONG = {
    "beyond": lambda y: y._replace(col_indices=y.col_indices + 5),
    "negative": lambda y: y._replace(col_indices=y.col_indices - 5),
    "late": lambda y: y._replace(crow_indices=y.crow_indices.clamp(min=1)),
    "short": lambda y: y._replace(crow_indices=y.crow_indices.clamp(max=10)),
}


def _gradient(x: Tensor, y: SparseLabels) -> Tensor:
    return torch.func.grad(weighted_bce_with_logits)(x, y)


def _by_the_reference(x: Tensor, y: SparseLabels) -> Tensor:
    with backend("reference"):
        return weighted_bce_with_logits(x, y)


@pytest.mark.parametrize("function", [_gradient, _by_the_reference, torch.vmap(_gradient)])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_index_is_an_error_of_the_reference(
    device: str, function: Any, compiler: str
) -> None:
    if device == "cuda":
        pytest.skip("an error there ends the process")
    x, sparse = batch(6, device, 11)
    x = x.detach()
    stacked = function not in (_gradient, _by_the_reference)
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for name, made in {"right": lambda y: y, **WRONG}.items():
        args = [x, made(sparse)]
        if stacked:
            args = [x[None], SparseLabels(*(t[None] for t in args[1]))]
        if name == "right":
            torch.testing.assert_close(compiled(*args), function(*args))
            continue
        with pytest.raises(RuntimeError, match=r"index (\d+ is )?out of (bounds|range)"):
            compiled(*args)


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.full((9,), 7.0))

    def forward(self, x: Tensor, y: SparseLabels) -> Tensor:
        return self.criterion(self.model(x), y)


@one_at_a_time(dynamic=[True, False], strict=[False, True])
def test_exported_saved_and_loaded(
    kernel_device: str, strict: bool, dynamic: bool, tmp_path: Path
) -> None:
    rows = torch.export.Dim("rows", min=2, max=1000)
    positives = torch.export.Dim("positives", min=2, max=9000)

    def example(rows: int, positives: int) -> tuple[Tensor, SparseLabels]:
        return torch.randn(rows, 20, device=kernel_device), batch(rows, kernel_device, positives)[1]

    shapes = ({0: rows}, SparseLabels({0: rows + 1}, {0: positives}))  # type: ignore[arg-type]
    module = Scored().to(kernel_device)
    program = torch.export.export(
        module, example(6, 11), dynamic_shapes=shapes if dynamic else None, strict=strict
    )
    assert fused_ops(program.graph_module) == ["loss"]
    torch.export.save(program, tmp_path / "scored.pt2")
    loaded = torch.export.load(tmp_path / "scored.pt2").module()
    for size in ((6, 11), (17, 3), (2, 18)) if dynamic else ((6, 11),):
        args = example(*size)
        assert torch.equal(program.module()(*args), module(*args))
        assert torch.equal(loaded(*args), module(*args))
