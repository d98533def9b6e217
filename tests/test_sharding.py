"""DTensors: sharded logits give the loss and gradient of one process, without communication."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from weighted_bce import WeightedBCEWithLogitsLoss, weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce.reference import SUM

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]

ROOT = Path(__file__).parents[1]
OPTIONS: tuple[dict[str, Any], ...] = (
    {"pos_weight": 7.0},
    {"pos_weight": "per label", "weight": "per row"},
    {"weight": "per label", "reduction": "sum", "label_smoothing": 0.1},
    {"weight": "full", "reduction": "batchmean"},
    {"pos_weight": "per label", "reduction": "none"},
    {"ignore_index": -1, "pos_weight": 3.0},
    {"ignore_index": -1, "reduction": "none"},
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run(work: Any, processes: int) -> None:
    mp.spawn(_start, (work, processes, free_port()), nprocs=processes)  # raises what one raised


def _start(rank: int, work: Any, processes: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        work(processes)
    finally:
        dist.destroy_process_group()


def layouts(processes: int) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Device meshes and how the logits lie on them: over rows, labels, both, and whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    line = init_device_mesh("cpu", (processes,))
    yield from ((line, (placement,)) for placement in (Shard(0), Shard(1), Replicate()))
    if processes == 4:
        square = init_device_mesh("cpu", (2, 2))
        yield square, (Shard(0), Shard(1))
        yield square, (Shard(1), Replicate())


def alike(factor: Tensor, input: Tensor, placements: tuple[Any, ...]) -> list[Any]:
    """The placements of a factor beside logits that have these."""
    from torch.distributed.tensor import Replicate, Shard

    missing = input.dim() - factor.dim()
    found = []
    for p in placements:
        own = p.dim - missing if isinstance(p, Shard) else -1
        found.append(Shard(own) if own >= 0 and factor.shape[own] > 1 else Replicate())
    return found


def check_losses(processes: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    torch.manual_seed(0)
    x = torch.randn(7, 13) * 4  # neither is a multiple of the processes
    y = torch.where(torch.rand(7, 13) < 0.3, -1, (torch.rand(7, 13) < 0.3).long())
    shapes = {"per label": (13,), "per row": (7, 1), "full": (7, 13)}
    factors = {name: torch.rand(shape) + 0.5 for name, shape in shapes.items()}
    for mesh, placements in layouts(processes):
        for given in OPTIONS:
            target = y if "ignore_index" in given else y.clamp(min=0)
            plain = {k: factors.get(v, v) for k, v in given.items()}
            sharded = {
                k: distribute_tensor(v, mesh, alike(v, x, placements))
                if isinstance(v, Tensor)
                else v
                for k, v in plain.items()
            }
            logits = distribute_tensor(x, mesh, placements).requires_grad_()
            labels = distribute_tensor(target, mesh, placements)
            with CommDebugMode() as talk:
                loss = weighted_bce_with_logits(logits, labels, **sharded)
            counted = "ignore_index" in given and given.get("reduction") != "none"
            # The count of all shards is one number, which all need.
            most = sum(isinstance(p, Shard) for p in placements) * 2 if counted else 0
            assert talk.get_total_counts() <= most, (placements, given, talk.get_comm_counts())
            leaf = x.clone().requires_grad_()
            expected = weighted_bce_with_logits(leaf, target, **plain)
            torch.testing.assert_close(loss.full_tensor(), expected)
            with CommDebugMode() as talk:
                (grad,) = torch.autograd.grad(loss.sum() * 2.5, logits)
            assert talk.get_total_counts() == 0, (placements, given)
            assert grad.placements == logits.placements
            (expected_grad,) = torch.autograd.grad(expected.sum() * 2.5, leaf)
            torch.testing.assert_close(grad.full_tensor(), expected_grad)
        check_one_pass(logits.detach(), labels, x, target)
    with pytest.raises(TypeError, match="target must be a DTensor like input, got Tensor"):
        weighted_bce_with_logits(logits, target)


def check_one_pass(logits: Any, labels: Any, x: Tensor, y: Tensor) -> None:
    """The op that writes loss and gradient at once, called directly."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    one, arguments = torch.ones(()), (None, None, 7.0, 0.1, None, SUM)
    ones = distribute_tensor(one, logits.device_mesh, [Replicate()] * logits.device_mesh.ndim)
    op = torch.ops.weighted_bce.loss_and_grad
    sharded, whole = op(logits, labels, *arguments, ones), op(x, y, *arguments, one)
    assert sharded[1].placements == logits.placements
    for found, expected in zip(sharded, whole, strict=True):
        torch.testing.assert_close(found.full_tensor(), expected)


def check_classifier(processes: int) -> None:
    """A classifier whose labels are split over the processes trains as a whole one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (processes,))
    torch.manual_seed(0)
    x, y = torch.randn(6, 5), torch.rand(6, 11) < 0.3
    weight = torch.rand(11) * 5
    ends = []
    for split in (False, True):
        torch.manual_seed(1)
        model: nn.Module = nn.Linear(5, 11)
        criterion, labels = WeightedBCEWithLogitsLoss(pos_weight=weight), y
        if split:
            style = ColwiseParallel(output_layouts=Shard(1), use_local_output=False)
            model = parallelize_module(model, mesh, style)
            criterion.pos_weight = distribute_tensor(weight, mesh, [Shard(0)])
            labels = distribute_tensor(y, mesh, [Shard(1)])
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            criterion(model(x), labels).backward()
            optimizer.step()
        whole = (p.full_tensor() if split else p for p in model.parameters())
        ends.append([p.detach() for p in whole])
    torch.testing.assert_close(ends[1], ends[0])


def check_data_parallel(processes: int) -> None:
    """DDP and FSDP2: each process has its rows; together they train as one that has all."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    x, y = torch.randn(processes, 6, 5), torch.rand(processes, 6, 11) < 0.3
    criterion, rank = WeightedBCEWithLogitsLoss(pos_weight=7.0), dist.get_rank()
    ends = []
    for wrap in (None, DistributedDataParallel, fully_shard):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 11))
        wrapped = model if wrap is None else wrap(model)
        mine = slice(None) if wrap is None else rank
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            criterion(wrapped(x[mine]), y[mine]).backward()
            optimizer.step()
        whole = (p.full_tensor() if wrap is fully_shard else p for p in model.parameters())
        ends.append([p.detach() for p in whole])
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_gradients(processes: int) -> None:
    run(check_losses, processes)


@pytest.mark.parametrize("processes", [2, 4])
def test_labels_split_over_processes(processes: int) -> None:
    run(check_classifier, processes)


@pytest.mark.parametrize("processes", [2, 4])
def test_rows_split_over_processes(processes: int) -> None:
    run(check_data_parallel, processes)


def test_example() -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    arguments = ["-m", "examples.label_parallel", "--labels", "101", "--steps", "3"]
    port = ["--master-port", str(free_port())]
    ran = subprocess.run([*program, *port, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "101 labels over 2 processes on cpu" in ran.stdout or torch.cuda.is_available()
    assert "a whole classifier: the same" in ran.stdout


def test_example_without_torchrun() -> None:
    without = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    program = [sys.executable, "-m", "examples.label_parallel"]
    ran = subprocess.run(program, cwd=ROOT, env=without, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "run it by torchrun" in ran.stderr
