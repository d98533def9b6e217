"""Whatever a trainer does with a deferred gradient, the weights end where the ordinary ones do."""

import copy
import ctypes
import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss
from weighted_bce.linear._deferred import DeferredGrad

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, FEATURES, LABELS = 7, 12, 150
Situation = Callable[[Any, Optimizer], object]


def criterion(device: str = "cpu", **options: Any) -> Any:
    torch.manual_seed(0)
    made = LinearWeightedBCEWithLogitsLoss(
        FEATURES, LABELS, pos_weight=3.0, chunk_labels=40, device=device, **options
    )
    return made


def batch(model: Any, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    device = model.linear.weight.device
    return torch.randn(rows, FEATURES, device=device), torch.rand(rows, LABELS, device=device) < 0.1


def step(model: Any, optimizer: Optimizer, *losses: Tensor) -> None:
    for loss in losses:
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def asks_for_the_gradient_of_the_input(model: Any, optimizer: Optimizer) -> Tensor:
    x, y = batch(model)
    x.requires_grad_()
    model.eval()
    (grad,) = torch.autograd.grad(model(x, y), x)
    model(x, y).backward(inputs=[x])
    assert model.linear.weight.grad is None
    optimizer.step()
    model.train()
    step(model, optimizer, model(x + 0.1 * grad.sign(), y))
    return grad


def asks_for_the_gradient_of_the_weight(model: Any, optimizer: Optimizer) -> Tensor:
    x, y = batch(model)
    (grad,) = torch.autograd.grad(model(x, y), model.linear.weight)
    step(model, optimizer, model(x, y))
    return grad


def asks_for_the_gradient_of_the_bias(model: Any, optimizer: Optimizer) -> None:
    x, y = batch(model)
    model(x, y).backward(inputs=[model.linear.bias])
    step(model, optimizer)


def freezes_the_weight(model: Any, optimizer: Optimizer) -> None:
    model.linear.weight.requires_grad_(False)
    step(model, optimizer, model(*batch(model)))
    model.linear.weight.requires_grad_(True)
    model.linear.bias.requires_grad_(False)
    step(model, optimizer, model(*batch(model)))


def calls_twice_in_one_loss(model: Any, optimizer: Optimizer) -> None:
    step(model, optimizer, model(*batch(model)) + 2 * model(*batch(model, 5)))


def accumulates(model: Any, optimizer: Optimizer) -> None:
    step(model, optimizer, *(model(*batch(model, rows)) for rows in (7, 3, 0, 5)))


def accumulates_a_kept_graph(model: Any, optimizer: Optimizer) -> None:
    loss = model(*batch(model))
    loss.backward(retain_graph=True)
    step(model, optimizer, 2 * loss)


def penalises_the_weight(model: Any, optimizer: Optimizer) -> None:
    def penalty() -> Tensor:
        return model.linear.weight.square().sum() + model.linear.bias.abs().sum()

    step(model, optimizer, model(*batch(model)) + 0.1 * penalty())
    step(model, optimizer, 0.1 * penalty(), model(*batch(model)))
    step(model, optimizer, model(*batch(model)), 0.1 * penalty())


def ties_the_weight_to_an_embedding(model: Any, optimizer: Optimizer) -> None:
    x, y = batch(model)
    step(model, optimizer, model(x + F.embedding(torch.arange(ROWS), model.linear.weight), y))


def takes_rows_of_the_weight_as_the_input(model: Any, optimizer: Optimizer) -> None:
    _, y = batch(model)
    step(model, optimizer, 100 * model(model.linear.weight[:ROWS], y))
    step(model, optimizer, 100 * model(model.linear.weight.detach()[:ROWS], y))


def ties_the_weight_to_a_sparse_embedding(model: Any, optimizer: Optimizer) -> None:
    def sparse() -> Tensor:
        return F.embedding(torch.arange(ROWS), model.linear.weight, sparse=True)

    x, y = batch(model)
    step(model, optimizer, model(x + sparse(), y))
    step(model, optimizer, model(x, y), sparse().square().mean())
    step(model, optimizer, sparse().square().mean(), model(x, y))


def clips_by_the_norm(model: Any, optimizer: Optimizer) -> list[Tensor]:
    norms = []
    for options in ({}, {"norm_type": torch.inf}, {"norm_type": 1.0, "foreach": False}):
        model(*batch(model)).backward()
        norms.append(clip_grad_norm_(model.parameters(), 1e-3, **options))
        step(model, optimizer)
    return norms


def clips_by_value(model: Any, optimizer: Optimizer) -> None:
    model(*batch(model)).backward()
    clip_grad_value_(model.parameters(), 1e-4)
    step(model, optimizer)


def has_hooks(model: Any, optimizer: Optimizer) -> list[Tensor]:
    seen: list[Tensor] = []
    weight = model.linear.weight
    handles = [
        weight.register_hook(lambda grad: 2 * grad),
        weight.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3)),
        weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.abs().sum())),
    ]
    step(model, optimizer, model(*batch(model)))
    for handle in handles:
        handle.remove()
    return seen


