"""DTensor logits with sparse labels, which each process holds whole: nothing is sent for them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import grad, vmap

from weighted_bce import weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce.sparse import SparseLabels

from .processes import Processes
from .test_sharding import assert_whole, beside, distributed, layouts, whole
from .truth import positives_of

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]

LABELS = 13
OPTIONS: tuple[dict[str, Any], ...] = (
    {"pos_weight": 7.0},
    {"pos_weight": "per label", "weight": "per row"},
    {"weight": "per label", "reduction": "sum", "label_smoothing": 0.1},
    {"weight": "full", "reduction": "batchmean"},
    {"pos_weight": "per label", "reduction": "none"},
    {"ignore_index": 0, "pos_weight": 3.0},
    {"ignore_index": 1, "label_smoothing": 0.2},
)


def example(rows: int = 7) -> tuple[Tensor, SparseLabels]:
    """Neither rows nor labels are a multiple of the processes; a row without positives."""
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(rows, LABELS, generator=generator) < 0.3
    y[0], y[:, -1] = False, True
    return torch.randn(rows, LABELS, generator=generator) * 4, positives_of(y)


def each_placed(rows: int = 7) -> Iterator[tuple[Any, Tensor, SparseLabels]]:
    x, sparse = example(rows)
    for mesh, placements in layouts(dist.get_world_size()):
        yield distributed(x, mesh, placements).requires_grad_(), x.clone().requires_grad_(), sparse


def gradients(loss: Any, *of: Any) -> Any:
    return torch.autograd.grad(loss, of)[0]


def check_losses(processes: int) -> None:
    from torch.distributed.tensor.debug import CommDebugMode

    for rows in (7, processes - 1):
        shapes = {"per label": (LABELS,), "per row": (rows, 1), "full": (rows, LABELS)}
        factors = {name: torch.rand(shape) + 0.5 for name, shape in shapes.items()}
        for logits, x, sparse in each_placed(rows):
            for given in OPTIONS:
                plain = {k: factors.get(v, v) for k, v in given.items()}
                parts = {
                    k: beside(v, logits) if isinstance(v, Tensor) else v for k, v in plain.items()
                }
                with CommDebugMode() as talk:
                    loss = weighted_bce_with_logits(logits, sparse, **parts)
                    grad = gradients(loss.sum() * 2.5, logits)
                assert talk.get_total_counts() == 0, (logits.placements, given)
                expected = weighted_bce_with_logits(x, sparse, **plain)
                assert_whole(loss, expected)
                assert grad.placements == logits.placements
                assert_whole(grad, gradients(expected.sum() * 2.5, x))


def flattens(stacked: Any) -> bool:
    """Whether torch joins a dimension that is sharded with another one; torch 2.11 does not."""
    try:
        stacked.flatten(0, 1)
    except RuntimeError:
        return False
    return True


def check_derivatives(processes: int) -> None:
    """Of the second order, of the factors, under torch.func."""
    for logits, x, sparse in each_placed():

        def loss(x: Any, **given: Any) -> Any:
            return weighted_bce_with_logits(x, sparse, **given)  # noqa: B023

        def second_order(x: Any) -> Any:
            (slope,) = torch.autograd.grad(loss(x), x, create_graph=True)
            return gradients(whole((slope * slope).sum()), x)

        assert_whole(second_order(logits), second_order(x))
        leaf, plain = logits.detach(), x.detach()
        assert_whole(grad(loss)(leaf), grad(loss)(plain))
        many = torch.stack([plain, plain * 2, -plain])
        stacked = torch.stack([leaf, leaf * 2, -leaf])
        if flattens(stacked):
            assert_whole(vmap(loss)(stacked), vmap(loss)(many))
        else:
            with pytest.raises(RuntimeError, match=r"flatten|view"):
                vmap(loss)(stacked)
        for name in ("weight", "pos_weight"):
            one = torch.linspace(0.5, 3, LABELS, requires_grad=True)
            factor = beside(one.detach(), logits).requires_grad_()
            found = gradients(loss(leaf, **{name: factor}), factor)
            assert_whole(found, gradients(loss(plain, **{name: one}), one))


def check_compiled(processes: int) -> None:
    """Eager bits, for any number of positives."""
    for logits, _, sparse in each_placed():
        compiled = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
        for k in range(3):
            fewer = SparseLabels(
                sparse.crow_indices.clamp(max=9 + k), sparse.col_indices[: 9 + k].contiguous()
            )
            found = compiled(logits, fewer, pos_weight=7.0)
            wanted = weighted_bce_with_logits(logits, fewer, pos_weight=7.0)
            assert torch.equal(whole(found), whole(wanted))
            assert torch.equal(whole(gradients(found, logits)), whole(gradients(wanted, logits)))
        beyond = sparse._replace(col_indices=sparse.col_indices + 1)
        with pytest.raises(RuntimeError, match="col_indices must"):
            compiled(logits, beyond, pos_weight=7.0)


def check_errors(processes: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    for logits, x, sparse in each_placed():
        mesh = logits.device_mesh
        copies = SparseLabels(*(distributed(t, mesh, [Replicate()] * mesh.ndim) for t in sparse))
        wanted = weighted_bce_with_logits(x, sparse)
        assert_whole(weighted_bce_with_logits(logits, copies), wanted)
        in_parts = copies._replace(
            col_indices=distributed(sparse.col_indices, mesh, [Shard(0)] * mesh.ndim)
        )
        assert_whole(weighted_bce_with_logits(logits, in_parts), wanted)
        beyond = sparse._replace(col_indices=sparse.col_indices + 1)
        with pytest.raises(ValueError, match="13"):
            weighted_bce_with_logits(logits, beyond)


@pytest.mark.parametrize("check", [check_losses, check_derivatives, check_compiled, check_errors])
def test(processes: Processes, check: Any) -> None:
    if processes.number == 4 and check is check_compiled:
        pytest.skip("compiling takes the time of four")
    processes(check)
