"""torch.vmap maps the loss over samples of any argument, in one call of the kernels."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from weighted_bce import SparseLabels, weighted_bce
from weighted_bce._extension import extension

from .transforms import (
    DTYPES,
    LABELS,
    ROWS,
    SAMPLES,
    SLOW_BATCHING,
    Ops,
    hard_samples,
    loss,
    same,
)
from .truth import REDUCTIONS, as_given, logits

pytestmark = [pytest.mark.skipif(extension is None, reason="no extension"), SLOW_BATCHING]


def one_sample(argument: Any, dim: int | None, i: int) -> Any:
    if dim is None:
        return argument
    if isinstance(argument, SparseLabels):
        return SparseLabels(*(indices.select(dim, i) for indices in argument))
    return argument.select(dim, i)


# Where the samples of input, target, weight and pos_weight lie; None: all share one.
IN_DIMS = [
    *((0, 0, None, None), (1, 0, 1, 0), (0, None, None, None), (None, 0, None, None)),
    *((2, 0, 1, 1), (None, None, 0, None), (None, None, None, 0), (-1, 0, None, -1)),
]
# How the target is given, and what is ignored.
TARGETS = [(None, None), (None, -1), *((torch.int64, ignored) for ignored in (None, 0, 1))]


@pytest.mark.parametrize("in_dims", [*IN_DIMS, (None, 1, None, None), (2, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("sparse", "ignore_index"), TARGETS)
def test_vmap_over_any_dimension(
    kernel_device: str,
    in_dims: tuple[int | None, ...],
    reduction: str,
    sparse: torch.dtype | None,
    ignore_index: int | None,
) -> None:
    """The loss and, sample by sample, its gradient."""
    of_x, of_y, *of_factors = in_dims
    if sparse is not None and of_y not in (None, 0):
        pytest.skip("the samples of sparse labels are in their first dimension here")

    def stacked(t: Tensor, dim: int | None) -> Tensor:
        many = torch.stack([t.roll(i, 0) for i in range(SAMPLES)])
        return (t if dim is None else many.movedim(0, dim)).to(kernel_device)

    y: Any = hard_samples(kernel_device)
    if ignore_index == -1:
        y = torch.where(torch.rand(y.shape, device=kernel_device) < 0.2, -1, y.long())
    y = as_given(y[0] if of_y is None else y.movedim(0, of_y), sparse)
    factors = zip((torch.rand(LABELS), torch.rand(ROWS, 1)), of_factors, strict=True)
    args = [stacked(logits(ROWS, LABELS), of_x), y, *(stacked(t + 0.5, dim) for t, dim in factors)]

    def one(*args: Any) -> Tensor:
        return loss(*args, reduction=reduction, ignore_index=ignore_index, label_smoothing=0.1)

    def scaled(*args: Any) -> Tensor:
        return (one(*args) * torch.arange(1, LABELS + 1, device=kernel_device)).sum()

    for function in (one, grad(scaled)):
        result = same(lambda f=function: vmap(f, in_dims)(*args))
        samples = [
            function(*(one_sample(a, d, i) for a, d in zip(args, in_dims, strict=True)))
            for i in range(SAMPLES)
        ]
        torch.testing.assert_close(result, torch.stack(samples))


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_sample_gradients_are_one_call(
    kernel_device: str, dtype: torch.dtype, sparse: torch.dtype | None
) -> None:
    y = hard_samples(kernel_device)
    x = logits(*y.shape, dtype=dtype, device=kernel_device)
    targets = (as_given(y, sparse),) if sparse else (y, y.float())
    for target in targets:  # of which only the logits are differentiated
        with Ops() as names:
            samples = vmap(grad(loss))(x, target)
        assert names == ["unreduced", "grad"]
        x.grad = None
        loss(x.requires_grad_(), y).backward()
        torch.testing.assert_close(samples / SAMPLES, x.grad)
        x.requires_grad_(False)


def test_a_factor_of_full_size_alone_is_expanded(kernel_device: str) -> None:
    """Under vmap of sparse labels, numbers, columns and vectors stay what they are."""
    y = hard_samples(kernel_device)
    x = logits(*y.shape, device=kernel_device)
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
            vmap(lambda x, y, p=per_label: loss(x, y, per_row, p))(x, as_given(y, torch.int64))
    assert seen == [[SAMPLES * ROWS, LABELS]] * 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_of_sparse_labels_in_plain_torch(device: str, reduction: str) -> None:
    """Probabilities and the derivative of a factor, which the kernels do not give."""
    y = hard_samples(device)
    x, p = logits(*y.shape, device=device), torch.rand(LABELS, device=device) + 0.5

    def of_logits(x: Tensor, y: Any, p: Tensor) -> Tensor:
        return loss(x, y, None, p, reduction=reduction, ignore_index=0).sum()

    def of_probabilities(x: Tensor, y: Any, p: Tensor) -> Tensor:
        return weighted_bce(x.sigmoid(), y, None, p, reduction, ignore_index=1).sum()

    for function in (of_logits, of_probabilities):
        for mapped in (function, grad(function, argnums=(0, 2)), grad(function, argnums=2)):
            dense, sparse = (
                vmap(mapped, (0, 0, None))(x, as_given(y, indices), p)
                for indices in (None, torch.int64)
            )
            torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_samples(kernel_device: str, reduction: str) -> None:
    x = torch.zeros(0, 3, device=kernel_device)
    y = x.bool()

    def f(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, y, reduction=reduction)

    assert vmap(f)(x, y).shape == ((0, 3) if reduction == "none" else (0,))
    assert grad(lambda x: vmap(f)(x, y).sum())(x).shape == (0, 3)
    assert vmap(grad(lambda x, y: f(x, y).sum()))(x, y).shape == (0, 3)


@pytest.mark.parametrize("ignore_index", [0, 1])
def test_nothing_counts(
    device: str, chosen: str, sparse: torch.dtype | None, ignore_index: int
) -> None:
    y = as_given(torch.full((2, ROWS, LABELS), bool(ignore_index), device=device), sparse)
    x = logits(2, ROWS, LABELS, device=device)
    ignoring = partial(loss, ignore_index=ignore_index)
    assert vmap(ignoring)(x, y).tolist() == [0, 0]
    assert not vmap(grad(ignoring))(x, y).any()