def zeroes_in_place(model: Any, optimizer: Optimizer) -> None:
    model(*batch(model)).backward()
    optimizer.zero_grad(set_to_none=False)
    model(*batch(model)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def forgets_what_was_before(model: Any, optimizer: Optimizer) -> None:
    model(*batch(model)).backward()
    model.zero_grad()
    step(model, optimizer, model(*batch(model)))


def uses_a_checkpoint(model: Any, optimizer: Optimizer) -> None:
    for reentrant in (False, True):
        x, y = batch(model)
        step(model, optimizer, checkpoint(model, x.requires_grad_(), y, use_reentrant=reentrant))


def uses_a_selective_checkpoint(model: Any, optimizer: Optimizer) -> None:
    """The results of products are kept, over which the chunks would write."""

    def keep_products(context: Any, operator: Any, *_: Any, **options: Any) -> CheckpointPolicy:
        is_product = "mm" in str(operator)
        return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, keep_products)
    x, y = batch(model)
    step(model, optimizer, checkpoint(model, x, y, use_reentrant=False, context_fn=contexts))


def takes_second_derivatives(model: Any, optimizer: Optimizer) -> None:
    x, y = batch(model)
    loss = model(x.requires_grad_(), y)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    step(model, optimizer, loss + grad.square().sum())


def uses_torch_func(model: Any, optimizer: Optimizer) -> Tensor:
    x, y = batch(model)
    grad: Tensor = torch.func.grad(lambda x: model(x, y))(x)
    return grad


def finds_anomalies(model: Any, optimizer: Optimizer) -> None:
    with torch.autograd.detect_anomaly(check_nan=True):
        step(model, optimizer, model(*batch(model)))


def changes_the_gradient(model: Any, optimizer: Optimizer) -> None:
    weight = model.linear.weight
    model(*batch(model)).backward()
    weight.grad = weight.grad * 0.5 + 1e-3 * weight.detach()
    weight.grad.data.div_(2)
    weight.grad[:3] = 0
    step(model, optimizer)


def sets_the_data_of_the_gradient(model: Any, optimizer: Optimizer) -> None:
    model(*batch(model)).backward()
    for parameter in model.parameters():
        parameter.grad.data /= 2
        parameter.grad.data = 1e-3 * parameter.grad.sign()
    step(model, optimizer)


def gives_each_row_a_loss(model: Any, optimizer: Optimizer) -> None:
    model.reduction = "none"
    losses = model(*batch(model))
    model.reduction = "mean"
    step(model, optimizer, losses @ torch.arange(-2.0, ROWS - 2, device=losses.device) / 100)


def uses_more_dimensions(model: Any, optimizer: Optimizer) -> None:
    x, y = batch(model, 6)
    step(model, optimizer, model(x.view(2, 3, FEATURES), y.view(2, 3, LABELS)))


def takes_another_optimizer(model: Any, optimizer: Optimizer) -> None:
    for kind in (Adam, AdamW, Adagrad):
        for options in ({"foreach": True}, {"foreach": False}):
            other = kind(model.parameters(), lr=0.01, weight_decay=0.1, **options)
            step(model, other, model(*batch(model)))


