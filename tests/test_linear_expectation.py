"""A linear layer's loss makes gradients in its forward pass where they will be right.

The tests count products of matrices: three for a loss with its gradients, and one for a loss alone.
"""

import gc
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import parametrizations

from weighted_bce import LinearWeightedBCEWithLogitsLoss, linear_weighted_bce_with_logits
from weighted_bce.linear import _expectation, _passes

from .linear_cases import DTYPES, FEATURES, LABELS, ROWS, base

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK, ALONE, WRONG = 3, 4, 6  # products of a forward and a backward pass


class Passes:
    """The passes over all chunks that were made, and the gradients of the weight from them."""

    def __init__(self) -> None:
        self.with_gradients = self.alone = self.most_held = 0
        self._gradients: list[Any] = []

    def products(self) -> int:
        """Returns the number of products since the last call."""
        products = 3 * self.with_gradients + self.alone
        self.with_gradients = self.alone = 0
        return products

    def made(self, gradient: Tensor | None) -> None:
        self.with_gradients += 1
        if gradient is not None:
            self._gradients.append(weakref.ref(gradient))

    def gradients_held(self) -> int:
        return sum(gradient() is not None for gradient in self._gradients)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    seen, loss, both = Passes(), _passes.loss, _passes.loss_and_gradients

    def counted_loss(*args: Any) -> Tensor:
        seen.alone += 1
        return loss(*args)

    def counted_both(*args: Any) -> Any:
        seen.most_held = max(seen.most_held, seen.gradients_held())
        result = both(*args)
        seen.made(result[1].weight)
        return result

    monkeypatch.setattr(_passes, "loss", counted_loss)
    monkeypatch.setattr(_passes, "loss_and_gradients", counted_both)
    return seen


def criterion_on(device: str = "cpu") -> LinearWeightedBCEWithLogitsLoss:
    return LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, chunk_labels=64, device=device)


def batch(device: str = "cpu") -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, FEATURES, device=device, requires_grad=True)
    return x, torch.rand(ROWS, LABELS, device=device) < 0.1


def steps(passes: Passes, criterion: nn.Module, factors: Iterable[float], **how: Any) -> list[int]:
    """Returns the products of each of several steps that multiply the loss by a factor."""
    x, y = batch(next(criterion.parameters()).device.type)
    passes.products()
    each = []
    for factor in factors:
        (criterion(x, y) * factor).backward(**how)
        each.append(passes.products())
    return each


def test_a_factor_that_differs_in_each_step(device: str, passes: Passes) -> None:
    """A learned scale, or a divisor such as the number of items of a batch."""
    factors = [1 + i / 7 for i in range(1, 9)]
    assert steps(passes, criterion_on(device), factors) == [WRONG] * 2 + [ALONE] * 6


def test_wrong_gradients_are_dropped_before_there_are_others(passes: Passes) -> None:
    assert steps(passes, criterion_on(), [2]) == [WRONG]
    assert passes.most_held == 0


def test_the_quick_way_comes_back(passes: Passes) -> None:
    factors = [2, 3, 4, *[5] * 7]
    wanted = [WRONG, WRONG, ALONE, ALONE, *[ALONE] * 4, QUICK, QUICK]
    criterion = criterion_on()
    assert steps(passes, criterion, factors) == wanted
    assert steps(passes, criterion, factors) == wanted


def test_accumulation_with_a_divisor_that_differs_stays_quick(passes: Passes) -> None:
    divisors = [d for d in range(2, 22) for _ in range(4)]
    products = steps(passes, criterion_on(), [1 / d for d in divisors])
    assert products == [WRONG, QUICK, QUICK, QUICK] * 20


def test_a_loss_scale_that_doubles_is_wrong_once(passes: Passes) -> None:
    criterion, (x, y) = criterion_on(), batch()
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    products = []
    for _ in range(9):
        optimizer.zero_grad()
        scaler.scale(criterion(x, y)).backward()
        scaler.step(optimizer)
        scaler.update()
        products.append(passes.products())
    assert products == [WRONG, QUICK, QUICK] * 3


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_a_factor_that_says_nothing_about_the_next(passes: Passes, factor: float) -> None:
    """Not even many of them end the quick way; each needs gradients of its own."""
    products = steps(passes, criterion_on(), [2, 2, *[factor] * 5, 2])
    assert products == [WRONG, QUICK, *[WRONG] * 5, QUICK]


def test_criteria_of_one_shape_have_their_own_factors(passes: Passes) -> None:
    both, (x, y) = (criterion_on(), criterion_on()), batch()
    products = []
    for _ in range(4):
        for criterion, factor in zip(both, (2, 3), strict=True):
            (criterion(x, y) * factor).backward()
            products.append(passes.products())
    assert products == [WRONG, WRONG] + [QUICK] * 6


