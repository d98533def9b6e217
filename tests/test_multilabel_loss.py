"""The losses by name: their terms, values and gradients, modules and errors."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import weighted_bce
from weighted_bce import (
    BCE,
    Focal,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    WeightedBCEWithLogitsLoss,
    backend,
    linear_multilabel_loss_with_logits,
    linear_weighted_bce_with_logits,
    multilabel_loss_with_logits,
    weighted_bce_with_logits,
)
from weighted_bce._terms import Term, terms_of
from weighted_bce.losses import Loss

from .tolerances import assert_close
from .truth import INPUT_DTYPES, backends, labels, logits, positives_of

LOSSES = (BCE(), Focal(), Focal(0.0), Focal(0.5, 0.25), Focal(2.7, 1.0))
OTHERS = LOSSES[1:]
INF = math.inf


def terms(loss: Any) -> tuple[Term, Term]:
    return terms_of(loss._loss_id, loss._parameters)


def formula(
    loss: Any,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | float = 1.0,
    smoothing: float = 0.0,
    part: str = "value",
) -> Tensor:
    """The loss of each element, or its slope, in the dtype of x; differentiable."""
    positive, negative = terms(loss)
    y = y.to(x.dtype) * (1 - smoothing) + smoothing / 2
    result = pos_weight * y * getattr(positive, part)(x) + (1 - y) * getattr(negative, part)(x)
    return result if weight is None else weight * result


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_slopes_and_curvatures_are_derivatives_of_values(loss: Any) -> None:
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64).requires_grad_()
    for term in terms(loss):
        first, second = term.slope(x), term.curvature(x)
        for function, derivative in ((term.value, first), (term.slope, second)):
            (expected,) = torch.autograd.grad(function(x).sum(), x)
            torch.testing.assert_close(derivative, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 1e4, 1e38, 1e300])
def test_terms_have_their_limits(gamma: float, dtype: torch.dtype) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([INF, -INF, large, -large, 100, -100, 0, 1e-30], dtype=dtype)
    for loss in (Focal(gamma), Focal(gamma, 0.0), Focal(gamma, 1.0)):
        for term, sign in zip(terms(loss), (-1, 1), strict=True):
            value, slope, curvature = term.value(x), term.slope(x), term.curvature(x)
            assert not torch.stack((value, slope, curvature)).isnan().any()
            ends = sign * x
            has_factor = (slope != 0).any()
            assert (value[ends == INF] == (INF if has_factor else 0)).all()
            assert (value[ends == -INF] == 0).all()
            assert (slope[ends == INF] == (sign if has_factor else 0)).all()
            assert (slope[ends == -INF] == 0).all()
            assert (curvature[ends.isinf()] == 0).all()
            assert term.value(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 2.0, 1e4, 1e100])
def test_derivatives_of_huge_logits(device: str, gamma: float) -> None:
    """Kernels and reference have no NaN, up to the third derivative."""
    for chosen in backends(device):
        x = torch.tensor([INF, -INF, 3e38, -3e38, 1e30, 100, -100], device=device).requires_grad_()
        for target in (0.0, 1.0):
            y = torch.full_like(x, target).detach()
            with backend(chosen):
                result = multilabel_loss_with_logits(x, y, Focal(gamma), reduction="sum")
                for order in range(3):
                    (result,) = torch.autograd.grad(result.sum(), x, create_graph=True)
                    assert not result.isnan().any(), (chosen, order)
                    if order:
                        assert (result[:5] == 0).all(), (chosen, order)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("loss", OTHERS, ids=str)
def test_loss_and_gradient(device: str, loss: Any, dtype: torch.dtype) -> None:
    """The kernels and the reference agree with the formula, for every form of the target."""
    shape = (9, 40)
    x = logits(*shape, dtype=dtype, device=device)
    hard = labels(*shape, device=device)
    soft = labels(*shape, dtype=torch.float32, device=device)
    ignoring = torch.where(torch.rand(shape, device=device) < 0.2, -1, hard.long())
    row, column = torch.rand(40, device=device) * 3, torch.rand(9, 1, device=device) + 0.5
    for given, y, options in (
        (hard, hard, dict(pos_weight=7.0)),
        (positives_of(hard), hard, dict(pos_weight=row, weight=column)),
        (hard.t(), hard.t(), {}),
        (soft, soft, dict(pos_weight=row, weight=column, label_smoothing=0.1)),
        (ignoring, hard, dict(ignore_index=-1)),
    ):
        own = x.t() if y.shape != shape else x
        wide = own.double()
        smoothing = options.get("label_smoothing", 0.0)
        terms_given = {k: v for k, v in options.items() if "weight" in k}
        each = formula(loss, wide, y, smoothing=smoothing, **terms_given)
        counts = ignoring != -1 if given is ignoring else torch.ones_like(each, dtype=torch.bool)
        slope = formula(loss, wide, y, smoothing=smoothing, part="slope", **terms_given)
        each, slope = torch.where(counts, each, 0), torch.where(counts, slope, 0)
        divisors = {"none": 1, "sum": 1, "mean": int(counts.sum()), "batchmean": len(own)}
        for chosen in backends(device):
            for reduction, by in divisors.items():
                leaf = own.detach().requires_grad_()
                with backend(chosen):
                    result = multilabel_loss_with_logits(
                        leaf, given, loss, reduction=reduction, **options
                    )
                expected = each if reduction == "none" else each.sum() / by
                assert_close(result.detach(), expected, 3 * expected, f"{loss}, {reduction}")
                (grad,) = torch.autograd.grad(result.sum() * 3, leaf)
                size = slope.abs() * 9 / by + each * 3 / by  # soft targets cancel
                assert_close(grad, slope * 3 / by, size, f"gradient, {loss}, {reduction}")


def test_bce_is_weighted_bce(device: str) -> None:
    x, y = logits(9, 40, device=device), labels(9, 40, device=device)
    for target in (y, y.float(), positives_of(y)):
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        options: dict[str, Any] = dict(pos_weight=7.0, label_smoothing=0.1, reduction="sum")
        loss = multilabel_loss_with_logits(leaf, target, BCE(), **options)
        expected = weighted_bce_with_logits(other, target, **options)
        assert torch.equal(loss, expected)
        loss.backward()
        expected.backward()
        assert leaf.grad is not None
        assert other.grad is not None
        assert torch.equal(leaf.grad, other.grad)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("loss", OTHERS, ids=str)
def test_derivatives_of_all_orders(device: str, loss: Any, reduction: str) -> None:
    x = (logits(4, 5, dtype=torch.float64, device=device) / 3).requires_grad_()
    soft = torch.rand(4, 5, dtype=torch.float64, device=device)
    hard = labels(4, 5, device=device)
    weight = torch.rand(5, dtype=torch.float64, device=device).requires_grad_()
    p = (torch.rand(4, 1, dtype=torch.float64, device=device) + 1).requires_grad_()
    checks = (torch.autograd.gradcheck, torch.autograd.gradgradcheck)

    def dense(x: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, soft, loss, pos_weight=3.0, reduction=reduction)

    def sparse(x: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, positives_of(hard), loss, reduction=reduction)

    def others(x: Tensor, y: Tensor, w: Tensor, p: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, y, loss, w, p, reduction)

    assert checks[0](dense, x, check_forward_ad=True)
    assert checks[1](dense, x)
    assert all(check(sparse, x) for check in checks)
    assert checks[0](others, (x, soft.requires_grad_(), weight, p))


@pytest.mark.parametrize("loss", OTHERS, ids=str)
def test_transforms(device: str, loss: Any) -> None:
    x = logits(6, 5, dtype=torch.float64, device=device) / 3
    y = labels(6, 5, device=device)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, y, loss, pos_weight=3.0)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return formula(loss, x, y, pos_weight=3.0).mean()

    def per_row(function: Callable[..., Tensor]) -> Any:
        return torch.vmap(torch.func.grad_and_value(function))(x, y)

    def along(function: Callable[..., Tensor]) -> Any:
        tangents = torch.ones_like(x), torch.zeros_like(x)
        return torch.func.jvp(lambda x, _: function(x, y), (x, x), tangents)

    def hessian(function: Callable[..., Tensor]) -> Any:
        return torch.func.hessian(lambda x: function(x, y[0]))(x[0])

    def third(function: Callable[..., Tensor]) -> Any:
        return torch.func.jacrev(lambda x: torch.func.hessian(function)(x, y[0]))(x[0])

    for transform in (per_row, along, hessian, third):
        torch.testing.assert_close(transform(ours), transform(plain), rtol=1e-9, atol=1e-15)


def test_modules(device: str) -> None:
    x, y = logits(9, 40, device=device), labels(9, 40, device=device)
    criterion = MultilabelLoss(Focal(1.5), pos_weight=torch.full((40,), 3.0), reduction="sum")
    assert repr(criterion) == (
        "MultilabelLoss(Focal(gamma=1.5, alpha=None), pos_weight=tensor(40,), reduction='sum')"
    )
    criterion = criterion.to(device)
    expected = multilabel_loss_with_logits(x, y, Focal(1.5), pos_weight=3.0, reduction="sum")
    for copied in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(copied(x, y), expected)
        assert list(copied.state_dict()) == ["pos_weight"]
    bce = MultilabelLoss(BCE(), pos_weight=3.0)
    assert torch.equal(bce(x, y), WeightedBCEWithLogitsLoss(pos_weight=3.0)(x, y))

    torch.manual_seed(0)
    linear = LinearMultilabelLoss(12, 40, BCE(), pos_weight=3.0)
    torch.manual_seed(0)
    other = LinearWeightedBCEWithLogitsLoss(12, 40, pos_weight=3.0)
    hidden, target = torch.randn(9, 12), y.cpu()
    assert torch.equal(linear(hidden, target), other(hidden, target))
    assert linear.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(linear.topk(hidden, 3).indices, other.topk(hidden, 3).indices)
    assert "BCE()" in repr(linear)


def test_losses_are_values() -> None:
    assert Focal() == Focal(2.0, None) == Focal(2) != Focal(2.0, 0.25)
    assert len({Focal(), Focal(2.0), BCE(), BCE()}) == 2
    for loss in LOSSES:
        assert pickle.loads(pickle.dumps(loss)) == loss
        assert eval(repr(loss), vars(weighted_bce)) == loss
        with pytest.raises(AttributeError):
            loss.gamma = 3.0  # type: ignore[misc]
        file = io.BytesIO()
        torch.save({"loss": loss}, file)
        file.seek(0)
        assert torch.load(file, weights_only=True) == {"loss": loss}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Focal(-1), ValueError, "gamma must be a finite number >= 0, got -1"),
        (lambda: Focal(math.nan), ValueError, "gamma must be a finite number >= 0, got nan"),
        (lambda: Focal(INF), ValueError, "gamma must be a finite number >= 0, got inf"),
        (lambda: Focal("2"), TypeError, "gamma must be a number, got str"),
        (lambda: Focal(True), TypeError, "gamma must be a number, got bool"),
        (lambda: Focal(2.0, 1.5), ValueError, r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: Focal(2.0, -1), ValueError, r"alpha must be in \[0, 1\], got -1"),
        (lambda: Focal(2.0, math.nan), ValueError, r"alpha must be in \[0, 1\], got nan"),
        (lambda: Focal(2.0, "a"), TypeError, "alpha must be a number or None, got str"),
    ],
)
def test_wrong_parameters(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("wrong", [None, "focal", Focal, 2.0, Loss()])
def test_unknown_losses(wrong: Any) -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    words = r"loss must be BCE\(\) or Focal\(\), got"
    for call in (
        lambda: multilabel_loss_with_logits(x, y, wrong),
        lambda: MultilabelLoss(wrong),
        lambda: linear_multilabel_loss_with_logits(x, torch.zeros(3, 3), y, wrong),
        lambda: LinearMultilabelLoss(3, 3, wrong),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_subclasses_of_tensor_see_the_functions() -> None:
    class Seen(Tensor):
        calls: ClassVar[list[Any]] = []

        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function.__module__.startswith("weighted_bce"):
                cls.calls.append((function, args[3:], kwargs))
                return None
            return super().__torch_function__(function, types, args, kwargs)

    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    seen = x.as_subclass(Seen)
    multilabel_loss_with_logits(seen, y, Focal(), reduction="sum")
    linear_multilabel_loss_with_logits(seen, torch.zeros(3, 3), y, Focal(), chunk_labels=2)
    linear_weighted_bce_with_logits(seen, torch.zeros(3, 3), y)
    functions = [function for function, *_ in Seen.calls]
    assert functions == [
        multilabel_loss_with_logits,
        linear_multilabel_loss_with_logits,
        linear_weighted_bce_with_logits,
    ]
    assert Seen.calls[0][1] == (None, None, "sum")
    assert Seen.calls[1][1] == (Focal(),)
    assert Seen.calls[1][2]["chunk_labels"] == 2
