"""The ways to a loss: of logits, of a linear layer, and of either with sparse labels.

A case of any of them is called with its leaves, and its gradients are compared with the truth.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weighted_bce import LinearWeightedBCEWithLogitsLoss, WeightedBCEWithLogitsLoss

from . import linear_cases
from .comparison import assert_grad, check, outcome
from .linear_cases import LABELS, LinearCase, base, dense_and_sparse
from .truth import Case, as_given, labels, logits, sample_inputs

AnyCase = Case | LinearCase
WAYS = ("dense", "sparse", "linear", "linear, sparse")
in_each_way = pytest.mark.parametrize("way", WAYS)


def target_of(way: str, target: Tensor) -> Any:
    """Returns a target as a way takes it."""
    return as_given(target, torch.int64 if "sparse" in way else None)


def one_case(
    way: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any
) -> AnyCase:
    """Returns a case of few rows and labels, with a pos_weight of 3 unless the options differ."""
    sparse = torch.int64 if "sparse" in way else None
    options = {"pos_weight": 3.0, **options}
    if "linear" in way:
        return replace(base(dtype, device, **options), sparse=sparse)
    x, y = logits(8, 5, dtype=dtype, device=device), labels(8, 5, device=device)
    y[0, 0], y[1, 0] = True, False
    return Case(x, y, sparse=sparse, **options)


def cases_of_logits(device: str) -> list[AnyCase]:
    return [c for c in sample_inputs(device, (torch.float32, torch.bfloat16)) if c.input.numel()]


def cases_of_layers(device: str) -> list[AnyCase]:
    weight, pos_weight = (torch.rand(LABELS, device=device) + 0.5 for _ in range(2))
    weighted = one_case("linear", device, weight=weight, pos_weight=pos_weight)
    return [*dense_and_sparse(device), weighted]


of_logits_and_layers = pytest.mark.parametrize("cases", [cases_of_logits, cases_of_layers])


def leaves_of(case: AnyCase) -> tuple[Tensor, ...]:
    """Returns what a case is called with, as leaves that require a gradient."""
    given = case.layer if isinstance(case, LinearCase) else (case.input,)
    return tuple(tensor.detach().requires_grad_() for tensor in given)


def with_options(case: AnyCase, **options: Any) -> AnyCase:
    if isinstance(case, LinearCase) and "target" not in options:
        return case.with_options(**options)
    return replace(case, **options)


def assert_grads(
    grads: Sequence[Tensor | None], case: AnyCase, grad_output: float = 1.0, what: str = ""
) -> None:
    """Compares the gradients of the leaves of a case with the truth."""
    if isinstance(case, LinearCase):
        linear_cases.assert_grads(grads, case, grad_output)
    else:
        (grad,) = grads
        assert_grad(grad, case, grad_output, what)


def assert_right(case: AnyCase, grad_output: float = 1.0) -> tuple[Tensor, ...]:
    """Compares the loss and all gradients with the truth, and returns them."""
    if isinstance(case, LinearCase):
        return linear_cases.assert_right(case, grad_output)
    check(case, grad_output=grad_output)
    return outcome(case, case.input, grad_output)


class Scored(nn.Module):
    """A small network with its loss, into which the last layer may be fused."""

    def __init__(self, is_linear: bool = False, **options: Any) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(20, 16), nn.ReLU())
        if is_linear:  # in chunks, as in compiled programs; so few logits have none by default
            self.criterion: nn.Module = LinearWeightedBCEWithLogitsLoss(
                16, 9, chunk_labels=5, **options
            )
        else:
            self.model.append(nn.Linear(16, 9))
            self.criterion = WeightedBCEWithLogitsLoss(**options)

    def forward(self, x: Tensor, y: Any) -> Any:
        return self.criterion(self.model(x), y)
