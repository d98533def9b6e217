"""A normalizer is what a sum is divided by, in the same pass and with the same expectations."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from weighted_bce import (
    BCE,
    Asymmetric,
    AsymmetricLoss,
    FusedSGD,
    Hill,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    SparseLabels,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    backend,
    linear_weighted_bce_with_logits,
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)
from weighted_bce import _eager as eager

from .linear_cases import assert_all_near, base
from .truth import INPUT_DTYPES, labels, logits
from .ways import WAYS, assert_right, in_each_way, one_case, with_options

ITEMS = torch.tensor(40)
GIVEN = (40.0, 40, ITEMS, ITEMS.double(), ITEMS.half())


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@in_each_way
def test_numbers_and_tensors(way: str, dtype: torch.dtype, chosen: str) -> None:
    for given in GIVEN:
        for options in ({}, {"reduction": "sum"}, {"ignore_index": 0}, {"label_smoothing": 0.1}):
            case = one_case(way, dtype=dtype, **options)
            with backend(chosen):
                assert_right(with_options(case, normalizer=given), -2.5)


@in_each_way
def test_where_nothing_counts(way: str) -> None:
    """A normalizer of 0 is that of a step without items."""
    for given in (0, torch.tensor(0)):
        for chosen in ("auto", "reference"):
            with backend(chosen):
                loss, *grads = assert_right(with_options(one_case(way), normalizer=given))
            assert loss == 0
            assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_a_batch_without_elements(device: str, chosen: str) -> None:
    """The last micro-batch may have no rows, and a step no items: that is 0, not 0 / 0."""
    rows = torch.empty(0, 5, device=device, requires_grad=True)
    weight = torch.ones(3, 5, device=device, requires_grad=True)
    for target in (torch.empty(0, 3), SparseLabels.from_lists([])):
        for given in (0, 2.0, torch.tensor(0), torch.tensor(0.0, device=device)):
            with backend(chosen):
                y = target.to(device)
                losses = (
                    weighted_bce_with_logits(rows[:, :3], y, normalizer=given),
                    weighted_bce(rows[:, :3], y, normalizer=given),
                    linear_weighted_bce_with_logits(rows, weight, y, normalizer=given),
                )
                assert losses == (0, 0, 0)
                grads = torch.autograd.grad(losses, (rows, weight))
                assert not any(grad.any() for grad in grads)


def counted(monkeypatch: pytest.MonkeyPatch, way: str) -> Callable[[], int]:
    """Returns a function that tells how often a backward pass has computed gradients again."""
    times = []
    if "linear" in way:
        from weighted_bce.linear import _passes as module

        name = "loss_and_gradients"
    else:
        module, name = eager.ops, "update_grad_"
    real = getattr(module, name)

    def recomputed(*args: Any) -> Any:
        times.append(1)
        return real(*args)

    recomputed.default = recomputed  # type: ignore[attr-defined]
    monkeypatch.setattr(module, name, recomputed)
    return lambda: len(times)


@in_each_way
def test_no_expectation_fails(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Each step has another normalizer, and its gradient is still made in the forward pass."""
    case = one_case(way, pos_weight=2.75)
    passes = counted(monkeypatch, way)
    for step in range(1, 6):
        given = with_options(case, normalizer=10.0 + step)
        assert_right(given)
        assert passes() == (step if "linear" in way else 0)


@in_each_way
def test_micro_batches_add_up_to_the_large_batch(way: str) -> None:
    """The micro-batches have different numbers of rows, and of ignored elements."""
    case = one_case(way, ignore_index=0 if "sparse" in way else 1)
    target = case.given
    leaf, *layer = (t.requires_grad_() for t in (case.layer if "linear" in way else (case.input,)))
    loss = linear_weighted_bce_with_logits if "linear" in way else weighted_bce_with_logits
    ignored = case.ignore_index if "linear" not in way else case.options["ignore_index"]

    def part(begin: int, end: int, **options: Any) -> Tensor:
        rows = slice(begin, end)
        y = target.select(rows) if isinstance(target, SparseLabels) else target[rows]
        arguments = (leaf[rows], *layer[:1], y)
        options = {"linear_bias": layer[1], **options} if layer else options
        return loss(*arguments, pos_weight=3.0, ignore_index=ignored, **options)

    whole = part(0, 7)
    wanted = torch.autograd.grad(whole, (leaf, *layer))
    items = int((case.target[:7] != ignored).sum())
    for cuts in ((0, 1, 4, 7), (0, 7)):
        total = torch.zeros(())
        for begin, end in pairwise(cuts):
            one = part(begin, end, normalizer=items)
            one.backward()
            total += one.detach()
        torch.testing.assert_close(total, whole.detach())
        assert_all_near([leaf.grad, *(t.grad for t in layer)], wanted, 1e-5)
        leaf.grad = None
        for t in layer:
            t.grad = None


@pytest.mark.parametrize("way", WAYS[:2])
def test_in_place(way: str) -> None:
    case = one_case(way, normalizer=torch.tensor(7))
    ordinary, in_place = (case.input.clone().requires_grad_() for _ in range(2))
    case(ordinary).backward()
    case(in_place * 1, inplace_backward=True).backward()
    assert torch.equal(in_place.grad, ordinary.grad)


@in_each_way
def test_compiled_once_for_all_numbers(way: str) -> None:
    for kind in (float, torch.tensor):
        counter = CompileCounter()
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda case, n: with_options(case, normalizer=n)(), backend=counter, fullgraph=True
        )
        case = one_case(way)
        for n in (10.0, 11.0, 12.0, 13.0):
            torch.testing.assert_close(compiled(case, kind(n)), with_options(case, normalizer=n)())
        assert counter.frame_count <= 2


