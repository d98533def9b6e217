"""A classifier split over processes, by labels or rows: its loss as on one, and what is sent."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from weighted_bce import FusedSGD, SparseLabels
from weighted_bce._extension import extension

from .linear_cases import REDUCTIONS, ROWS, LinearCase, assert_grads, assert_loss, base
from .processes import Processes, mesh_of
from .shards import assert_whole, distributed

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]

LABELS = 13  # neither labels nor rows, of which there are 7, are a multiple of the processes


def example(**options: Any) -> tuple[LinearCase, SparseLabels]:
    """Returns the same case in each process, and its target as sparse labels."""
    torch.manual_seed(0)
    case = base(labels=LABELS, **{"chunk_labels": 4, **options})
    case.target[0, -1] = True
    return case, SparseLabels.from_dense(case.target)


def layouts(processes: int) -> Iterator[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
    """Yields device meshes, and how the input and the weight are placed on them."""
    from torch.distributed.tensor import Replicate, Shard

    line, split, whole = mesh_of(processes), Shard(0), Replicate()
    yield line, (whole,), (split,)
    yield line, (split,), (whole,)
    yield line, (whole,), (whole,)
    if processes == 4:
        yield mesh_of(2, 2), (split, whole), (whole, split)


def leaves_of(case: LinearCase, mesh: Any, of_input: Any, of_weight: Any) -> list[Any]:
    placements = of_input, of_weight, of_weight
    layer = zip(case.layer, placements[: len(case.layer)], strict=True)
    return [distributed(t.detach(), mesh, place).requires_grad_() for t, place in layer]


def split_by_labels(case: LinearCase, processes: int) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard

    return leaves_of(case, mesh_of(processes), [Replicate()], [Shard(0)])


def of_logits(of_input: Any, of_weight: Any, dim: int) -> list[Any]:
    """Returns the placements of a tensor whose dimensions are those of the logits from `dim` on."""
    from torch.distributed.tensor import Replicate, Shard

    placements = []
    for row, label in zip(of_input, of_weight, strict=True):
        own = 1 if label == Shard(0) else 0 if row == Shard(0) else -1
        placements.append(Shard(own - dim) if own >= dim else Replicate())
    return placements


def check_losses(processes: int) -> None:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.debug import CommDebugMode

    case, csr = example(label_smoothing=0.1)
    per_label = torch.rand(LABELS) * 5
    for mesh, of_input, of_weight in layouts(processes):
        dense = distributed(case.target, mesh, of_logits(of_input, of_weight, 0))
        pos_weight = distributed(per_label, mesh, of_logits(of_input, of_weight, 1))
        calls = [(csr, reduction) for reduction in REDUCTIONS]
        for target, reduction in (*calls, (dense, "mean")):
            leaves = leaves_of(case, mesh, of_input, of_weight)
            options = {"target": target, "pos_weight": pos_weight, "reduction": reduction}
            whole = case.with_options(pos_weight=per_label, reduction=reduction)
            for grad_output in (1.0, 2.5):
                with CommDebugMode() as talk:
                    loss: Any = case(*leaves, **options)
                    grads = torch.autograd.grad((loss * grad_output).sum(), leaves)
                assert talk.get_total_counts() == 0, (of_input, of_weight)
                assert_loss(loss.full_tensor(), whole)
                assert_grads([grad.full_tensor() for grad in grads], whole, grad_output)
                if Shard(0) in of_weight:  # each process has those of its own labels
                    assert grads[1].placements == leaves[1].placements or Shard(0) in of_input


def check_losses_of_rows(processes: int) -> None:
    """Each row has its own grad_output."""
    case, csr = example(reduction="none")
    grad_output = torch.linspace(-2, 3, ROWS)
    for mesh, of_input, of_weight in layouts(processes):
        leaves = leaves_of(case, mesh, of_input, of_weight)
        loss: Any = case(*leaves, target=csr)
        assert_loss(loss.full_tensor(), case)
        factor = distributed(grad_output, mesh, of_input)
        grads: Any = torch.autograd.grad((loss * factor).sum(), leaves)
        assert_grads([grad.full_tensor() for grad in grads], case, grad_output)


def check_ignored(processes: int) -> None:
    """One exchange between processes counts the targets."""
    for ignore_index, reduction in product((0, math.nan), REDUCTIONS):
        case, csr = example(ignore_index=ignore_index, reduction=reduction)
        target = case.target.float().masked_fill(torch.rand(ROWS, LABELS) < 0.3, ignore_index)
        case = replace(case, target=target)
        for mesh, of_input, of_weight in layouts(processes):
            leaves = leaves_of(case, mesh, of_input, of_weight)
            dense = distributed(target, mesh, of_logits(of_input, of_weight, 0))
            loss: Any = case(*leaves, target=dense)
            assert_loss(loss.full_tensor(), case)
            grads: Any = torch.autograd.grad(loss.sum(), leaves)
            assert_grads([grad.full_tensor() for grad in grads], case)
            hard, _ = example(ignore_index=ignore_index, reduction=reduction)
            assert_loss(hard(*leaves, target=csr).full_tensor(), hard)


def check_more_dimensions(processes: int) -> None:
    """The first dimension of the input is split, as long as each process gets as much of it."""
    for reduction in REDUCTIONS:
        case, csr = example(rows=12, reduction=reduction)
        per_position = torch.rand(4, 3, 1)
        x, target = case.input.reshape(4, 3, -1), case.target.reshape(4, 3, -1)
        case = replace(case, input=x, target=target).with_options(pos_weight=per_position)
        for mesh, of_input, of_weight in layouts(processes):
            leaves = leaves_of(case, mesh, of_input, of_weight)
            dense = distributed(target, mesh, of_input)
            pos_weight = distributed(per_position, mesh, of_input)
            for given in (csr, dense):
                loss: Any = case(*leaves, target=given, pos_weight=pos_weight)
                assert loss.shape == (x.shape[:2] if reduction == "none" else ())
                assert_loss(loss.full_tensor(), case)
                grads: Any = torch.autograd.grad(loss.sum(), leaves)
                assert_grads([grad.full_tensor() for grad in grads], case)


def check_fused_step(processes: int) -> None:
    """Each process updates its own rows."""
    from torch.distributed.tensor import Replicate, Shard

    case, csr = example(chunk_labels=2)
    x, *layer = split_by_labels(case, processes)
    own = [torch.nn.Parameter(t.detach()) for t in layer]
    plain = [torch.nn.Parameter(t.clone()) for t in case.layer[1:]]
    step = FusedSGD(own, lr=1.0, momentum=0.9, group=None)
    optimizer = torch.optim.SGD(plain, lr=1.0, momentum=0.9)
    for _ in range(3):
        case(x, *own, target=csr, fused_step=step).backward()
        step.step()
        step.zero_grad()
        optimizer.zero_grad()
        case(case.input, *plain).backward()
        optimizer.step()
    for actual, wanted in zip(own, plain, strict=True):
        assert_whole(actual.detach(), wanted)
    by_rows = leaves_of(case, x.device_mesh, [Shard(0)], [Replicate()])
    step = FusedSGD(by_rows[1:], lr=1.0, group=None)
    with pytest.raises(NotImplementedError, match="input must not have its rows split"):
        case(*by_rows, target=csr, fused_step=step)


def check_other_calls(processes: int) -> None:
    """An input that is yet to be summed, and a derivative for which all logits are needed."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    case, csr = example()
    x, weight, bias = split_by_labels(case, processes)
    mesh = x.device_mesh
    share = DTensor.from_local(case.input / processes, mesh, [Partial()], run_check=False)
    pos_weight = distributed(torch.ones(LABELS), mesh, [Replicate()]).requires_grad_()
    for input, options in ((share, {}), (x, {"pos_weight": pos_weight})):
        assert_whole(case(input, weight, bias, target=csr, **options), case())


