"""The kernels of other losses than binary cross-entropy, as torch.ops has them: the focal loss."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import Focal
from weighted_bce._extension import extension

from .tolerances import ulp
from .truth import INPUT_DTYPES, labels, logits, numpy_terms, positives_of

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

FOCAL = 1  # csrc/problem.h
NONE, MEAN, SUM, BATCHMEAN = range(4)
GAMMAS = (0.0, 0.5, 1.0, 2.0, 2.7, 4.0)
INF = math.inf
ops = torch.ops.weighted_bce


def focal(x: Tensor, gamma: float, alpha: float) -> tuple[Tensor, ...]:
    """Returns both terms and their slopes in float64."""
    loss = Focal(gamma, None if alpha == -1 else alpha)
    return tuple(map(torch.from_numpy, numpy_terms(loss, x.detach().double().cpu().numpy())))


def call(
    x: Tensor,
    y: Tensor,
    gamma: float = 2.0,
    alpha: float = -1.0,
    reduction: int = SUM,
    **given: Any,
) -> tuple[Any, ...]:
    """Returns the arguments of an op from the logits on."""
    names = ("crow_indices", "weight", "pos_weight")
    rest = (given.get("p", 1.0), given.get("smoothing", 0.0), given.get("ignore_index"), None)
    return (x, y, *(given.get(n) for n in names), *rest, reduction, FOCAL, [gamma, alpha])


def one(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.ones((), dtype=dtype, device=x.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [*GAMMAS, 10.0])
def test_values_and_slopes_are_within_eight_ulp(
    level: str, gamma: float, dtype: torch.dtype
) -> None:
    """The bound of csrc/terms.h; results below the smallest normal number are within 8 of that."""
    most = 87 if dtype == torch.float32 else 700
    parts = (torch.linspace(-most, most, 20001), torch.linspace(-9, 9, 40001))
    x = torch.cat((*parts, torch.linspace(-1e-3, 1e-3, 501))).to(dtype)
    x += torch.rand(len(x), dtype=dtype) * 1e-3
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    alpha = {0.0: 0.999, 2.0: 0.25}.get(gamma, -1.0)
    terms = focal(x, gamma, alpha)
    for positive in (0, 1):
        value, slope = terms[1 - positive], terms[3 - positive]
        y = torch.full_like(x, positive, dtype=torch.bool)
        grad_outputs = (one(x), torch.ones_like(x))
        grads = [ops.grad(g, *call(x, y, gamma, alpha)) for g in grad_outputs]
        found = ops.unreduced(*call(x, y, gamma, alpha, NONE))
        for actual, expected in ((found, value), *((grad, slope) for grad in grads)):
            error = (actual.double() - expected).abs() / ulp(expected, dtype).clamp(min=least)
            assert error.max() <= 8, x[error.argmax()]


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("reduction", [MEAN, SUM, BATCHMEAN])
def test_dense_and_sparse_targets(kernel_device: str, reduction: int, dtype: torch.dtype) -> None:
    """All ways to the loss and its gradient agree with the formula, and the ways in place."""
    shape, p = (33, 517), 3.0
    x = logits(*shape, dtype=dtype, device=kernel_device)
    hard = labels(*shape, device=kernel_device) & (torch.rand(shape, device=kernel_device) < 0.3)
    sparse = positives_of(hard)
    soft = torch.where(hard, torch.rand(shape, device=kernel_device), 0)
    vector = torch.linspace(0.5, 4, shape[1], device=kernel_device)
    weight = torch.linspace(0.5, 2, shape[0], device=kernel_device)[:, None]
    for y, given in (
        (hard, {"p": p}),
        (sparse.col_indices, {"p": p, "crow_indices": sparse.crow_indices}),
        (hard.long(), {"pos_weight": vector, "weight": weight}),
        (sparse.col_indices, {"pos_weight": vector, "crow_indices": sparse.crow_indices}),
        (soft, {"p": p, "smoothing": 0.125}),
        (soft, {"p": p, "ignore_index": 0.0}),
    ):
        dense = (soft if y is soft else hard).double().cpu()
        a = dense * (1 - given.get("smoothing", 0)) + given.get("smoothing", 0) / 2
        b = 1 - a
        a = a * given.get("pos_weight", torch.tensor(given.get("p", 1.0))).double().cpu()
        w = given.get("weight", torch.ones((), device=kernel_device)).double().cpu()
        counts = dense != given.get("ignore_index", -1)
        value_p, value_n, slope_p, slope_n = focal(x, 2.0, 0.25)
        value = torch.where(counts, w * (a * value_p + b * value_n), 0)
        slope = torch.where(counts, w * (a * slope_p + b * slope_n), 0)
        size = torch.where(counts, w * (a * slope_p.abs() + b * slope_n.abs()), 0)
        divisor = {MEAN: counts.sum().item(), SUM: 1, BATCHMEAN: shape[0]}[reduction]

        arguments = call(x, y, 2.0, 0.25, reduction, **given)
        loss = ops.loss(*arguments)
        single = one(x).dtype == torch.float32
        tolerance, least = (3e-6, 2.0**-146) if single else (1e-13, 2.0**-1071)
        torch.testing.assert_close(
            loss.double().cpu(), value.sum() / divisor, rtol=tolerance, atol=0
        )
        expected = one(x) * 3
        both, grad, used = ops.loss_and_grad(expected, *arguments)
        assert torch.equal(both, loss)
        assert torch.equal(used, expected)
        bound = least + 3 * size / divisor * tolerance + 0.51 * ulp(3 * slope / divisor, dtype)
        assert ((grad.double().cpu() - 3 * slope / divisor).abs() <= bound).all()
        assert torch.equal(ops.grad(expected, *arguments), grad)
        x_1, x_2 = x.clone(), x.clone()
        assert torch.equal(ops.loss_and_grad_(expected, x_1, *arguments[1:]), loss)
        ops.grad_(expected, x_2, *arguments[1:])
        assert torch.equal(x_1, grad)
        assert torch.equal(x_2, grad)
        ops.update_grad_(2 * expected, used, expected, grad, *arguments)
        assert torch.equal(grad, ops.grad(expected, *arguments))
        unreduced = ops.unreduced(*call(x, y, 2.0, 0.25, NONE, **given)).double().cpu()
        bound = least + value * tolerance + 0.51 * ulp(value, dtype)
        assert ((unreduced - value).abs() <= bound).all()


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 2.0, 1e4, 1e38, 1e300])
def test_infinite_and_huge_logits(kernel_device: str, gamma: float, dtype: torch.dtype) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([INF, -INF, large, -large, 1e3, -1e3, 90, -90, 0, -0.0] * 4)
    x = x.to(dtype).to(kernel_device)
    for target in (0.0, 1.0, 0.25):
        y = torch.full_like(x, target)
        arguments = call(x, y, gamma)
        assert not ops.unreduced(*call(x, y, gamma, reduction=NONE)).isnan().any()
        assert not ops.grad(one(x), *arguments).isnan().any()
        loss, grad, _ = ops.loss_and_grad(one(x), *arguments)
        assert not loss.isnan()
        assert not grad.isnan().any()
    grad = ops.grad(one(x), *call(x[:4], torch.zeros_like(x[:4]), gamma)).tolist()
    assert grad == [1, 0, 1, 0]
    nan = torch.full((70,), math.nan, dtype=dtype, device=kernel_device)
    assert ops.grad(one(x), *call(nan, torch.zeros_like(nan), gamma)).isnan().all()
    assert ops.loss(*call(nan, torch.zeros_like(nan), gamma)).isnan()


def test_gamma_0_is_binary_cross_entropy(kernel_device: str) -> None:
    x, y = logits(9, 40, device=kernel_device), labels(9, 40, device=kernel_device)
    _, *rest = call(x, y)
    plain = ops.grad(one(x), x, *rest[:-2])
    torch.testing.assert_close(ops.grad(one(x), *call(x, y, 0.0)), plain, rtol=1e-6, atol=0)


def test_autograd_of_the_ops(kernel_device: str) -> None:
    x, y = logits(5, 7, dtype=torch.float64, device=kernel_device), labels(5, 7).to(kernel_device)

    def loss(x: Tensor) -> Tensor:
        return ops.loss(*call(x, y, 2.7, 0.25, MEAN, p=3.0))

    def unreduced(x: Tensor) -> Tensor:
        return ops.unreduced(*call(x, y, 0.5, 0.25, NONE, p=3.0))

    leaf = (x / 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, leaf)
    assert torch.autograd.gradcheck(unreduced, leaf)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for function in (loss, compiled):
        (grad,) = torch.autograd.grad(function(leaf), leaf)
        assert torch.equal(grad, ops.grad(one(x), *call(leaf.detach(), y, 2.7, 0.25, MEAN, p=3.0)))


def test_opcheck(kernel_device: str) -> None:
    x, y = logits(5, 7, device=kernel_device).requires_grad_(), labels(5, 7, device=kernel_device)
    torch.library.opcheck(ops.loss.default, call(x, y))
    torch.library.opcheck(ops.unreduced.default, call(x, y, reduction=NONE))
    torch.library.opcheck(ops.loss_and_grad.default, (one(x), *call(x.detach(), y)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({1: []}, "loss 1 must have 2 parameters, got 0"),
        ({1: None}, "loss 1 must have 2 parameters, got 0"),
        ({1: [1.0, 0.5, 2.0]}, "loss 1 must have 2 parameters, got 3"),
        ({0: 0}, "loss 0 must have 0 parameters, got 2"),
        ({0: 2}, r"loss must be in \[0, 2\), got 2"),
        ({0: -1}, r"loss must be in \[0, 2\), got -1"),
        ({0: 256}, r"loss must be in \[0, 2\), got 256"),
        ({1: [-0.5, 0.5]}, r"loss 1: gamma must be in \[0, 1e300\]"),
        ({1: [INF, 0.5]}, r"loss 1: gamma must be in \[0, 1e300\]"),
        ({1: [math.nan, 0.5]}, r"loss 1: gamma must be in \[0, 1e300\]"),
        ({1: [2.0, 1.5]}, r"loss 1: alpha must be in \[0, 1\], or -1 for none"),
        ({1: [2.0, -0.5]}, r"loss 1: alpha must be in \[0, 1\], or -1 for none"),
        ({1: [2.0, math.nan]}, r"loss 1: alpha must be in \[0, 1\], or -1 for none"),
        ({2: torch.ones(3)}, "values are not supported, must be None"),
        ({3: torch.tensor(2.0)}, "a normalizer is not supported, must be None"),
    ],
)
def test_wrong_arguments(changed: dict[int, Any], words: str, kernel_device: str) -> None:
    x, y = logits(5, 7, device=kernel_device), labels(5, 7, device=kernel_device)
    last = [FOCAL, [2.0, 0.25], None, None]
    for place, value in changed.items():
        last[place] = value.to(kernel_device) if isinstance(value, Tensor) else value
    before = call(x, y)[:-2]
    for arguments in ((ops.loss, *before), (ops.grad_, one(x), *before)):
        op, *rest = arguments
        kept = x.clone()
        with pytest.raises(RuntimeError, match=words):
            op(*rest, *last)
        assert torch.equal(x, kept)
