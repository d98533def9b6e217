"""DTensors: sharded logits give the loss and gradient of one process, without communication."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from weighted_bce import backend, weighted_bce_with_logits
from weighted_bce._dtensor_import import import_rules_for_dtensors
from weighted_bce._extension import extension
from weighted_bce._options import BATCHMEAN, MEAN, SUM

from .processes import Processes, mesh_of

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed"),
]

OPTIONS: tuple[dict[str, Any], ...] = (
    {"pos_weight": 7.0},
    {"pos_weight": "per label", "weight": "per row"},
    {"weight": "per label", "reduction": "sum", "label_smoothing": 0.1},
    {"weight": "full", "reduction": "batchmean"},
    {"pos_weight": "per label", "reduction": "none"},
    {"ignore_index": -1, "pos_weight": 3.0},
    {"ignore_index": -1, "reduction": "none"},
)


def layouts(processes: int) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Device meshes and how the logits lie on them: over rows, labels, both, and whole."""
    from torch.distributed.tensor import Replicate, Shard

    line = mesh_of(processes)
    yield from ((line, (placement,)) for placement in (Shard(0), Shard(1), Replicate()))
    if processes == 4:
        square = mesh_of(2, 2)
        yield square, (Shard(0), Shard(1))
        yield square, (Shard(1), Replicate())
        yield square, (Shard(1), Shard(1))


def distributed(tensor: Tensor, mesh: Any, placements: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mesh, placements)


def beside(factor: Tensor, logits: Any) -> Any:
    """A factor, distributed as the logits that it belongs to."""
    from torch.distributed.tensor import Replicate, Shard

    missing, own = logits.dim() - factor.dim(), []
    for p in logits.placements:
        dim = p.dim - missing if isinstance(p, Shard) else -1
        own.append(Shard(dim) if dim >= 0 and factor.shape[dim] > 1 else Replicate())
    return distributed(factor, logits.device_mesh, own)


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_whole(sharded: Any, expected: Tensor) -> None:
    torch.testing.assert_close(sharded.full_tensor(), expected)