def check_errors(processes: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    case, csr = example()
    bias, case.linear_bias = case.linear_bias, None
    mesh = mesh_of(processes)
    x, weight = split_by_labels(case, processes)
    on_other_mesh = distributed(
        weight.full_tensor().detach(), mesh_of(processes, 1), [Shard(0), Replicate()]
    )
    too_large = SparseLabels(csr.crow_indices, csr.col_indices + 1)
    wrong_placements = [
        leaves_of(case, mesh, [of_input], [of_weight])
        for of_input in (Shard(0), Shard(1), Replicate())
        for of_weight in (Shard(0), Shard(1), Replicate())
        if Shard(1) in (of_input, of_weight) or of_input == of_weight == Shard(0)
    ]
    for layer, options, error, words in (
        ((case.input, weight), {}, TypeError, "input must be a DTensor like the others, got Ten"),
        ((x, case.linear_weight), {}, TypeError, "linear_weight must be a DTensor like the othe"),
        ((x, weight, bias), {}, TypeError, "linear_bias must be a DTensor like the others"),
        ((x, weight), {"target": case.target}, TypeError, "target must be a DTensor like input"),
        ((x, weight), {"pos_weight": torch.ones(LABELS)}, TypeError, "pos_weight must be a DTens"),
        *((wrong, {}, ValueError, "must each be replicated") for wrong in wrong_placements),
        ((x, on_other_mesh), {}, ValueError, "linear_weight must be on DeviceMesh"),
        ((x, weight), {"target": too_large}, ValueError, "must be below 13"),
    ):
        with pytest.raises(error, match=words):
            case(*layer, **{"target": csr, **options})


@pytest.mark.parametrize(
    "check",
    [
        check_losses,
        check_losses_of_rows,
        check_ignored,
        check_more_dimensions,
        check_fused_step,
        check_other_calls,
        check_errors,
    ],
)
def test(processes: Processes, check: Any) -> None:
    processes(check)
