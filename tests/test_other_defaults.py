"""The default device and dtype of torch do not matter to losses, only those of their tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from weighted_bce import (
    FusedSGD,
    LinearWeightedBCEWithLogitsLoss,
    backend,
    weighted_bce_with_logits,
)

from .linear_cases import assert_all_near
from .ways import assert_grads, in_each_way, leaves_of, one_case


@contextmanager
def defaults(kind: str) -> Iterator[None]:
    if kind == "device":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(getattr(torch, kind))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


of_each_kind = pytest.mark.parametrize("kind", ["device", "float64", "float16"])


@of_each_kind
@pytest.mark.parametrize("chosen", ["auto", "reference"])
@in_each_way
def test_losses(way: str, chosen: str, kind: str) -> None:
    for options in ({}, {"ignore_index": 1}, {"normalizer": 3}, {"label_smoothing": 0.1}):
        case = one_case(way, **options)
        leaves = leaves_of(case)
        with defaults(kind), backend(chosen):
            case(*leaves).backward()
        assert_grads([leaf.grad for leaf in leaves], case)


@of_each_kind
def test_float8_targets(kind: str) -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    wanted = weighted_bce_with_logits(x, y, ignore_index=0)
    with defaults(kind):
        loss = weighted_bce_with_logits(x, y.to(torch.float8_e4m3fn), ignore_index=0)
    assert torch.equal(loss, wanted)


@of_each_kind
def test_a_fused_step(kind: str) -> None:
    case = one_case("linear")

    def trained(optimizer_class: Any) -> list[torch.Tensor]:
        x, *parameters = leaves_of(case)
        optimizer = optimizer_class(parameters, lr=0.1)
        step = optimizer if optimizer_class is FusedSGD else None
        loss = case(x, *parameters, fused_step=step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.01)
        parameters[0].grad /= 2
        optimizer.step()
        return [p.detach() for p in parameters]

    wanted = trained(SGD)
    with defaults(kind):
        actual = trained(FusedSGD)
    assert_all_near(actual, wanted, 1e-5)


@of_each_kind
def test_topk(kind: str) -> None:
    criterion, x = LinearWeightedBCEWithLogitsLoss(4, 9), torch.randn(3, 4)
    wanted = criterion.logits(x).topk(2)
    with defaults(kind):
        largest = criterion.topk(x, 2)
    assert torch.equal(largest.indices, wanted.indices)
