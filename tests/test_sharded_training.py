"""Training on several processes ends where training on one does: DDP, FSDP2, split classifiers."""

import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from weighted_bce import SparseLabels, weighted_bce_with_logits
from weighted_bce._extension import extension

from .processes import Processes, free_port, mesh_of
from .shards import whole
from .test_compile import Graphs
from .truth import REDUCTIONS, as_given

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]

ROOT = Path(__file__).parents[1]
LABELS = 11  # not a multiple of the processes


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, LABELS))


def batch(parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features and labels of so many processes, and a weight of each label."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(parts, 6, 5, generator=generator)
    y = torch.rand(parts, 6, LABELS, generator=generator) < 0.3
    return x, y, torch.rand(LABELS, generator=generator) * 5


def split_labels(model: nn.Sequential, mesh: Any) -> nn.Sequential:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    style = ColwiseParallel(output_layouts=Shard(1), use_local_output=False)
    parallelize_module(model[2], mesh, style)
    return model


def trained(model: nn.Module, loss: Any, *batch: Any, scale: float = 1.0) -> list[Tensor]:
    """The parameters after some steps, whole."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (loss(model, *batch) * scale).backward()
        for parameter in model.parameters():
            parameter.grad /= scale
        optimizer.step()
    return [whole(p).detach() for p in model.parameters()]


def loss_of(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return weighted_bce_with_logits(model(x), y, **options)


def check_split_classifier(processes: int) -> None:
    """Labels split over the processes, with a loss scale; compiled as well, and with what."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = mesh_of(processes)
    (x,), (y,), weight = batch(1)
    y_parts, weight_parts = (
        distribute_tensor(t, mesh, [Shard(dim)]) for t, dim in ((y, 1), (weight, 0))
    )
    ends = trained(network(), partial(loss_of, pos_weight=weight), x, y)
    split = partial(loss_of, pos_weight=weight_parts)
    for backend in (None, "aot_eager", "inductor")[: 3 if processes == 2 else 1]:
        torch._dynamo.reset()
        loss = torch.compile(split, backend=backend, fullgraph=True) if backend else split
        actual = trained(split_labels(network(), mesh), loss, x, y_parts, scale=64.0)
        torch.testing.assert_close(actual, ends)


def check_data_parallel(processes: int) -> None:
    """Each process has its rows; together they train as one that has all."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    x, y, _ = batch(processes)
    rank, loss = dist.get_rank(), partial(loss_of, pos_weight=7.0)
    ends = trained(network(), loss, x, y)
    wraps: list[Any] = [DistributedDataParallel, fully_shard]
    if processes == 4:
        wraps.append(partial(fully_shard, mesh=mesh_of(2, 2)))  # HSDP
    for wrap in wraps:
        torch.testing.assert_close(trained(wrap(network()), loss, x[rank], y[rank]), ends)


def check_rows_and_labels(processes: int) -> None:
    """FSDP2 over rows and a classifier split over labels, on a 2-d mesh."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = mesh_of(processes // 2, 2)
    row, labels = mesh.get_local_rank("first"), mesh["second"]
    x, y, weight = batch(processes // 2)
    ends = trained(network(), partial(loss_of, pos_weight=weight), x, y)
    model = fully_shard(split_labels(network(), labels), mesh=mesh["first"])
    y_parts = distribute_tensor(y[row], labels, [Shard(1)])
    loss = partial(loss_of, pos_weight=distribute_tensor(weight, labels, [Shard(0)]))
    torch.testing.assert_close(trained(model, loss, x[row], y_parts), ends)


# The dimension that is split, the reduction, whether some are ignored, how the target is given.
COMPILED = tuple(product((0, 1), REDUCTIONS, (False, True), (None, torch.int64)))


def check_compiled(processes: int, some: tuple[Any, ...] = COMPILED[2::5]) -> None:
    """One graph, of the ops, that sends nothing but the count; the numbers of eager mode."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = mesh_of(processes)
    x, y = torch.randn(7, LABELS), torch.randint(-1, 2, (7, LABELS))
    weight = torch.rand(LABELS)
    for dim, reduction, ignores, sparse in some:
        target = y if ignores and sparse is None else y.clamp(min=0)
        index = None if not ignores else -1 if sparse is None else 1
        labels = as_given(target, sparse)
        own = labels if sparse else distribute_tensor(target, mesh, [Shard(dim)])
        parts = (
            distribute_tensor(x, mesh, [Shard(dim)]),
            own,
            distribute_tensor(weight, mesh, [Shard(0) if dim else Replicate()]),
        )
        torch._dynamo.reset()

        def loss(x: Any, y: Any, p: Any, r: str = reduction, i: float | None = index) -> Any:
            return weighted_bce_with_logits(x, y, None, p, r, ignore_index=i).sum() * 2.5

        graphs, ends = Graphs(), []
        for call, leaf, target, p in (
            (graphs.compiled(loss), *parts),
            (loss, x, labels, weight),
        ):
            leaf = leaf.detach().requires_grad_()
            total = call(leaf, target, p)
            total.backward()
            ends.append((total.detach(), leaf.grad))
        sharded, whole = ends
        torch.testing.assert_close(tuple(t.full_tensor() for t in sharded), whole)
        op = "unreduced" if reduction == "none" else "loss"
        counts = reduction == "mean" and ignores and sparse is None
        assert sorted(graphs.forward) == (["all_reduce", op] if counts else [op])
        assert graphs.backward == ["grad"]
    compiled = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="target must be a DTensor like input, got"):
        compiled(parts[0], y)


def check_any_number_of_positives(processes: int) -> None:
    """The bits of eager mode, or the error of the op."""
    from torch.distributed.tensor import Shard, distribute_tensor

    y = torch.rand(7, LABELS) < 0.3
    crow, col = as_given(y, torch.int64)
    for dim in (0, 1):
        parts = distribute_tensor(torch.randn(7, LABELS), mesh_of(processes), [Shard(dim)])
        parts.requires_grad_()
        compiled = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
        for number in (9, 10, 11):
            fewer = SparseLabels(crow.clamp(max=number), col[:number].contiguous())
            losses = [f(parts, fewer, pos_weight=7.0) for f in (compiled, weighted_bce_with_logits)]
            grads = [torch.autograd.grad(loss, parts)[0] for loss in losses]
            for one, other in (losses, grads):
                assert torch.equal(one.full_tensor(), other.full_tensor())
        with pytest.raises(RuntimeError, match="col_indices must"):
            compiled(parts, SparseLabels(crow, col + LABELS - 1), pos_weight=7.0)


check_every_way_to_compile = partial(check_compiled, some=COMPILED)


def check_example(processes: int) -> None:
    from examples import label_parallel

    split = label_parallel.train(101, 3, "cpu", mesh_of(processes))
    assert split == pytest.approx(label_parallel.train(101, 3, "cpu", None), abs=1e-4)


@pytest.mark.parametrize(
    "check",
    [
        check_split_classifier,
        check_data_parallel,
        check_rows_and_labels,
        check_compiled,
        check_any_number_of_positives,
        pytest.param(check_every_way_to_compile, id="every way", marks=pytest.mark.exhaustive),
        check_example,
    ],
)
def test(processes: Processes, check: Any) -> None:
    compiles = (check_compiled, check_every_way_to_compile, check_any_number_of_positives)
    if processes.number == 4 and check in compiles:
        pytest.skip("two processes tell")
    processes(check)


@pytest.mark.exhaustive
def test_example_with_torchrun() -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    arguments = ["-m", "examples.label_parallel", "--labels", "101", "--steps", "3"]
    port = ["--master-port", str(free_port())]
    ran = subprocess.run([*program, *port, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "101 labels over 2 processes on cpu" in ran.stdout or torch.cuda.is_available()
    assert "a whole classifier: the same" in ran.stdout


def test_example_without_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples import label_parallel
    from tools.program import run

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(sys, "argv", ["label_parallel"])
    assert run(label_parallel.PROGRAM, label_parallel.work) == 2
    assert "run it by torchrun" in capsys.readouterr().err


def check_first_call(_: int, how: str) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    x, y = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    parts = [distribute_tensor(t, mesh_of(1), [Replicate()]) for t in (x, y)]
    call: Any = torch.func.grad(weighted_bce_with_logits)
    if how == "compiler":
        call = torch.compile(weighted_bce_with_logits, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(call(*parts).full_tensor(), call(x, y))


@pytest.mark.parametrize("how", ["transform", "compiler"])
def test_first_thing_in_a_process(how: str) -> None:
    """When the rules of the ops are not there yet."""
    process = Processes(1)
    process(partial(check_first_call, how=how))
    process.stop()
