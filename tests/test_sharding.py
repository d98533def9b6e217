"""DTensors: sharded logits give the loss and gradient of one process, without communication."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from weighted_bce import SparseLabels, backend, weighted_bce_with_logits
from weighted_bce._extension import extension

from .processes import Processes, mesh_of
from .shards import assert_whole, distributed, distributed_like, flattens, layouts, whole
from .truth import as_given

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
    {"ignore_index": 1, "pos_weight": 3.0, "label_smoothing": 0.2},
    {"ignore_index": 0, "reduction": "none"},
    {"ignore_index": -1, "reduction": "mean"},
    {"normalizer": 5, "ignore_index": 0},
)


def example(rows: int = 7) -> tuple[Tensor, Tensor]:
    """Neither rows nor labels are a multiple of the processes; a row has no positives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, LABELS, generator=generator) * 4
    y = torch.randint(-1, 2, (rows, LABELS), generator=generator)
    y[0] = 0
    return x, y


def each_placed(rows: int = 7) -> Iterator[tuple[Any, Any, Tensor, Any]]:
    """Logits and targets, in parts and whole; sparse labels are whole in each process."""
    x, y = example(rows)
    y = y.clamp(min=0)
    for mesh, placements in layouts(dist.get_world_size()):
        for target in (y, as_given(y, torch.int64)):
            parts = distributed(y, mesh, placements) if target is y else target
            leaf = distributed(x, mesh, placements).requires_grad_()
            yield leaf, parts, x.clone().requires_grad_(), target


def gradient(loss: Any, leaf: Any) -> Any:
    return torch.autograd.grad(loss, leaf)[0]


def check_losses(processes: int) -> None:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.debug import CommDebugMode

    for rows in (7, processes - 1):
        shapes = {"per label": (LABELS,), "per row": (rows, 1), "full": (rows, LABELS)}
        factors = {name: torch.rand(shape) + 0.5 for name, shape in shapes.items()}
        for logits, labels, x, y in each_placed(rows):
            for given in OPTIONS if rows == 7 else OPTIONS[::4]:
                plain = {k: factors.get(v, v) for k, v in given.items()}
                parts = {
                    k: distributed_like(v, logits) if isinstance(v, Tensor) else v
                    for k, v in plain.items()
                }
                if given.get("ignore_index") == -1 and isinstance(y, Tensor):
                    y = example(rows)[1]
                    labels = distributed(y, logits.device_mesh, logits.placements)
                with CommDebugMode() as talk:
                    loss = weighted_bce_with_logits(logits, labels, **parts)
                counted = "ignore_index" in given and given.get("reduction") != "none"
                # The count of all shards of a dense target is one number, which all need.
                split = sum(isinstance(p, Shard) for p in logits.placements)
                most = split if counted and isinstance(y, Tensor) else 0
                sent = talk.get_total_counts()
                assert sent <= most, (logits.placements, given, talk.get_comm_counts())
                expected = weighted_bce_with_logits(x, y, **plain)
                assert_whole(loss, expected)
                with CommDebugMode() as talk:
                    grad = gradient(loss.sum() * 2.5, logits)
                assert talk.get_total_counts() == 0, (logits.placements, given)
                assert grad.placements == logits.placements
                assert_whole(grad, gradient(expected.sum() * 2.5, x))
            # The unreduced loss has the strides of that of whole logits.
            for way in (lambda t: t.t(), lambda t: t[:1].expand(7, LABELS)):
                if isinstance(y, Tensor) and rows == 7:
                    pairs = ((logits, labels), (x, y))
                    actual, expected = (
                        weighted_bce_with_logits(way(a), way(b).clamp(min=0), reduction="none")
                        for a, b in pairs
                    )
                    assert_whole(actual, expected)
                    assert actual.stride() == expected.stride()


def check_grad_outputs(processes: int) -> None:
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
                logits.grad = x.grad = None
                way(weighted_bce_with_logits(logits, labels, **options))
                way(weighted_bce_with_logits(x, y, **options))
                assert_whole(logits.grad, x.grad)
                assert logits.grad.placements == logits.placements
        mesh = logits.device_mesh
        logits.grad = x.grad = None
        share = DTensor.from_local(torch.tensor(1.5), mesh, [Partial()] * mesh.ndim)
        weighted_bce_with_logits(logits, labels).backward(share)
        weighted_bce_with_logits(x, y).backward(torch.tensor(1.5 * processes))
        assert_whole(logits.grad, x.grad)


