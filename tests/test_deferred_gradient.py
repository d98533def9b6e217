"""Whatever a trainer does with a deferred gradient, the weights end where the ordinary ones do."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from weighted_bce import FusedSGD
from weighted_bce.linear._deferred import DeferredGrad

from .fused_cases import FEATURES, LABELS, ROWS, batch, criterion, step

pytestmark = pytest.mark.usefixtures("one_thread")

Situation = Callable[[Any, Optimizer], object]


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