def example(rows: int = 7) -> tuple[Tensor, Tensor]:
    """Neither rows nor labels are a multiple of the processes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 13, generator=generator) * 4
    y = torch.randint(-1, 2, (rows, 13), generator=generator)
    return x, y


def each_placed() -> Iterator[tuple[Any, Any, Tensor, Tensor]]:
    """Logits and labels, in parts and whole."""
    x, y = example()
    for mesh, placements in layouts(dist.get_world_size()):
        x_parts = distributed(x, mesh, placements)
        yield x_parts, distributed(y.clamp(min=0), mesh, placements), x, y.clamp(min=0)


def check_losses(processes: int) -> None:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.debug import CommDebugMode

    for rows in (7, processes - 1):
        x, y = example(rows)
        shapes = {"per label": (13,), "per row": (rows, 1), "full": (rows, 13)}
        factors = {name: torch.rand(shape) + 0.5 for name, shape in shapes.items()}
        for mesh, placements in layouts(processes):
            for given in OPTIONS if rows == 7 else OPTIONS[::4]:
                target = y if "ignore_index" in given else y.clamp(min=0)
                plain = {k: factors.get(v, v) for k, v in given.items()}
                logits = distributed(x, mesh, placements).requires_grad_()
                labels = distributed(target, mesh, placements)
                parts = {
                    k: beside(v, logits) if isinstance(v, Tensor) else v for k, v in plain.items()
                }
                with CommDebugMode() as talk:
                    loss = weighted_bce_with_logits(logits, labels, **parts)
                counted = "ignore_index" in given and given.get("reduction") != "none"
                # The count of all shards is one number, which all need.
                most = sum(isinstance(p, Shard) for p in placements) if counted else 0
                assert talk.get_total_counts() <= most, (placements, given, talk.get_comm_counts())
                leaf = x.clone().requires_grad_()
                expected = weighted_bce_with_logits(leaf, target, **plain)
                assert_whole(loss, expected)
                with CommDebugMode() as talk:
                    (grad,) = torch.autograd.grad(loss.sum() * 2.5, logits)
                assert talk.get_total_counts() == 0, (placements, given)
                assert grad.placements == logits.placements
                (expected_grad,) = torch.autograd.grad(expected.sum() * 2.5, leaf)
                assert_whole(grad, expected_grad)


def check_ops(processes: int) -> None:
    """Called directly, one reduction after the other, those that write to arguments as well."""
    from torch.distributed.tensor import DTensor, Replicate

    ops = torch.ops.weighted_bce
    assert import_rules_for_dtensors()  # what the functions do first
    for logits, labels, x, y in each_placed():
        mesh = logits.device_mesh
        upstream = torch.tensor(2.5)
        rest = None, None, None, 7.0, 0.1, 1.0, None
        for reduction in (SUM, MEAN, BATCHMEAN):
            arguments = *rest, reduction
            assert_whole(ops.loss(logits, labels, *arguments), ops.loss(x, y, *arguments))
            expected = ops.grad(upstream, x, y, *arguments)
            number = DTensor.from_local(upstream, mesh, [Replicate()] * mesh.ndim)
            assert_whole(ops.grad(number, logits, labels, *arguments), expected)
            changed = logits.clone()
            assert ops.grad_(number, changed, labels, *arguments) is None
            assert_whole(changed, expected)
            if reduction != SUM:
                with pytest.raises(NotImplementedError, match="takes reduction 2"):
                    ops.loss_and_grad(number, logits, labels, *arguments)
                with pytest.raises(NotImplementedError, match="takes reduction 2"):
                    ops.update_grad_(number, number, number, logits, logits, labels, *arguments)
        for way in (lambda t: t.t(), lambda t: t[:1].expand(7, 13)):
            unusual = ops.unreduced(way(logits), way(labels), *rest)
            plain = ops.unreduced(way(x), way(y), *rest)
            assert_whole(unusual, plain)
            assert unusual.stride() == plain.stride()
        assert_whole(ops.unreduced(logits, labels, *rest), ops.unreduced(x, y, *rest))

        one = torch.ones(())
        parts = ops.loss_and_grad(one, logits, labels, *rest, SUM)
        together = ops.loss_and_grad(one, x, y, *rest, SUM)
        for found, wanted in zip(parts, together, strict=True):
            assert_whole(found, wanted)
        _, grad, used = parts
        ops.update_grad_(upstream, used, one, grad, logits, labels, *rest, SUM)
        assert (used.full_tensor(), one) == (upstream, upstream)
        assert_whole(grad, ops.grad(upstream, x, y, *rest, SUM))


def check_upstream_gradients(processes: int) -> None:
    """Loss scales, partial and whole losses, and what is not linear in them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    def replicated(loss: Any) -> Any:
        if not isinstance(loss, DTensor):
            return loss
        return loss.redistribute(placements=[Replicate()] * loss.device_mesh.ndim)

    ways: tuple[Callable[[Any], Any], ...] = (
        lambda loss: (loss * 1024).backward(),
        lambda loss: (whole(loss) / 3).backward(),
        lambda loss: (replicated(loss) * 3).backward(),
        lambda loss: (loss * loss).backward(),
        lambda loss: (loss.log() + 1).backward(),
        lambda loss: (loss.backward(retain_graph=True), (loss * 2).backward()),
    )
    for logits, labels, x, y in each_placed():
        for options in ({}, {"reduction": "batchmean"}, {"ignore_index": 1}):
            for way in ways:
                leaf, one = logits.detach().requires_grad_(), x.clone().requires_grad_()
                way(weighted_bce_with_logits(leaf, labels, **options))
                way(weighted_bce_with_logits(one, y, **options))
                assert_whole(leaf.grad, one.grad)
                assert leaf.grad.placements == leaf.placements
        mesh = logits.device_mesh
        leaf, one = logits.detach().requires_grad_(), x.clone().requires_grad_()
        share = DTensor.from_local(torch.tensor(1.5), mesh, [Partial()] * mesh.ndim)
        weighted_bce_with_logits(leaf, labels).backward(share)
        weighted_bce_with_logits(one, y).backward(torch.tensor(1.5 * processes))
        assert_whole(leaf.grad, one.grad)