def check_derivatives(processes: int) -> None:
    """The second order, and those under torch.func."""
    for logits, labels, x, y in each_placed():
        for reduction in ("mean", "none"):

            def loss(x: Any, y: Any, r: str = reduction) -> Any:
                return weighted_bce_with_logits(x, y, pos_weight=7.0, reduction=r).sum()

            ends = []
            for leaf, target in ((logits, labels), (x, y)):
                (slope,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
                ends.append(gradient(whole((slope * slope).sum()), leaf))
            assert_whole(*ends)
            plain, parts = x.detach(), logits.detach()
            assert_whole(torch.func.grad(loss)(parts, labels), torch.func.grad(loss)(plain, y))
            if isinstance(y, Tensor):
                assert_whole(torch.func.vmap(loss)(parts, labels), torch.func.vmap(loss)(plain, y))
                continue
            many, stacked = (torch.stack([t, t * 2, -t]) for t in (plain, parts))
            mapped = torch.func.vmap(loss, (0, None))
            if flattens(stacked):
                assert_whole(mapped(stacked, labels), mapped(many, y))
            else:
                with pytest.raises(RuntimeError, match=r"flatten|view"):
                    mapped(stacked, labels)


def check_backward_is_not_in_place(processes: int) -> None:
    """Autograd could not tell what else saved a shard that it has changed."""
    for logits, labels, x, y in each_placed():
        for reduction in ("mean", "none"):
            logits.grad = x.grad = None
            hidden = logits.exp()  # saves its result
            loss = weighted_bce_with_logits(hidden, labels, None, 7.0, reduction)
            other = weighted_bce_with_logits(
                logits.exp(), labels, None, 7.0, reduction, inplace_backward=True
            )
            (loss.sum() + other.sum()).backward()
            weighted_bce_with_logits(x.exp(), y, None, 7.0, reduction).sum().mul(2).backward()
            assert_whole(logits.grad, x.grad)
            assert_whole(hidden.detach(), x.detach().exp())


def check_other_placements(processes: int) -> None:
    """Partial logits are added first; a target that lies otherwise comes to them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    for logits, labels, x, y in each_placed():
        mesh = logits.device_mesh
        copies, rows = [Replicate()] * mesh.ndim, [Shard(0)] + [Replicate()] * (mesh.ndim - 1)
        partial = DTensor.from_local(x.detach() / processes, mesh, [Partial()] * mesh.ndim)
        if isinstance(y, Tensor):
            others = [distributed(y, mesh, rows)]
        else:
            crow, col = (distributed(t, mesh, copies) for t in y)
            others = [SparseLabels(crow, col), SparseLabels(crow, distributed(y[1], mesh, rows))]
        for given, target in ((partial, labels), *((logits, other) for other in others)):
            leaf = given.detach().requires_grad_()
            loss, expected = (
                weighted_bce_with_logits(a, b, pos_weight=torch.tensor(7.0))  # whole: 0-d
                for a, b in ((leaf, target), (x, y))
            )
            assert_whole(loss, expected)
            assert_whole(gradient(loss, leaf), gradient(expected, x))


def check_gradients_of_factors(processes: int) -> None:
    """They come alone; torch has no rule for what that of the logits needs as well."""
    for logits, labels, x, y in each_placed():
        for name in ("weight", "pos_weight"):
            for options in ({}, {"ignore_index": 1}):
                one = torch.linspace(0.5, 3, LABELS, requires_grad=True)
                factor = distributed_like(one.detach(), logits).requires_grad_()
                ends = [
                    gradient(weighted_bce_with_logits(a.detach(), b, **{name: f}, **options), f)
                    for a, b, f in ((logits, labels, factor), (x, y, one))
                ]
                assert_whole(*ends)


def check_errors(processes: int) -> None:
    """What torch's DTensors cannot do, nor can the loss; it says so."""
    from torch.autograd import forward_ad
    from torch.distributed.tensor import Replicate

    for logits, labels, _, _ in each_placed():
        if isinstance(labels, SparseLabels):
            beyond = labels._replace(col_indices=labels.col_indices + 1)
            with pytest.raises(ValueError, match=f"{LABELS}"):
                weighted_bce_with_logits(logits, beyond)
    logits, labels, x, y = next(each_placed())
    logits, x = logits.detach(), x.detach()
    leaf = logits.detach().requires_grad_()
    loss_of, no_rule = weighted_bce_with_logits, "does not have a sharding strategy"
    elsewhere = distributed(y, mesh_of(processes, 1), [Replicate()] * 2)
    factor = distributed(torch.ones(LABELS), logits.device_mesh, [Replicate()]).requires_grad_()
    with backend("reference"):
        of_reference = loss_of(leaf, labels)
    torch.testing.assert_close(whole(of_reference.detach()), loss_of(x, y))

    def dual_numbers() -> None:
        with forward_ad.dual_level():
            loss_of(forward_ad.make_dual(logits, logits), labels)

    like_input = "must be a DTensor like input, got"
    for call, error, words in (
        (lambda: loss_of(logits, y), TypeError, f"target {like_input} Tensor"),
        (
            lambda: loss_of(logits, labels, pos_weight=torch.ones(LABELS)),
            TypeError,
            f"pos_weight {like_input} Tensor",
        ),
        (lambda: loss_of(x, labels), TypeError, "input must be a DTensor like the others, got Te"),
        (lambda: torch.func.grad(loss_of)(logits, y), TypeError, f"target {like_input}"),
        (lambda: loss_of(logits, elsewhere), ValueError, "target must be on DeviceMesh"),
        (loss_of(leaf, labels, weight=factor).backward, NotImplementedError, no_rule),
        (loss_of(leaf, labels, pos_weight=factor).backward, NotImplementedError, no_rule),
        (of_reference.backward, NotImplementedError, no_rule),
        (dual_numbers, NotImplementedError, no_rule),
    ):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(
    "check",
    [
        check_losses,
        check_grad_outputs,
        check_derivatives,
        check_backward_is_not_in_place,
        check_other_placements,
        check_gradients_of_factors,
        check_errors,
    ],
)
def test(processes: Processes, check: Any) -> None:
    processes(check)