def takes_another_optimizer_with_a_closure(model: Any, optimizer: Optimizer) -> None:
    """Where the bias comes first, it changes before the gradient of the weight is computed."""
    others = [
        SGD([*model.parameters()][::-1], lr=0.01, foreach=False),
        Adam([*model.parameters()][::-1], lr=0.01, foreach=False),
        LBFGS(model.parameters(), lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    ]
    for other in others:
        x, y = batch(model)

        def closure(other: Optimizer = other, x: Tensor = x, y: Tensor = y) -> Any:
            other.zero_grad()
            loss = model(x, y)
            loss.backward()
            return loss

        other.step(closure=closure)
        other.zero_grad()


SITUATIONS = [
    asks_for_the_gradient_of_the_input,
    asks_for_the_gradient_of_the_weight,
    asks_for_the_gradient_of_the_bias,
    freezes_the_weight,
    calls_twice_in_one_loss,
    accumulates,
    accumulates_a_kept_graph,
    penalises_the_weight,
    ties_the_weight_to_an_embedding,
    takes_rows_of_the_weight_as_the_input,
    ties_the_weight_to_a_sparse_embedding,
    clips_by_the_norm,
    clips_by_value,
    has_hooks,
    zeroes_in_place,
    forgets_what_was_before,
    uses_a_checkpoint,
    uses_a_selective_checkpoint,
    takes_second_derivatives,
    uses_torch_func,
    finds_anomalies,
    changes_the_gradient,
    sets_the_data_of_the_gradient,
    gives_each_row_a_loss,
    uses_more_dimensions,
    takes_another_optimizer,
    takes_another_optimizer_with_a_closure,
]
# They need the whole gradient, which is made for them.
MAKE_THE_WHOLE = {
    asks_for_the_gradient_of_the_weight,
    ties_the_weight_to_a_sparse_embedding,
    clips_by_value,
    has_hooks,
    finds_anomalies,
    changes_the_gradient,
    sets_the_data_of_the_gradient,
    takes_another_optimizer,
    takes_another_optimizer_with_a_closure,
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ends_where_the_ordinary_optimizer_does(
    device: str, situation: Situation, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DeferredGrad] = []
    whole = DeferredGrad.whole
    monkeypatch.setattr(DeferredGrad, "whole", lambda grad: made.append(grad) or whole(grad))
    lr = 1.0 if reduction == "mean" else 1e-3
    ends: list[list[Any]] = []
    for kind in (SGD, FusedSGD):
        model = criterion(device, reduction=reduction)
        optimizer = kind(
            model.parameters(),
            lr=lr,
            momentum=0.9,
            **({"accumulate": 4} if kind is FusedSGD else {}),
        )
        model.fused_step = optimizer if kind is FusedSGD else None
        torch.manual_seed(1)
        result = situation(model, optimizer)
        before = criterion(device)
        if situation is not uses_torch_func:
            assert not torch.equal(model.linear.bias, before.linear.bias)
        ends.append([[p.detach() for p in model.parameters()], result])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
    assert bool(made) == (situation in MAKE_THE_WHOLE)


def waiting(**options: Any) -> tuple[Any, Tensor]:
    """Returns a criterion whose weight has a deferred gradient, and that gradient."""
    model = criterion(**options)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    x = x.to(model.linear.weight.dtype)
    (grad,) = torch.autograd.grad(model(x, y), model.linear.weight)
    model(x, y).backward()
    assert isinstance(model.linear.weight.grad, DeferredGrad)
    return model, grad


def multiply_lists(g: Tensor) -> Tensor:
    """Multiplies an ordinary tensor by the gradient, and the gradient by an ordinary tensor."""
    ones, twos = (torch.full((LABELS, FEATURES), number) for number in (1.0, 2.0))
    torch._foreach_mul_([ones, g], [g.clone(), twos])
    return torch.stack((ones, g))


OPERATIONS: list[Callable[[Tensor], Any]] = [
    lambda g: g + torch.ones_like(g),
    lambda g: torch.full_like(g, 2.0) + g,
    lambda g: torch.full((LABELS, FEATURES), 2.0).add_(g, alpha=0.5),
    lambda g: torch.add(torch.full((LABELS, FEATURES), 2.0), g, alpha=3),
    lambda g: g.add_(g, alpha=3),
    lambda g: (g + g.clone()) * 3,
    lambda g: torch.tensor(2.0) * g / 4,
    lambda g: g.mul_(torch.rand(FEATURES, generator=torch.Generator().manual_seed(0))),
    lambda g: g.mul(torch.full((1, 1), 3.0)).div_(torch.tensor([7.0])),
    lambda g: g.div(1e-3, rounding_mode="floor"),
    lambda g: torch.isfinite(g.div_(0)),
    lambda g: g.div(torch.ones(LABELS, FEATURES)),
    lambda g: (torch._foreach_div_([g], [torch.full((FEATURES,), 2.0)]), g)[1],
    lambda g: g * torch.ones(1, 1, 1),
    lambda g: g * torch.ones(1, dtype=torch.float64),
    lambda g: -g,
    lambda g: g.norm(),
    lambda g: g.norm(dim=1),
    lambda g: torch.linalg.vector_norm(g, 3.0),
    lambda g: torch.linalg.vector_norm(g, 0),
    lambda g: torch.linalg.vector_norm(g, dtype=torch.float64),
    lambda g: torch._foreach_norm([g, torch.ones(2)], 2.0),
    lambda g: torch._foreach_norm([g, torch.ones(2)], 1.0, torch.float64),
    lambda g: (torch._foreach_mul_([g, torch.ones(2)], [2.0, 3.0]), g)[1],
    lambda g: (torch._foreach_mul_([torch.ones(2), g], torch.tensor(2.0)), g)[1],
    lambda g: (torch._foreach_div_([g], 4.0), g)[1],
    lambda g: (torch._foreach_add_([g], [torch.ones(LABELS, FEATURES)]), g)[1],
    lambda g: torch._foreach_add([g], 1.0)[0],
    multiply_lists,
    lambda g: g.abs().max(),
    lambda g: g.double(),
    lambda g: g.t() @ g,
    lambda g: g.zero_(),
    lambda g: copy.deepcopy(g),
    lambda g: torch.isfinite(g),
    lambda g: torch.from_numpy(g.numpy()),
    lambda g: torch.from_dlpack(g),
    lambda g: torch.tensor(g.tolist()),
    lambda g: torch.tensor(g.untyped_storage().tolist()),
    lambda g: torch.tensor(ctypes.string_at(g.data_ptr(), g.nbytes)[0]),
    lambda g: g.apply_(lambda value: 2 * value),
    lambda g: g.share_memory_(),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation: Callable[[Tensor], Any]) -> None:
    model, grad = waiting()
    actual = operation(model.linear.weight.grad)
    actual = actual.whole() if isinstance(actual, DeferredGrad) else actual
    torch.testing.assert_close(actual, operation(grad.clone()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model, grad = waiting(dtype=dtype)
    deferred = model.linear.weight.grad
    assert torch.equal(deferred.clone().whole(), grad)
    norm = torch.linalg.vector_norm(deferred)
    assert norm.dtype == dtype
    torch.testing.assert_close(norm, torch.linalg.vector_norm(grad))


def test_it_is_a_tensor() -> None:
    model, grad = waiting()
    deferred = model.linear.weight.grad
    assert repr(deferred) == "DeferredGrad(shape=(150, 12), dtype=torch.float32)"
    assert (deferred.shape, deferred.dtype, deferred.device) == (
        grad.shape,
        grad.dtype,
        grad.device,
    )
    assert deferred.data_ptr() == deferred.whole().data_ptr()
    file = io.BytesIO()
    torch.save(deferred, file)
    file.seek(0)
    assert torch.equal(torch.load(file), grad)
    model.double()
    torch.testing.assert_close(model.linear.weight.grad, grad.double())
    assert model.linear.weight.grad.sum().dtype == torch.float64
    model.fused_step.step()


def test_another_backward_pass_needs_a_step() -> None:
    """It raises before anything has changed; asking for other gradients is no such pass."""
    model, _ = waiting()
    bias_grad = model.linear.bias.grad.clone()
    x, y = batch(model)
    torch.autograd.grad(model(x.requires_grad_(), y), x)
    message = "fused_step must take a step() after 1 backward pass, as its argument accumulate says"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        model(x, y).backward()
    assert x.grad is None
    assert torch.equal(model.linear.bias.grad, bias_grad)
    model.fused_step.step()
    model(x, y).backward()
    assert torch.equal(
        model.linear.bias.grad, torch.autograd.grad(model(x, y), model.linear.bias)[0]
    )


def test_as_many_backward_passes_as_announced() -> None:
    """Two calls in one loss are one pass."""
    model = criterion()
    model.fused_step = FusedSGD(model.parameters(), lr=1.0, accumulate=2)
    for _ in range(2):
        for _ in range(2):
            (model(*batch(model)) + model(*batch(model))).backward()
        with pytest.raises(
            RuntimeError, match="must take a step\\(\\) after 2 backward passes, as"
        ):
            model(*batch(model)).backward()
        model.fused_step.step()


def test_a_second_step_changes_nothing() -> None:
    model, _ = waiting()
    model.fused_step.step()
    before = [p.clone() for p in model.parameters()]
    model.fused_step.step()
    torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["weight", "bias", "target", "pos_weight"])
def test_what_it_is_computed_from_must_not_change(name: str) -> None:
    model = criterion()
    model.pos_weight = torch.rand(LABELS)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    model(x, y).backward()
    tensors = {"target": y, "pos_weight": model.pos_weight}
    parameters = dict(model.linear.named_parameters())
    with torch.no_grad():
        (tensors | parameters)[name].fill_(1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="must not be modified between the forward pass and the"):
        model.fused_step.step()
    torch.testing.assert_close(before, [p.detach() for p in model.parameters()], rtol=0, atol=0)
    assert model.linear.weight.grad is not None
    model.zero_grad()
    model(x, y).backward()
    model.fused_step.step()
    assert not torch.equal(before[0], model.linear.weight)


def test_memory_of_the_input_and_the_factor_may_be_used_again() -> None:
    model, other = criterion(), criterion()
    x, y = batch(model)
    factor = torch.tensor(2.0)
    other(x, y).backward(factor)
    step(other, SGD(other.parameters(), lr=1.0))
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    model(x, y).backward(factor)
    x.zero_()
    factor.zero_()
    model.fused_step.step()
    assert torch.equal(model.linear.weight, other.linear.weight)


def test_the_weight_of_another_layer_is_an_input() -> None:
    """One optimizer has both, and updates that layer first."""
    ends = []
    for kind in (SGD, FusedSGD):
        torch.manual_seed(0)
        first, second = criterion(), criterion()
        optimizer = kind([*first.parameters(), *second.parameters()], lr=1.0)
        first.fused_step = second.fused_step = optimizer if kind is FusedSGD else None
        x, y = batch(first)
        step(first, optimizer, first(x, y) + second(first.linear.weight[:ROWS], y))
        ends.append([p.detach() for p in (*first.parameters(), *second.parameters())])
    torch.testing.assert_close(ends[0], ends[1])


def test_no_rows_and_no_labels() -> None:
    model = criterion(reduction="sum")
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    before = model.linear.weight.detach().clone()
    x, y = batch(model, 0)
    model(x.requires_grad_(), y).backward()
    assert clip_grad_norm_(model.parameters(), 1.0) == 0
    model.fused_step.step()
    assert torch.equal(model.linear.weight, before)
    empty = LinearWeightedBCEWithLogitsLoss(FEATURES, 0, reduction="sum")
    empty.fused_step = FusedSGD(empty.parameters(), lr=1.0)
    empty(torch.randn(2, FEATURES), torch.zeros(2, 0)).backward()
    assert clip_grad_norm_(empty.parameters(), 1.0) == 0
    empty.fused_step.step()


def test_half_precision_is_rounded_once() -> None:
    """A loss scale of a GradScaler is divided out before the gradient is rounded."""
    model = criterion(dtype=torch.float16)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    x = x.half()
    (wanted,) = torch.autograd.grad(model(x, y), model.linear.weight)
    (model(x, y) * 2.0**30).backward()
    assert not torch.isfinite(model.linear.weight.grad.clone().whole()).all()
    model.linear.weight.grad /= 2.0**30
    assert torch.equal(model.linear.weight.grad.whole(), wanted)


def test_the_weight_need_not_be_contiguous() -> None:
    model, other = criterion(), criterion()
    for made in (model, other):
        weight = made.linear.weight.detach().t().contiguous().t()
        made.linear.weight = nn.Parameter(weight)
    model.fused_step = FusedSGD(model.parameters(), lr=1.0)
    x, y = batch(model)
    model(x, y).backward()
    assert model.linear.weight.grad.stride() == model.linear.weight.stride()
    assert model.linear.weight.grad.clone().whole().stride() == model.linear.weight.stride()
    model.fused_step.step()
    step(other, SGD(other.parameters(), lr=1.0), other(x, y))
    assert torch.equal(model.linear.weight, other.linear.weight)


def test_a_gradient_that_was_replaced_has_as_many_backward_passes() -> None:
    model = criterion()
    model.fused_step = FusedSGD(model.parameters(), lr=1.0, accumulate=2)
    weight, (x, y) = model.linear.weight, batch(model)
    for _ in range(2):
        model(x, y).backward()
        weight.grad = weight.grad / 2
    with pytest.raises(RuntimeError, match="got another backward pass"):
        model(x, y).backward()
    model.fused_step.zero_grad()
    model(x, y).backward()
