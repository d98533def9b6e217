"""A fused step in several processes ends where one process with the whole batch does."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from weighted_bce import (
    FusedAdam,
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    linear_weighted_bce_with_logits,
)
from weighted_bce.linear._deferred import DeferredGrad, deferred_grad

from .processes import Processes, mesh_of
from .shards import assert_whole, distributed

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")

FEATURES, LABELS, ROWS = 6, 13, 8  # the labels are no multiple of the processes
KINDS: list[tuple[Any, Any, dict[str, Any]]] = [
    (FusedSGD, torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}),
    (FusedAdam, torch.optim.Adam, {"lr": 0.05}),
]


class Model(nn.Module):
    """An encoder and a criterion, the same ones in each process."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(FEATURES, FEATURES)
        self.criterion = LinearWeightedBCEWithLogitsLoss(
            FEATURES, LABELS, bias, chunk_labels=4, pos_weight=3.0
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.encoder(x), y)
        return loss


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, FEATURES, generator=generator)
    return x, torch.rand(ROWS, LABELS, generator=generator) < 0.2


def own(tensor: Tensor, rank: int, processes: int) -> Tensor:
    return tensor.chunk(processes)[rank]


def check_group_is_needed(processes: int) -> None:
    """The call raises and changes nothing, also if another part of the model is wrapped."""
    model = Model()
    model.encoder = DistributedDataParallel(model.encoder)
    before = [p.clone() for p in model.parameters()]
    model.criterion.fused_step = FusedSGD(model.criterion.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="fused_step must say which processes average its grad"):
        model(*batch(0))
    model.criterion.fused_step = lambda *_: None
    with pytest.raises(ValueError, match="or the attribute group of a function"):
        model(*batch(0))
    torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)


def check_data_parallel(processes: int) -> None:
    """Gradients are averaged, clipped and accumulated as those of one process."""
    rank, world = dist.get_rank(), dist.group.WORLD
    for kind, ordinary, options in KINDS:
        model, whole = Model(), Model()
        encoder = DistributedDataParallel(model.encoder)
        optimizer = kind(model.parameters(), **options, accumulate=2, group=world)
        model.criterion.fused_step = optimizer
        other = ordinary(whole.parameters(), **options)
        for number in range(3):
            for part in range(2):
                x, y = batch(2 * number + part)
                hidden = encoder(own(x, rank, processes))
                model.criterion(hidden, own(y, rank, processes)).backward()
                whole(x, y).backward()
            norms = [clip_grad_norm_(m.parameters(), 0.01) for m in (model, whole)]
            torch.testing.assert_close(*norms)
            for each in (optimizer, other):
                each.step()
                each.zero_grad()
        torch.testing.assert_close([*model.parameters()], [*whole.parameters()])


def check_rows_that_differ(processes: int) -> None:
    """Processes with other numbers of rows choose other chunks, and take the smallest."""
    rank, labels = dist.get_rank(), 1100  # more than the smallest chunk, of 256 labels
    one, other = (LinearWeightedBCEWithLogitsLoss(FEATURES, labels, reduction="sum") for _ in "12")
    other.load_state_dict(one.state_dict())
    one.fused_step = FusedSGD(one.parameters(), lr=0.1, group=dist.group.WORLD)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    numbers = [50 + 200 * i for i in range(processes)]
    x, y = torch.randn(sum(numbers), FEATURES), torch.rand(sum(numbers), labels) < 0.1
    one(x.split(numbers)[rank], y.split(numbers)[rank]).backward()
    one.fused_step.step()
    (other(x, y) / processes).backward()
    optimizer.step()
    torch.testing.assert_close([*one.parameters()], [*other.parameters()])


def check_overflow_in_one_process(processes: int) -> None:
    """All processes leave the step out, also if there is no gradient but the deferred one."""
    rank = dist.get_rank()
    for of_torch, bias in itertools.product((False, True), repeat=2):
        model = Model(bias)
        optimizer = FusedSGD(
            model.criterion.parameters(), lr=1.0, fused=of_torch, group=dist.group.WORLD
        )
        model.criterion.fused_step = optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for number in range(3):
            x, y = batch(number)
            loss = model(own(x, rank, processes), own(y, rank, processes))
            if number == 1 and rank == 0:
                loss = loss * torch.inf
            before = model.criterion.linear.weight.detach().clone()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert torch.equal(before, model.criterion.linear.weight) == (number == 1)
        assert scaler.get_scale() == 128.0
        same = model.criterion.linear.weight.detach().clone()
        dist.broadcast(same, 0)
        assert torch.equal(same, model.criterion.linear.weight)