@pytest.mark.parametrize("is_module", [True, False])
def test_lines_have_their_own_factors(passes: Passes, is_module: bool) -> None:
    criterion, (x, y) = criterion_on(), batch()
    weight = criterion.linear.weight

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        one = linear_weighted_bce_with_logits(x, weight, y, chunk_labels=64) * 2
        one.backward()
        return one, linear_weighted_bce_with_logits(x, weight, y, chunk_labels=64) * 3

    def module(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        one = criterion(x, y) * 2
        one.backward()
        return one, criterion(x, y) * 3

    products = []
    for _ in range(3):
        _, other = (module if is_module else function)(x, y)
        other.backward()
        products.append(passes.products())
    assert products == [2 * WRONG, 2 * QUICK, 2 * QUICK]


def test_weights_that_are_new_in_each_step_learn(passes: Passes) -> None:
    """A parametrized weight is the result of an operation, and others are new leaves."""
    parametrized = criterion_on()
    parametrizations.weight_norm(parametrized.linear)
    assert steps(passes, parametrized, [2] * 3) == [WRONG, QUICK, QUICK]
    _expectation._of_kinds.clear()
    products, (x, y) = [], batch()
    for _ in range(3):
        weight = torch.randn(LABELS, FEATURES, requires_grad=True)
        (linear_weighted_bce_with_logits(x, weight, y, chunk_labels=64) * 2).backward()
        products.append(passes.products())
    assert products == [WRONG, QUICK, QUICK]


def test_a_weight_may_change_its_dtype(passes: Passes) -> None:
    criterion, (x, y) = criterion_on(), batch()
    for _ in range(2):
        (criterion(x, y) * 2).backward()
    criterion.double()
    weight = criterion.linear.weight
    passes.products()
    (criterion(x.double(), y) * 2).backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float64
    assert passes.products() == WRONG


def test_second_derivatives_end_the_quick_way(passes: Passes) -> None:
    """They need all logits, so that gradients in advance would be for nothing."""
    criterion, (x, y) = criterion_on(), batch()
    products = []
    for _ in range(4):
        (grad,) = torch.autograd.grad(criterion(x, y), x, create_graph=True)
        grad.square().sum().backward()
        products.append(passes.products())
    assert products == [3, 3, 1, 1]


def test_a_graph_that_is_kept(passes: Passes) -> None:
    """Its first backward pass is what the forward pass prepares."""
    criterion, (x, y) = criterion_on(), batch()
    weight = criterion.linear.weight
    for step in range(3):
        loss = criterion(x, y)
        grads = [
            torch.autograd.grad(loss, weight, torch.tensor(factor), retain_graph=True)[0]
            for factor in (2.0, 8.0, 2.0)
        ]
        assert passes.products() == (12 if step == 0 else 9)
        assert torch.equal(grads[0], grads[2])
        assert torch.equal(grads[0] * 4, grads[1])


def test_losses_that_are_summed_hold_one_gradient(device: str, passes: Passes) -> None:
    criterion = criterion_on(device)
    batches = [batch(device) for _ in range(8)]
    for step in range(3):
        losses = [criterion(x, y) for x, y in batches]
        assert (passes.with_gradients, passes.alone, passes.gradients_held()) == (1, 7, 1)
        (sum(losses) / 8).backward()
        # Seven made gradients in backward, and the first one too as long as 1 was expected.
        assert passes.with_gradients == (9 if step == 0 else 8)
        passes.products()
        criterion.zero_grad()
        del losses


def test_all_lines_of_a_weight_hold_one_gradient(passes: Passes) -> None:
    one, other, (x, y) = criterion_on(), criterion_on(), batch()
    losses = [one(x, y), one(x, y), other(x, y)]
    assert passes.gradients_held() == 2  # the other weight has its own
    one.linear.weight = other.linear.weight  # tied
    losses.append(one(x, y))
    assert passes.gradients_held() == 2
    del losses
    gc.collect()
    assert passes.gradients_held() == 0
    one(x, y).backward()
    assert passes.products() == 3 + 1 + 3 + 1 + QUICK


def test_losses_that_are_kept_hold_one_gradient_and_the_quick_way_stays(passes: Passes) -> None:
    """Losses without a backward pass: one stops the next one alone from making gradients."""
    criterion, (x, y) = criterion_on(), batch()
    kept, products = [], []
    for _ in range(4):
        kept += [criterion(x, y) for _ in range(3)]
        assert passes.gradients_held() == 1
        passes.products()
        for _ in range(3):
            criterion.zero_grad()
            criterion(x, y).backward()
            products.append(passes.products())
            x.grad = criterion.linear.bias.grad = None
    # The first step goes by the loss that waits; the second takes its gradient away.
    assert products == [ALONE, QUICK, QUICK] * 4
    kept[0].backward()
    assert passes.products() == 3
    assert criterion.linear.weight.grad is not None


def test_a_loss_that_was_passed_by_is_right(passes: Passes) -> None:
    criterion, (x, y) = criterion_on(), batch()
    weight = criterion.linear.weight
    first, second = criterion(x, y), criterion(x, y)
    wanted = torch.autograd.grad(second, weight)[0]
    third = criterion(x, y)  # takes away what the first has
    for loss in (first, third):
        assert torch.equal(torch.autograd.grad(loss, weight)[0], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_however_they_are_made(
    device: str, dtype: torch.dtype, passes: Passes
) -> None:
    case = base(dtype, device, pos_weight=3.0)
    leaves = case.leaves()
    seen = {}
    for factor in (0.3, 0.3, 5.0, 6.0, 0.3, 0.3):
        passes.products()
        loss = case(*leaves)
        grads = torch.autograd.grad(loss, leaves, torch.full_like(loss, factor))
        if factor == 0.3:
            seen.setdefault(passes.products(), (loss.detach(), *grads))
    assert set(seen) == {QUICK, ALONE, WRONG}
    for results in seen.values():
        assert all(map(torch.equal, results, seen[QUICK]))


def test_a_gpu_is_rarely_waited_for_where_the_loss_is_alone(
    device: str, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = criterion_on(device)
    assert steps(passes, criterion, [2, 3, 4])[-1] == ALONE
    compared, item = [0], Tensor.item

    def counted(tensor: Tensor) -> Any:
        compared[0] += 1
        return item(tensor)

    monkeypatch.setattr(Tensor, "item", counted)
    monkeypatch.setattr(Tensor, "is_cpu", False)  # tensors as those of a GPU
    every = _expectation._PASSES_PER_LOOK
    assert every >= 7
    assert steps(passes, criterion, [4] * 3 * every) == [ALONE] * 3 * every
    assert compared[0] == 2 * 3  # what came, and what was expected
    # The next one that is compared is the fourth that would have been right.
    assert steps(passes, criterion, [4] * every)[-1] == ALONE
    assert steps(passes, criterion, [4, 4, 5, 6]) == [QUICK, QUICK, WRONG, WRONG]
    # Three of four would be right, whichever are compared.
    divisors = [d for d in range(2, 32) for _ in range(4)]
    assert steps(passes, criterion, divisors)[-3:] == [QUICK] * 3


def test_nothing_keeps_weights_or_code_alive() -> None:
    criterion, (x, y) = criterion_on(), batch()
    names: dict[str, Any] = {}
    exec("def step(criterion, x, y): (criterion(x, y) * 2).backward()", names)
    names["step"](criterion, x, y)
    gc.collect()  # of other tests
    known = len(_expectation._of_weights)
    things = weakref.ref(criterion.linear.weight), weakref.ref(names["step"].__code__)
    del criterion, names
    gc.collect()
    assert [thing() for thing in things] == [None, None]
    assert len(_expectation._of_weights) == known - 1


def test_what_is_known_is_bounded(passes: Passes) -> None:
    criterion, (x, y) = criterion_on(), batch()
    most = _expectation._MOST_ENTRIES
    for i in range(most + 20):
        names: dict[str, Any] = {}
        exec(f"def step_{i}(criterion, x, y): criterion(x, y).backward()", names)
        names[f"step_{i}"](criterion, x, y)
        weight = torch.randn(i + 1, FEATURES, requires_grad=True)
        linear_weighted_bce_with_logits(x, weight, y[:, : i + 1], chunk_labels=64).backward()
    tables = [*_expectation._of_kinds.values(), _expectation._of_weights[criterion.linear.weight]]
    assert len(_expectation._of_kinds) == most
    assert max(len(losses.expectations) for losses in tables) == most
    assert steps(passes, criterion, [2, 2]) == [WRONG, QUICK]


@pytest.mark.parametrize("shared", [True, False])
def test_threads(shared: bool) -> None:
    """Each has its own factor, of a weight of its own or of one for all."""
    first = criterion_on()
    x, y = batch()

    def run(factor: float) -> bool:
        criterion = first if shared else criterion_on()
        weight = criterion.linear.weight
        with torch.no_grad():
            for parameter, value in zip(criterion.parameters(), first.parameters(), strict=True):
                if parameter is not value:
                    parameter.copy_(value)
        grads = [torch.autograd.grad(criterion(x, y) * factor, weight)[0] for _ in range(30)]
        return all(torch.equal(grad, wanted * factor) for grad in grads)

    wanted = torch.autograd.grad(first(x, y), first.linear.weight)[0]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, [1.0, 2.0, 4.0, 8.0]))
