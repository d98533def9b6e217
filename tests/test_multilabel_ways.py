"""Every loss in the other ways to call it: derivatives, compile, the linear layer, shards."""

import io
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import (
    BCE,
    Asymmetric,
    Focal,
    FusedSGD,
    Hill,
    MultilabelLoss,
    Poly1,
    SquaredHinge,
    backend,
    linear_multilabel_loss_with_logits,
    multilabel_loss_with_logits,
)
from weighted_bce._extension import extension

from .processes import Processes
from .test_multilabel_loss import LOSSES, formula
from .truth import INPUT_DTYPES, labels, logits, positives_of

# One of each kind, and another clip.
KINDS = (BCE(), Focal(2.0, 0.25), SquaredHinge(), Poly1(), Hill(), Asymmetric())
KINDS += (Asymmetric(2.0, 0.5, 0.2, True),)
needs_extension = pytest.mark.skipif(extension is None, reason="no extension")


@needs_extension
def test_losses_that_change_are_compiled(device: str, chosen: str) -> None:
    """A loss may be an argument of what is compiled, and its parameters may change."""
    x, y = logits(9, 40, device=device), labels(9, 40, device=device)

    def focal(x: Tensor, gamma: float) -> Tensor:
        return multilabel_loss_with_logits(x, y, Focal(gamma))

    of_loss = partial(multilabel_loss_with_logits, x, y)
    for function, arguments in (
        (partial(focal, x), (2.0, 1.75, 1.5, 1.25)),
        (of_loss, KINDS),
    ):
        torch.compiler.reset()  # the number of compilations of a function is limited
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for argument in arguments:
            torch.testing.assert_close(compiled(argument), function(argument))


@needs_extension
def test_export(kernel_device: str) -> None:
    model = MultilabelLoss(Focal(1.5, 0.25), pos_weight=torch.ones(40)).to(kernel_device)
    given = logits(9, 40, device=kernel_device), labels(9, 40, device=kernel_device)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, given), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(*given), model(*given))


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_linear_layer(device: str, loss: Any, dtype: torch.dtype) -> None:
    """The loss and all gradients of a linear layer, in chunks, are those of its logits."""
    x, w, b = (torch.randn(s, device=device).to(dtype) for s in ((7, 12), (150, 12), (150,)))
    y = labels(7, 150, device=device)
    for target in (y, positives_of(y)):
        for reduction, chunk_labels in (("mean", None), ("batchmean", 64)):
            leaves = [t.detach().requires_grad_() for t in (x, w, b)]
            wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
            each = formula(loss, torch.nn.functional.linear(*wide), y)
            expected = each.mean() if reduction == "mean" else each.sum() / 7
            result = linear_multilabel_loss_with_logits(
                *leaves[:2],
                target,
                loss,
                linear_bias=leaves[2],
                pos_weight=3.0,
                reduction=reduction,
                chunk_labels=chunk_labels,
            )
            tolerance = 1e-12 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=0)
            (2.5 * result).backward()
            (2.5 * expected).backward()
            for leaf, other in zip(leaves, wide, strict=True):
                size = other.grad.abs().max()  # type: ignore[union-attr]
                error = (leaf.grad.double() - other.grad).abs().max()  # type: ignore[operator,union-attr]
                assert error <= (2.0**-7 if dtype.itemsize == 2 else 10 * tolerance) * size


@pytest.mark.parametrize("loss", [Focal(1.5, 0.25), SquaredHinge(), Asymmetric()], ids=str)
def test_linear_layer_in_other_ways(device: str, loss: Any) -> None:
    """A fused step, compile, and torch.func give what the plain call gives."""
    x, w = torch.randn(7, 12, device=device), torch.randn(150, 12, device=device)
    y = labels(7, 150, device=device)

    def call(x: Tensor, w: Tensor, **options: Any) -> Tensor:
        options = {"pos_weight": 3.0, "chunk_labels": 64, **options}
        return linear_multilabel_loss_with_logits(x, w, y, loss, **options)

    leaf = w.clone().requires_grad_()
    call(x, leaf).backward()
    assert leaf.grad is not None
    stepped = w.clone().requires_grad_()
    optimizer = FusedSGD([stepped], lr=0.5)
    call(x, stepped, fused_step=optimizer).backward()
    optimizer.step()
    torch.testing.assert_close(stepped.detach(), w - 0.5 * leaf.grad)
    torch.testing.assert_close(torch.func.grad(call, argnums=1)(x, w), leaf.grad)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    other = w.clone().requires_grad_()
    compiled(x, other).backward()
    torch.testing.assert_close(other.grad, leaf.grad)
    with backend("reference"):
        torch.testing.assert_close(call(x, w), call(x, leaf.detach()))


def check_shards(processes: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    from .processes import mesh_of

    mesh = mesh_of(processes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 13, generator=generator) * 4
    y = torch.rand(7, 13, generator=generator) < 0.3
    w = torch.randn(13, 5, generator=generator)
    csr = positives_of(y)
    for loss, dim in product(KINDS[1:], (0, 1)):
        leaf = x.clone().requires_grad_()
        shards = distribute_tensor(x, mesh, [Shard(dim)]).requires_grad_()
        for target, own in ((y, distribute_tensor(y, mesh, [Shard(dim)])), (csr, csr)):
            expected = multilabel_loss_with_logits(leaf, target, loss, pos_weight=3.0)
            result = multilabel_loss_with_logits(shards, own, loss, pos_weight=3.0)
            (slope,) = torch.autograd.grad(expected, leaf, create_graph=True)
            (grad,) = torch.autograd.grad(result, shards, create_graph=True)
            (second,) = torch.autograd.grad((slope**2).sum(), leaf)
            (of_shards,) = torch.autograd.grad((grad**2).sum(), shards)
            for actual, wanted in ((result, expected), (grad, slope), (of_shards, second)):
                torch.testing.assert_close(actual.full_tensor(), wanted)  # type: ignore[attr-defined]
        hidden = torch.randn(7, 5, generator=generator)
        expected = linear_multilabel_loss_with_logits(hidden, w, csr, loss)
        whole, parts = distribute_tensor(hidden, mesh), distribute_tensor(w, mesh, [Shard(0)])
        result = linear_multilabel_loss_with_logits(whole, parts, csr, loss)
        torch.testing.assert_close(result.full_tensor(), expected)  # type: ignore[attr-defined]


@needs_extension
def test_shards(processes: Processes) -> None:
    processes(check_shards)
