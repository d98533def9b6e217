"""A classifier whose labels are split over processes, checked against a whole one.

Run as: torchrun --nproc-per-node 2 -m examples.label_parallel [--labels N] [--steps N]

Each process holds its part of the last layer, of the logits and of the labels, and computes the
loss of its part. A step communicates the gradient of the layer's input and, to show the loss, one
number. With GPUs, each process takes one; without, the processes share the CPU.
"""

import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tools.program import Parser, Refusal, run
from weighted_bce import WeightedBCEWithLogitsLoss

from . import training
from .program import add

PROGRAM = "python -m examples.label_parallel"
FEATURES, HIDDEN, ROWS, DENSITY = 64, 128, 256, 0.005


def network(labels: int, device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, labels))
    return nn.Sequential(*layers).to(device)


def batches(labels: int, steps: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in each process."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(ROWS, FEATURES, generator=generator)
        y = torch.rand(ROWS, labels, generator=generator) < DENSITY
        yield x.to(device), y.to(device)


def train(labels: int, steps: int, device: str, mesh: DeviceMesh | None) -> list[float]:
    """The losses of all steps; with a mesh, the labels are split over it."""
    model = network(labels, device)
    criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.linspace(1, 20, labels)).to(device)
    if mesh is not None:
        style = ColwiseParallel(output_layouts=Shard(1), use_local_output=False)
        parallelize_module(model[2], mesh, style)
        assert isinstance(criterion.pos_weight, Tensor)
        criterion.pos_weight = distribute_tensor(criterion.pos_weight, mesh, [Shard(0)])

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        if mesh is None:
            return criterion(model(x), y)
        loss: DTensor = criterion(model(x), distribute_tensor(y, mesh, [Shard(1)]))
        return loss.full_tensor()

    optimizer = torch.optim.Adam(model.parameters(), 1e-2, foreach=False)
    return list(training.train(loss_of, [optimizer], batches(labels, steps, device)))


def place() -> tuple[int, int, int]:
    """The rank, the number of processes, and the rank on this machine, which torchrun sets."""
    command = "torchrun --nproc-per-node 2 -m examples.label_parallel"
    try:
        rank, processes, local = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
    except (KeyError, ValueError):
        raise Refusal(f"run it by torchrun: {command}") from None
    return rank, processes, local


def work() -> None:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add(parser, "--labels", "of the classifier", 1001)
    add(parser, "--steps", "of the training", 20)
    options = parser.parse_args()
    rank, processes, local = place()
    device = "cuda" if torch.cuda.device_count() >= processes else "cpu"
    if device == "cuda":
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:  # such as a machine that cannot be reached
        raise Refusal(f"the processes cannot find each other: {error}", 1) from None
    try:
        mesh = init_device_mesh(device, (processes,))
        split = train(options.labels, options.steps, device, mesh)
        whole = train(options.labels, options.steps, device, None)
    finally:
        dist.destroy_process_group()
    furthest = max(abs(a - b) for a, b in zip(split, whole, strict=True))
    if rank == 0:
        print(f"{options.labels} labels over {processes} processes on {device}")
        print(f"loss from {split[0]:.6f} to {split[-1]:.6f} in {options.steps} steps")
        print(f"a whole classifier: the same, at most {furthest:.1e} apart")
    if not furthest < 1e-4:
        raise Refusal("the split classifier does not train as the whole one", 1)


if __name__ == "__main__":
    sys.exit(run(PROGRAM, work))
