"""The losses by name: their terms, values and gradients, modules and errors."""

import io
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import weighted_bce
from weighted_bce import (
    BCE,
    Asymmetric,
    Focal,
    Hill,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    Poly1,
    SquaredHinge,
    linear_multilabel_loss_with_logits,
    linear_weighted_bce_with_logits,
    multilabel_loss_with_logits,
    weighted_bce_with_logits,
)
from weighted_bce.losses import Loss

from .comparison import check, outcome
from .truth import INPUT_DTYPES, REDUCTIONS, Case, labels, logits, options_of, positives_of, terms

LOSSES = (
    *(BCE(), Focal(), Focal(0.0), Focal(0.5, 0.25), Focal(2.7, 1.0)),
    *(SquaredHinge(), Poly1(), Poly1(7.5), Hill(), Hill(2.0, -0.3, 0.5)),
    *(Asymmetric(), Asymmetric(2.7, 0.5, 0.2, True), Asymmetric(0.0, 2.0, 0.0, True)),
)
# What autograd has with .detach() is no derivative of the value.
DIFFERENTIABLE = [loss for loss in LOSSES if not getattr(loss, "detach_focus", False)]
INF = math.inf


def formula(loss: Any, x: Tensor, y: Tensor, pos_weight: float = 3.0) -> Tensor:
    """The loss of each element in the dtype of x, differentiable."""
    positive, negative = terms(loss)
    y = y.to(x.dtype)
    return pos_weight * y * positive.value(x) + (1 - y) * negative.value(x)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_slopes_and_curvatures_are_derivatives_of_values(loss: Any) -> None:
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64).requires_grad_()
    for term in terms(loss):
        first, second = term.slope(x), term.curvature(x)
        for function, derivative in ((term.value, first), (term.slope, second)):
            (expected,) = torch.autograd.grad(function(x).sum(), x)
            torch.testing.assert_close(derivative, expected, rtol=1e-11, atol=1e-14)


