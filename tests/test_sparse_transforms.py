"""Sparse labels under torch.func, forward AD, hooks, checkpoints and autocast."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from weighted_bce import backend, weighted_bce, weighted_bce_with_logits
from weighted_bce._extension import extension
from weighted_bce.sparse import SparseLabels

from .test_transforms import Ops, same
from .truth import INPUT_DTYPES, REDUCTIONS, labels, logits, positives_of

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

SAMPLES, ROWS, LABELS = 3, 4, 5


def samples_of_labels(device: str) -> tuple[Tensor, SparseLabels]:
    """Dense and sparse, with as many positives in each sample, in other rows."""
    y = torch.zeros(SAMPLES, ROWS, LABELS, dtype=torch.bool, device=device)
    for k in range(SAMPLES):
        y[k, 0, :3] = y[k, 1 + k % 3, k] = y[k, 3, 4] = True
    assert len({int(one.sum()) for one in y}) == 1
    each = [positives_of(one) for one in y]
    return y, SparseLabels(*map(torch.stack, zip(*each, strict=True)))


# Where the samples of input, sparse labels, weight and pos_weight lie; None: all share one.
IN_DIMS = [
    *((0, None, None, None), (1, 0, 1, 0), (0, 0, None, None), (2, 0, 0, 1)),
    *((None, 0, None, None), (None, None, 0, None), (0, None, None, 0), (-1, 0, None, -1)),
]


@pytest.mark.parametrize("in_dims", IN_DIMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, 0, 1])
def test_vmap_over_any_dimension(
    kernel_device: str, in_dims: tuple[int | None, ...], reduction: str, ignore_index: int | None
) -> None:
    of_x, of_y, *of_factors = in_dims
    y, listed = samples_of_labels(kernel_device)
    if of_y is None:
        y, listed = y[0], SparseLabels(*(indices[0] for indices in listed))
    factors = (torch.rand(LABELS), torch.rand(ROWS, 1))

    def stacked(t: Tensor, dim: int | None) -> Tensor:
        many = torch.stack([t.roll(i, 0) for i in range(SAMPLES)])
        return (t if dim is None else many.movedim(0, dim)).to(kernel_device)

    x = stacked(logits(ROWS, LABELS), of_x)
    w, p = (stacked(t + 0.5, dim) for t, dim in zip(factors, of_factors, strict=True))

    def one(x: Tensor, y: Any, w: Tensor, p: Tensor) -> Tensor:
        options: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index}
        return weighted_bce_with_logits(x, y, w, p, label_smoothing=0.1, **options)

    def scaled(*args: Any) -> Tensor:
        return (one(*args) * torch.arange(1, LABELS + 1, device=kernel_device)).sum()

    torch.testing.assert_close(vmap(one, in_dims)(x, listed, w, p), vmap(one, in_dims)(x, y, w, p))
    torch.testing.assert_close(
        vmap(grad(scaled), in_dims)(x, listed, w, p), vmap(grad(scaled), in_dims)(x, y, w, p)
    )


def test_vmap_is_one_call(kernel_device: str) -> None:
    _, listed = samples_of_labels(kernel_device)
    x = logits(SAMPLES, ROWS, LABELS, device=kernel_device)
    with Ops() as names:
        vmap(grad(weighted_bce_with_logits))(x, listed)
    assert names == ["unreduced", "grad"]


def test_a_factor_of_full_size_alone_is_expanded(kernel_device: str) -> None:
    """Under vmap numbers, columns and vectors stay what they are."""
    _, listed = samples_of_labels(kernel_device)
    x = logits(SAMPLES, ROWS, LABELS, device=kernel_device)
    seen = []

    class Sizes(Ops):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if op.namespace == "weighted_bce":
                seen.append([a.untyped_storage().nbytes() // 4 for a in args[3:5]])
            return op(*args, **(kwargs or {}))

    per_row = torch.rand(ROWS, 1).to(kernel_device)
    for shape in ((LABELS,), (1, LABELS)):
        per_label = torch.rand(shape).to(kernel_device)
        with Sizes():
            vmap(lambda x, y: weighted_bce_with_logits(x, y, per_row, per_label))(x, listed)  # noqa: B023
    assert seen == [[SAMPLES * ROWS, LABELS]] * 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_in_plain_torch(device: str, reduction: str) -> None:
    """By the reference, of probabilities, and of the derivative of a factor."""
    y, listed = samples_of_labels(device)
    x = logits(SAMPLES, ROWS, LABELS, device=device)
    p = torch.rand(LABELS, device=device) + 0.5

    def loss(x: Tensor, y: Any, p: Tensor) -> Tensor:
        return weighted_bce_with_logits(x, y, None, p, reduction, ignore_index=0).sum()

    def of_probabilities(x: Tensor, y: Any, p: Tensor) -> Tensor:
        return weighted_bce(x.sigmoid(), y, None, p, reduction, ignore_index=1).sum()

    for function in (loss, of_probabilities):
        for mapped in (function, grad(function, argnums=(0, 2))):
            with backend("reference" if function is loss else "auto"):
                found, wanted = (vmap(mapped, (0, 0, None))(x, t, p) for t in (listed, y))
            torch.testing.assert_close(found, wanted)
    found, wanted = (vmap(grad(loss, argnums=2), (0, 0, None))(x, t, p) for t in (listed, y))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_functionalized_and_traced(device: str, chosen: str) -> None:
    y, listed = samples_of_labels(device)
    sparse = SparseLabels(*(indices[0] for indices in listed))
    x = logits(ROWS, LABELS, device=device)

    def loss(x: Tensor, y: Any) -> Tensor:
        return weighted_bce_with_logits(x, y, pos_weight=7.0)

    with backend(chosen):
        for function in (loss, grad(loss)):
            wanted = function(x, y[0])
            torch.testing.assert_close(functionalize(function)(x, sparse), wanted)
            torch.testing.assert_close(make_fx(function)(x, sparse)(x, sparse), wanted)


@pytest.mark.parametrize("ignore_index", [0, 1])
def test_nothing_counts(device: str, ignore_index: int) -> None:
    y = torch.full((2, ROWS, LABELS), not ignore_index, device=device).logical_not()
    listed = SparseLabels(*map(torch.stack, zip(*map(positives_of, y), strict=True)))
    x = logits(2, ROWS, LABELS, device=device)

    def loss(x: Tensor, y: Any) -> Tensor:
        return weighted_bce_with_logits(x, y, ignore_index=ignore_index)

    for chosen in ("auto", "reference"):
        with backend(chosen):
            assert vmap(loss)(x, listed).tolist() == [0, 0]
            assert not vmap(grad(loss))(x, listed).any()
            assert loss(x[0], SparseLabels(*(t[0] for t in listed))) == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_transforms(kernel_device: str, reduction: str) -> None:
    y, listed = samples_of_labels(kernel_device)
    sparse = SparseLabels(*(indices[0] for indices in listed))
    x = torch.randn(ROWS, LABELS, dtype=torch.float64, device=kernel_device)
    t = torch.randn_like(x)
    for given in ({"pos_weight": 3.0}, {"label_smoothing": 0.2}, {"ignore_index": 1}):

        def of(target: Any) -> Any:
            def loss(x: Tensor) -> Tensor:
                out = weighted_bce_with_logits(x, target, reduction=reduction, **given)  # noqa: B023
                return (out * out.detach().cos()).sum()

            return (
                *(grad(loss)(x), hessian(loss)(x), jacrev(jacrev(loss))(x), jacfwd(loss)(x)),
                *(jvp(loss, (x,), (t,)), vjp(loss, x)[1](torch.ones_like(loss(x)))),
                *(jvp(grad(loss), (x,), (t,)), grad(lambda x: jvp(loss, (x,), (t,))[1])(x)),
            )

        torch.testing.assert_close(same(lambda: of(sparse)), of(y[0]))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, t)
            found = weighted_bce_with_logits(dual, sparse, reduction=reduction, **given)
            wanted = weighted_bce_with_logits(dual, y[0], reduction=reduction, **given)
            torch.testing.assert_close(
                forward_ad.unpack_dual(found), forward_ad.unpack_dual(wanted)
            )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_checkpoints(device: str, dtype: torch.dtype, reentrant: bool) -> None:
    y = labels(6, 9, device=device)
    x = logits(6, 9, dtype=dtype, device=device)
    grads = []
    for target, wrapped in product((positives_of(y), y), (False, True)):
        leaf = x.clone().requires_grad_()

        def loss(x: Tensor, target: Any = target) -> Tensor:
            return weighted_bce_with_logits(x * 2, target, pos_weight=7.0)

        result = checkpoint(loss, leaf, use_reentrant=reentrant) if wrapped else loss(leaf)
        result.backward()
        grads.append(leaf.grad)
    for one in grads[1:]:
        torch.testing.assert_close(one, grads[0])


def test_under_autocast_and_in_inference_mode(device: str) -> None:
    y = labels(6, 9, device=device)
    x = logits(6, 9, dtype=torch.bfloat16, device=device).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        loss = weighted_bce_with_logits(x, positives_of(y))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, weighted_bce_with_logits(x, y))
    with torch.inference_mode():
        made_inside = positives_of(y)
        assert torch.equal(weighted_bce_with_logits(x, made_inside), loss)
    (own,) = torch.autograd.grad(weighted_bce_with_logits(x, made_inside), x)
    (other,) = torch.autograd.grad(weighted_bce_with_logits(x, y), x)
    assert torch.equal(own, other)


def test_gradients_by_the_reference(device: str) -> None:
    """Those with respect to the factors, which the kernels leave to it."""
    y = labels(6, 9, device=device)
    x = logits(6, 9, device=device)
    for shape in ((), (9,), (6, 1), (6, 9)):
        grads = []
        for target in (positives_of(y), y):
            p = torch.full(shape, 3.0, device=device, requires_grad=True)
            w = torch.full(shape, 2.0, device=device, requires_grad=True)
            with backend("auto"):
                weighted_bce_with_logits(x, target, w, p, label_smoothing=0.1).backward()
            grads.append((p.grad, w.grad))
        torch.testing.assert_close(*grads)
