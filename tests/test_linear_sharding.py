"""A classifier split over processes, by labels or rows: its loss as on one, and what is sent."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from weighted_bce import FusedSGD, SparseLabels, linear_weighted_bce_with_logits
from weighted_bce._extension import extension

from .processes import Processes, mesh_of

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]

ROWS, FEATURES, LABELS = 7, 5, 13  # neither rows nor labels are a multiple of the processes


def layouts(processes: int) -> Iterator[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
    """Device meshes, and how the input and the weight lie on them."""
    from torch.distributed.tensor import Replicate, Shard

    line, split, whole = mesh_of(processes), Shard(0), Replicate()
    yield line, (whole,), (split,)
    yield line, (split,), (whole,)
    yield line, (whole,), (whole,)
    if processes == 4:
        yield mesh_of(2, 2), (split, whole), (whole, split)


def parts(tensor: Tensor, mesh: Any, placements: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None)


def of_logits(x: Any, weight: Any, dim: int) -> list[Any]:
    """How what belongs to the logits lies, if its last dimensions are theirs from `dim` on."""
    from torch.distributed.tensor import Replicate, Shard

    found = []
    for of_input, of_weight in zip(x, weight, strict=True):
        own = 1 if of_weight == Shard(0) else 0 if of_input == Shard(0) else -1
        found.append(Shard(own - dim) if own >= dim else Replicate())
    return found


def layer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=generator)
    weight = torch.randn(LABELS, FEATURES, generator=generator)
    bias = torch.randn(LABELS, generator=generator)
    return x, weight, bias, torch.rand(ROWS, LABELS, generator=generator) < 0.3


def assert_whole(sharded: Any, expected: Tensor) -> None:
    torch.testing.assert_close(sharded.full_tensor(), expected)


def check_losses(processes: int) -> None:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.debug import CommDebugMode

    x, weight, bias, target = layer()
    per_label = torch.rand(LABELS) * 5
    listed = SparseLabels.from_dense(target)
    for mesh, of_input, of_weight in layouts(processes):
        for sparse in (True, False):
            for reduction in ("mean", "sum", "batchmean")[: 3 if sparse else 1]:
                split = [parts(x, mesh, of_input), parts(weight, mesh, of_weight)]
                split.append(parts(bias, mesh, of_weight))
                leaves = [t.requires_grad_() for t in split]
                plain = [t.clone().requires_grad_() for t in (x, weight, bias)]
                own_target = parts(target, mesh, of_logits(of_input, of_weight, 0))
                own_factor = parts(per_label, mesh, of_logits(of_input, of_weight, 1))
                options = {"reduction": reduction, "label_smoothing": 0.1, "chunk_labels": 4}
                for upstream in (1.0, 2.5):
                    with CommDebugMode() as talk:
                        loss: Any = linear_weighted_bce_with_logits(
                            leaves[0],
                            leaves[1],
                            listed if sparse else own_target,
                            linear_bias=leaves[2],
                            pos_weight=own_factor,
                            **options,
                        )
                    assert talk.get_total_counts() == 0, (of_input, of_weight)
                    wanted = linear_weighted_bce_with_logits(
                        *plain[:2], target, linear_bias=plain[2], pos_weight=per_label, **options
                    )
                    assert_whole(loss, wanted)
                    with CommDebugMode() as talk:
                        grads = torch.autograd.grad(loss * upstream, leaves)
                    assert talk.get_total_counts() == 0, (of_input, of_weight)
                    wanted_grads = torch.autograd.grad(wanted * upstream, plain)
                    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
                        assert_whole(grad, wanted_grad)
                    if Shard(0) in of_weight:  # each process has those of its own labels
                        assert grads[1].placements == leaves[1].placements or Shard(0) in of_input


def check_input_that_is_yet_to_be_summed(processes: int) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    x, weight, _, target = layer()
    mesh = mesh_of(processes)
    some = DTensor.from_local(x / processes, mesh, [Partial()], run_check=False)
    listed = SparseLabels.from_dense(target)
    loss: Any = linear_weighted_bce_with_logits(some, parts(weight, mesh, [Shard(0)]), listed)
    assert_whole(loss, linear_weighted_bce_with_logits(x, weight, target))
    whole = SparseLabels(*(parts(t, mesh, [Replicate()]) for t in listed))
    loss = linear_weighted_bce_with_logits(some, parts(weight, mesh, [Shard(0)]), whole)
    assert_whole(loss, linear_weighted_bce_with_logits(x, weight, target))


def check_fused_step(processes: int) -> None:
    """Each process updates its own rows."""
    from torch.distributed.tensor import Replicate, Shard

    x, weight, bias, target = layer()
    mesh, listed = mesh_of(processes), SparseLabels.from_dense(target)
    own = [torch.nn.Parameter(parts(t, mesh, [Shard(0)])) for t in (weight, bias)]
    plain = [torch.nn.Parameter(t.clone()) for t in (weight, bias)]
    step = FusedSGD(own, lr=1.0, momentum=0.9)
    optimizer = torch.optim.SGD(plain, lr=1.0, momentum=0.9)
    options: dict[str, Any] = {"linear_bias": own[1], "fused_step": step, "chunk_labels": 2}
    for _ in range(3):
        whole = parts(x, mesh, [Replicate()])
        linear_weighted_bce_with_logits(whole, own[0], listed, **options).backward()
        optimizer.zero_grad()
        linear_weighted_bce_with_logits(x, plain[0], target, linear_bias=plain[1]).backward()
        optimizer.step()
    for actual, wanted in zip(own, plain, strict=True):
        assert_whole(actual.detach(), wanted.detach())
    rows, everywhere = parts(x, mesh, [Shard(0)]), parts(weight, mesh, [Replicate()])
    with pytest.raises(NotImplementedError, match="input must not be split over processes"):
        linear_weighted_bce_with_logits(rows, everywhere, listed, fused_step=step)


def check_derivatives_that_need_all_logits(processes: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, weight, _, target = layer()
    mesh = mesh_of(processes)
    listed = SparseLabels.from_dense(target)
    split = parts(x, mesh, [Replicate()]), parts(weight, mesh, [Shard(0)])
    factor = parts(torch.ones(LABELS), mesh, [Replicate()]).requires_grad_()
    loss: Any = linear_weighted_bce_with_logits(*split, listed, pos_weight=factor)
    assert_whole(loss.detach(), linear_weighted_bce_with_logits(x, weight, target))


def check_errors(processes: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, weight, bias, target = layer()
    listed = SparseLabels.from_dense(target)
    mesh = mesh_of(processes)
    split = parts(x, mesh, [Replicate()]), parts(weight, mesh, [Shard(0)])
    loss = linear_weighted_bce_with_logits
    with pytest.raises(TypeError, match="input must be a DTensor like the others, got Tensor"):
        loss(x, split[1], listed)
    with pytest.raises(TypeError, match="linear_weight must be a DTensor like the others"):
        loss(split[0], weight, listed)
    with pytest.raises(TypeError, match="linear_bias must be a DTensor like the others"):
        loss(*split, listed, linear_bias=bias)
    with pytest.raises(TypeError, match="target must be a DTensor like input, got Tensor"):
        loss(*split, target)
    with pytest.raises(TypeError, match="pos_weight must be a DTensor like input, got Tensor"):
        loss(*split, listed, pos_weight=torch.ones(LABELS))
    for of_input, of_weight in (
        (Shard(0), Shard(0)),
        (Shard(1), Shard(1)),
        (Replicate(), Shard(1)),
    ):
        wrong = parts(x, mesh, [of_input]), parts(weight, mesh, [of_weight])
        with pytest.raises(ValueError, match="must each be replicated or, one of them, Shard"):
            loss(*wrong, listed)
    with pytest.raises(ValueError, match="linear_weight must be on DeviceMesh"):
        loss(split[0], parts(weight, mesh_of(processes, 1), [Shard(0), Replicate()]), listed)
    too_large = SparseLabels(listed.crow_indices, listed.col_indices + 1)
    with pytest.raises(ValueError, match="must be below 13"):
        loss(*split, too_large)


@pytest.mark.parametrize(
    "check",
    [
        check_losses,
        check_input_that_is_yet_to_be_summed,
        check_fused_step,
        check_derivatives_that_need_all_logits,
        check_errors,
    ],
)
def test(processes: Processes, check: Any) -> None:
    processes(check)