def forms(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Every form of target, each with other options, of few elements and of many."""
    for shape in ((8, 9), (33, 517)):
        x, hard = logits(*shape, dtype=dtype, device=device), labels(*shape, device=device)
        if dtype == torch.float64:
            x = x.clamp(-25, 25)  # far out, powers in float64 are no truth for it
        soft = labels(*shape, dtype=torch.float32, device=device)
        row, column = torch.rand(shape[1], device=device) * 3, torch.rand(shape[0], 1) + 0.5
        yield Case(x, soft, column.to(device), row, label_smoothing=0.125)
        yield Case(x, soft, pos_weight=3.0, ignore_index=0)
        ignored = torch.rand(shape, device=device) < 0.2
        yield Case(x, torch.where(ignored, -1, hard.long()), ignore_index=-1)
        yield Case(x.t(), hard.t())
        for k, options in enumerate(options_of(*shape, device)):
            for sparse in (None, (torch.int64, torch.int32)[k % 2]):
                yield Case(x, hard, sparse=sparse, **options)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_and_gradient(device: str, chosen: str, loss: Any, dtype: torch.dtype) -> None:
    for case in forms(device, dtype):
        for reduction, grad_output in zip(REDUCTIONS, (3.0, 1.0, -2.5, 0.0), strict=True):
            case = replace(case, reduction=reduction, loss=loss)
            check(case, grad_output=grad_output)


@pytest.mark.parametrize(
    ("loss", "smoothing", "rtol"), [(BCE(), 0.1, 0), (Focal(0.0), 0.0, 1e-6)], ids=str
)
def test_bce_is_weighted_bce(device: str, loss: Any, smoothing: float, rtol: float) -> None:
    x, y = logits(9, 40, device=device), labels(9, 40, device=device)
    options: dict[str, Any] = dict(pos_weight=7.0, label_smoothing=smoothing, reduction="sum")
    for target in (y, y.float(), positives_of(y)):
        actual = outcome(lambda x, y=target: multilabel_loss_with_logits(x, y, loss, **options), x)
        expected = outcome(partial(weighted_bce_with_logits, target=target, **options), x)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("loss", DIFFERENTIABLE, ids=str)
def test_derivatives_of_all_orders(device: str, loss: Any, reduction: str) -> None:
    x = (logits(4, 5, dtype=torch.float64, device=device) / 3).requires_grad_()
    soft, weight, p = torch.rand(3, 4, 5, dtype=torch.float64, device=device)
    hard = labels(4, 5, device=device)
    weight, p = weight[0].requires_grad_(), (p[:, :1] + 1).requires_grad_()

    def function(x: Tensor, y: Any, w: Tensor | None = None, p: Any = 3.0) -> Tensor:
        return multilabel_loss_with_logits(x, y, loss, w, p, reduction)

    assert gradcheck(lambda x: function(x, soft), x, check_forward_ad=True)
    for target in (soft, positives_of(hard)):
        assert gradcheck(partial(function, y=target), x)
        assert gradgradcheck(partial(function, y=target), x)
    for target in (soft.requires_grad_(), hard.double().requires_grad_()):
        assert gradcheck(function, (x, target, weight, p))
        for given in (3.0, p.detach()):  # the gradient of the target alone
            assert gradcheck(lambda y, p=given: function(x.detach(), y, p=p), target)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_transforms(device: str, loss: Any) -> None:
    x = logits(6, 5, dtype=torch.float64, device=device) / 3
    y = labels(6, 5, device=device)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, y, loss, pos_weight=3.0)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return formula(loss, x, y).mean()

    def per_row(function: Callable[..., Tensor]) -> Any:
        return torch.vmap(torch.func.grad_and_value(function))(x, y)

    def along(function: Callable[..., Tensor]) -> Any:
        return torch.func.jvp(lambda x: function(x, y), (x,), (torch.ones_like(x),))

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
    expected = multilabel_loss_with_logits(x, y, Focal(1.5), pos_weight=3.0, reduction="sum")
    torch.testing.assert_close(criterion.to(device)(x, y), expected)

    torch.manual_seed(0)
    linear = LinearMultilabelLoss(12, 40, BCE(), pos_weight=3.0, chunk_labels=16)
    torch.manual_seed(0)
    other = LinearWeightedBCEWithLogitsLoss(12, 40, pos_weight=3.0, chunk_labels=16)
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
        (lambda: Poly1(INF), ValueError, "epsilon must be a finite number, got inf"),
        (lambda: Poly1(None), TypeError, "epsilon must be a number, got NoneType"),
        (lambda: Hill(math.nan), ValueError, "lam must be a finite number, got nan"),
        (lambda: Hill(margin=INF), ValueError, "margin must be a finite number, got inf"),
        (lambda: Hill(gamma=-1), ValueError, "gamma must be a finite number >= 0, got -1"),
        (lambda: Asymmetric(-1), ValueError, "gamma_neg must be a finite number >= 0, got -1"),
        (lambda: Asymmetric(0, INF), ValueError, "gamma_pos must be a finite number >= 0, got inf"),
        (lambda: Asymmetric(clip=1.0), ValueError, r"clip must be in \[0, 1\), got 1.0"),
        (lambda: Asymmetric(clip=None), TypeError, "clip must be a number, got NoneType"),
        (lambda: Asymmetric(detach_focus=1), TypeError, "detach_focus must be a bool, got int"),
        (lambda: Focal(2.0, "a"), TypeError, "alpha must be a number or None, got str"),
    ],
)
def test_wrong_parameters(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("wrong", [None, "focal", Focal, 2.0, Loss()])
def test_unknown_losses(wrong: Any) -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    words = r"loss must be BCE\(\).* or \w+\(\), got"
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
    weighted_bce_with_logits(seen, y)
    multilabel_loss_with_logits(seen, y, Focal(), reduction="sum")
    linear_multilabel_loss_with_logits(seen, torch.zeros(3, 3), y, Focal(), chunk_labels=2)
    linear_weighted_bce_with_logits(seen, torch.zeros(3, 3), y)
    functions = [function for function, *_ in Seen.calls]
    assert functions == [
        weighted_bce_with_logits,
        multilabel_loss_with_logits,
        linear_multilabel_loss_with_logits,
        linear_weighted_bce_with_logits,
    ]
    assert Seen.calls[1][1] == (None, None, "sum")
    assert Seen.calls[2][1] == (Focal(),)
    assert Seen.calls[2][2]["chunk_labels"] == 2