def test_transforms() -> None:
    x, y = logits(4, 3, 5, dtype=torch.float64), labels(4, 3, 5)
    n = torch.tensor([3.0, 0.0, 2.0, 9.0], dtype=torch.float64)

    def loss(x: Tensor, y: Tensor, n: Any) -> Tensor:
        return weighted_bce_with_logits(x, y, pos_weight=3.0, normalizer=n)

    for each, dim in ((n, 0), (torch.tensor(5), None), (2.0, None)):
        for function in (loss, torch.func.grad(loss)):
            mapped = torch.vmap(function, (0, 0, dim))(x, y, each)
            numbers = [each] * 4 if dim is None else each
            alone = [function(*sample) for sample in zip(x, y, numbers, strict=True)]
            torch.testing.assert_close(mapped, torch.stack(alone))
    _, tangent = torch.func.jvp(lambda x: loss(x, y, n[0]), (x,), (x,))
    torch.testing.assert_close(tangent, (torch.func.grad(loss)(x, y, n[0]) * x).sum())
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, y, 7), leaf)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y, 7), leaf)
    given = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, n: loss(x, y, n), (leaf, given))


def test_probabilities() -> None:
    x, y = torch.rand(3, 5), labels(3, 5)
    wanted = weighted_bce(x, y, pos_weight=3.0, reduction="sum") / 4
    assert torch.equal(weighted_bce(x, y, pos_weight=3.0, normalizer=4), wanted)


def test_a_fused_step() -> None:
    """The gradient of the weight is made when the optimizer takes its step."""
    case = base()
    weights = []
    for options in ({"normalizer": torch.tensor(30)}, {"reduction": "sum"}):
        weight = case.linear_weight.clone().requires_grad_()
        optimizer = FusedSGD([weight], lr=1.0 if "normalizer" in options else 1 / 30)
        loss = linear_weighted_bce_with_logits(
            case.input, weight, case.given, fused_step=optimizer, chunk_labels=64, **options
        )
        loss.backward()
        optimizer.step()
        weights.append(weight.detach())
    assert_all_near(weights[:1], weights[1:], 1e-6)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("1", TypeError, "normalizer must be a number, a 0-d torch.Tensor or None, got str"),
        (True, TypeError, "normalizer must be a number, a 0-d torch.Tensor or None, got bool"),
        (-1, ValueError, "normalizer must be a finite number >= 0, got -1"),
        (math.nan, ValueError, "normalizer must be a finite number >= 0, got nan"),
        (math.inf, ValueError, "normalizer must be a finite number >= 0, got inf"),
        (torch.ones(1), ValueError, r"normalizer must be 0-d, got shape \(1,\)"),
        (torch.tensor(True), TypeError, "normalizer must have an integer or floating dtype, got"),
        (torch.tensor(1j), TypeError, "normalizer must have an integer or floating dtype, got"),
        (torch.tensor(-2), ValueError, "normalizer must be >= 0, got -2"),
        (torch.tensor(math.nan), ValueError, "normalizer must be >= 0, got nan"),
        (torch.ones((), device="meta"), ValueError, "normalizer must be on cpu like input or on c"),
    ],
)
@in_each_way
def test_wrong_normalizers(way: str, given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        with_options(one_case(way), normalizer=given)()


@in_each_way
def test_reductions_that_take_none(way: str) -> None:
    named = {"batchmean": "'batchmean'", "none": "'none' or a callable"}
    for reduction, got in named.items():
        with pytest.raises(ValueError, match=f"needs reduction 'mean' or 'sum', got {got}"):
            with_options(one_case(way, reduction=reduction), normalizer=1)()


@pytest.mark.parametrize("has_hook", [False, True])
def test_modules(has_hook: bool) -> None:
    """A linear layer with a hook computes all of its logits."""
    x, y, features = logits(4, 5), labels(4, 5), torch.randn(4, 3)
    probabilities = x.sigmoid()
    for criterion, input, loss in (
        (WeightedBCEWithLogitsLoss(), x, weighted_bce_with_logits),
        (MultilabelLoss(Hill()), x, partial(multilabel_loss_with_logits, loss=Hill())),
        (AsymmetricLoss(), x, partial(multilabel_loss_with_logits, loss=Asymmetric())),
        (WeightedBCELoss(), probabilities, weighted_bce),
    ):
        for given in (3, torch.tensor(3)):
            wanted = loss(input, target=y, reduction="sum") / 3
            torch.testing.assert_close(criterion(input, y, normalizer=given), wanted)
    for layer, kind in (
        (LinearWeightedBCEWithLogitsLoss(3, 5), BCE()),
        (LinearMultilabelLoss(3, 5, Hill()), Hill()),
    ):
        if has_hook:
            layer.linear.register_forward_hook(lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = layer(features, y, normalizer=3)
        wanted = multilabel_loss_with_logits(layer.linear(features), y, kind, reduction="sum") / 3
        torch.testing.assert_close(loss, wanted)


def test_a_size_of_an_exported_program() -> None:
    """An export passes the sizes that may change as torch.SymInt."""

    class PerRow(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return weighted_bce_with_logits(x, y, normalizer=x.shape[0])

    sizes = {0: torch.export.Dim("rows")}
    program = torch.export.export(
        PerRow(), (logits(4, 5), labels(4, 5)), dynamic_shapes=(sizes,) * 2
    )
    x, y = logits(7, 5), labels(7, 5)
    loss = weighted_bce_with_logits(x, y, reduction="sum") / 7
    torch.testing.assert_close(program.module()(x, y), loss)
