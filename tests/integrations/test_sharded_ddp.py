"""DistributedDataParallel passes batches with sparse labels on, and averages over equal shares."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from weighted_bce import LinearWeightedBCEWithLogitsLoss, collate

from ..processes import Processes
from .linear_models import LinearModel, assert_same_weights, sgd, train_truly
from .trainers import FEATURES, LABELS, samples

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")


def batches(processes: int) -> Any:
    """Interleaved rows: in a step all processes have the rows of one large batch."""
    data: Any = samples()[:20]
    sampler = DistributedSampler(data, shuffle=False)
    return DataLoader(data, batch_size=4 // processes, sampler=sampler, collate_fn=collate)


def logits_model(processes: int) -> None:
    model = LinearModel()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = sgd(model)
    for x, labels in batches(processes):
        optimizer.zero_grad()
        parallel(x, labels=labels)["loss"].backward()
        optimizer.step()
    assert_same_weights(model, train_truly(4, rows=20)[0])


def linear_loss(processes: int) -> None:
    """A layer with its loss, in the wrapped module and without another one around it."""
    torch.manual_seed(0)
    layer = LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, reduction="batchmean").double()
    parallel = nn.parallel.DistributedDataParallel(layer)
    for x, labels in batches(processes):
        parallel(x.double(), labels).backward()
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for begin in range(0, 20, 4):
        x, labels = collate(samples()[begin : begin + 4])
        layer(x.double(), labels).backward()
    wanted = [p.grad for p in layer.parameters()]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("check", [logits_model, linear_loss], ids=lambda check: check.__name__)
def test_in_processes(processes: Processes, check: Any) -> None:
    processes(check)