def check_derivatives(processes: int) -> None:
    for logits, labels, x, y in each_placed():
        for reduction in ("mean", "none"):

            def loss(x: Any, y: Any, r: str = reduction) -> Any:
                return weighted_bce_with_logits(x, y, pos_weight=7.0, reduction=r).sum()

            ends = []
            for leaf, target in ((logits, labels), (x, y)):
                leaf = leaf.detach().requires_grad_()
                (grad,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
                (grad * grad).sum().backward()
                ends.append(leaf.grad)
            assert_whole(ends[0], ends[1])
            assert_whole(torch.func.grad(loss)(logits, labels), torch.func.grad(loss)(x, y))
            assert_whole(torch.func.vmap(loss)(logits, labels), torch.func.vmap(loss)(x, y))


def check_backward_is_not_in_place(processes: int) -> None:
    """Nobody who saved a shard could be told."""
    for logits, labels, x, y in each_placed():
        for reduction in ("mean", "none"):
            leaf, one = logits.detach().requires_grad_(), x.clone().requires_grad_()
            hidden = leaf.exp()  # saves its result
            loss = weighted_bce_with_logits(hidden, labels, None, 7.0, reduction)
            other = weighted_bce_with_logits(
                leaf.exp(), labels, None, 7.0, reduction, inplace_backward=True
            )
            (loss.sum() + other.sum()).backward()
            weighted_bce_with_logits(one.exp(), y, None, 7.0, reduction).sum().mul(2).backward()
            assert_whole(leaf.grad, one.grad)
            assert_whole(hidden.detach(), x.exp())


def check_other_placements(processes: int) -> None:
    """Partial logits are added first; a target that lies otherwise comes to them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    for logits, labels, x, y in each_placed():
        mesh = logits.device_mesh
        partial = DTensor.from_local(x / processes, mesh, [Partial()] * mesh.ndim)
        along_rows = distributed(y, mesh, [Shard(0)] + [Replicate()] * (mesh.ndim - 1))
        for given, target in ((partial, labels), (logits, along_rows)):
            leaf, one = given.detach().requires_grad_(), x.clone().requires_grad_()
            loss, expected = (
                weighted_bce_with_logits(a, b, pos_weight=torch.tensor(7.0))  # whole: 0-d
                for a, b in ((leaf, target), (one, y))
            )
            assert_whole(loss, expected)
            loss.backward()
            expected.backward()
            assert_whole(leaf.grad, one.grad)


def check_gradients_of_factors(processes: int) -> None:
    """Of the factors alone; torch has no rule for what that of the logits needs beside them."""
    for logits, labels, x, y in each_placed():
        for name in ("weight", "pos_weight"):
            for options in ({}, {"ignore_index": 1}):
                one = torch.linspace(0.5, 3, 13, requires_grad=True)
                factor = beside(one.detach(), logits).requires_grad_()
                weighted_bce_with_logits(logits, labels, **{name: factor}, **options).backward()
                weighted_bce_with_logits(x, y, **{name: one}, **options).backward()
                assert_whole(factor.grad, one.grad)


def check_errors(processes: int) -> None:
    """What torch's DTensors cannot do, nor can the loss; it says so."""
    from torch.autograd import forward_ad
    from torch.distributed.tensor import Replicate

    logits, labels, x, y = next(each_placed())
    with pytest.raises(TypeError, match="target must be a DTensor like input, got Tensor"):
        weighted_bce_with_logits(logits, y)
    with pytest.raises(TypeError, match="pos_weight must be a DTensor like input, got Tensor"):
        weighted_bce_with_logits(logits, labels, pos_weight=torch.ones(13))
    with pytest.raises(TypeError, match="input must be a DTensor like the others, got Tensor"):
        weighted_bce_with_logits(x, labels)
    with pytest.raises(TypeError, match="target must be a DTensor like input, got"):
        torch.func.grad(weighted_bce_with_logits)(logits, y)
    elsewhere = distributed(y, mesh_of(processes, 1), [Replicate()] * 2)
    with pytest.raises(ValueError, match="target must be on DeviceMesh"):
        weighted_bce_with_logits(logits, elsewhere)
    factor = distributed(torch.ones(13), logits.device_mesh, [Replicate()]).requires_grad_()
    for name in ("weight", "pos_weight"):
        leaf = logits.detach().requires_grad_()
        loss = weighted_bce_with_logits(leaf, labels, **{name: factor})
        with pytest.raises(NotImplementedError, match="does not have a sharding strategy"):
            loss.backward()
    with backend("reference"):
        loss = weighted_bce_with_logits(leaf, labels)
    torch.testing.assert_close(whole(loss.detach()), weighted_bce_with_logits(x, y))
    with pytest.raises(NotImplementedError, match="does not have a sharding strategy"):
        loss.backward()
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="does not have a sharding strategy"),
    ):
        weighted_bce_with_logits(forward_ad.make_dual(logits, logits), labels)


@pytest.mark.parametrize(
    "check",
    [
        check_losses,
        check_ops,
        check_upstream_gradients,
        check_derivatives,
        check_backward_is_not_in_place,
        check_other_placements,
        check_gradients_of_factors,
        check_errors,
    ],
)
def test(processes: Processes, check: Any) -> None:
    processes(check)