def check_a_function(processes: int) -> None:
    """It gets averaged gradients if it has a group, and those of this process if that is None."""
    rank = dist.get_rank()
    x, y = batch(0)
    whole = Model()
    whole(x, y).backward()
    for group in (dist.group.WORLD, None):
        model, alone = Model(), Model()
        alone(own(x, rank, processes), own(y, rank, processes)).backward()
        linear = model.criterion.linear
        got = [torch.full_like(p, torch.nan) for p in (linear.weight, linear.bias)]

        def step(labels: slice, weight_grad: Any, bias_grad: Any, got: Any = got) -> None:
            got[0][labels], got[1][labels] = weight_grad, bias_grad

        step.group = group  # type: ignore[attr-defined]
        model.criterion.fused_step = step
        model(own(x, rank, processes), own(y, rank, processes)).backward()
        wanted = (alone if group is None else whole).criterion.linear
        torch.testing.assert_close(got, [wanted.weight.grad, wanted.bias.grad])


def check_label_parallel(processes: int) -> None:
    """Each process has its own labels: DTensors, accumulated, clipped and saved."""
    from torch.distributed.tensor import Replicate, Shard

    meshes = [(mesh_of(processes), None)]
    for shape in ((2, 2),) if processes == 4 else ((1, 2), (2, 1)):  # rows are split, too
        both = mesh_of(*shape)
        meshes.append((both["second"], both["first"]))
    for (mesh, rows), (kind, ordinary, options) in [(m, k) for m in meshes for k in KINDS]:
        whole = Model().criterion.linear
        other = ordinary(whole.parameters(), **options)
        parameters = [
            nn.Parameter(distributed(p.detach(), mesh, [Shard(0)])) for p in whole.parameters()
        ]
        group = None if rows is None else rows.get_group()
        optimizer = kind(parameters, **options, accumulate=2, group=group)
        number_of, rank = (1, 0) if rows is None else (rows.size(), rows.get_local_rank())

        def loss(weight: Any, bias: Any, x: Any, y: Any, step: Any = None) -> Any:
            y = SparseLabels.from_dense(y)
            return linear_weighted_bce_with_logits(
                x, weight, y, linear_bias=bias, pos_weight=3.0, chunk_labels=4, fused_step=step
            )

        for number in range(2):
            for part in range(2):
                x, y = batch(2 * number + part)
                loss(whole.weight, whole.bias, x, y).backward()
                x, y = own(x, rank, number_of), own(y, rank, number_of)
                x = distributed(x, mesh, [Replicate()]).requires_grad_()
                loss(*parameters, x, y, optimizer).backward()
            assert isinstance(deferred_grad(parameters[0].grad), DeferredGrad)
            norms = [clip_grad_norm_(m, 0.01) for m in (parameters, whole.parameters())]
            torch.testing.assert_close(norms[0].full_tensor(), norms[1])
            state = copy.deepcopy(optimizer.state_dict())
            for each in (optimizer, other):
                each.step()
                each.zero_grad()
            assert not state["state"] or number
        for actual, wanted in zip(parameters, whole.parameters(), strict=True):
            assert_whole(actual.detach(), wanted.detach())


def check_fully_shard(processes: int) -> None:
    """Its parameters are others during the call, so the optimizer is refused, whenever it was made.
    Without one the gradient is an ordinary one."""
    from torch.distributed.fsdp import fully_shard

    for is_made_before in (True, False):
        model = Model()
        if is_made_before:
            optimizer = FusedSGD(model.criterion.parameters(), lr=1.0, group=None)
        fully_shard(model.criterion, mesh=mesh_of(processes))
        if not is_made_before:
            optimizer = FusedSGD(model.criterion.parameters(), lr=1.0, group=None)
        model.criterion.fused_step = optimizer
        with pytest.raises(ValueError, match="must have linear_weight itself among its"):
            model(*batch(0))
        model.criterion.fused_step = None
        model(*batch(0)).backward()
        assert deferred_grad(model.criterion.linear.weight.grad) is None


@pytest.mark.parametrize(
    "check",
    [
        check_fully_shard,
        check_group_is_needed,
        check_data_parallel,
        check_rows_that_differ,
        check_overflow_in_one_process,
        check_a_function,
        check_label_parallel,
    ],
)
def test(processes: Processes, check: Any) -> None:
    processes(check)
