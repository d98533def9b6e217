"""The registered ops check what they are given, and write to nothing where it is wrong."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import backend, weighted_bce_with_logits
from weighted_bce._extension import extension

from .sparse_values import GOOD, WRONG_VALUES, sparse_labels
from .truth import BATCHMEAN, MEAN, NONE, SUM

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

ops = torch.ops.weighted_bce
X = torch.full((3, 5), 0.5)
Y = torch.zeros(3, 5, dtype=torch.bool)


def ones(like: Tensor) -> list[Tensor]:
    """Scalars for grad_output, used and expected."""
    one = torch.tensor(1.0, device=like.device)
    return [one, 2 * one, one.clone()]


CALLS: dict[str, Callable[..., Any]] = {
    "loss": ops.loss,
    "loss_and_grad": lambda x, *rest: ops.loss_and_grad(ones(x)[0], x, *rest),
    "loss_and_grad_": lambda x, *rest: ops.loss_and_grad_(ones(x)[0], x, *rest),
    "update_grad_": lambda x, *rest: ops.update_grad_(*ones(x), torch.zeros_like(x), x, *rest),
    "grad": lambda x, *rest: ops.grad(ones(x)[0], x, *rest),
    "grad_": lambda x, *rest: ops.grad_(ones(x)[0], x, *rest),
    "unreduced": lambda *given: ops.unreduced(*given[:9], NONE, *given[10:]),
}
# What ops take from `input` on, all of it right.
RIGHT: dict[str, Any] = {
    "input": X,
    "target": Y,
    **dict.fromkeys(("crow_indices", "weight", "pos_weight")),
    "pos_weight_value": 1.0,
    "label_smoothing": 0.0,
    **dict.fromkeys(("ignore_index", "first_label")),
    "reduction": SUM,
    "loss": 0,
    **dict.fromkeys(("parameters", "normalizer", "values")),
}
OF_SPARSE = {"target": GOOD.col_indices, "crow_indices": GOOD.crow_indices}


def options(device: str, **changed: Any) -> list[Any]:
    """The arguments of an op from `input` on, right but for what is changed."""
    assert changed.keys() <= RIGHT.keys()
    given = {**RIGHT, **changed}.values()
    return [value.to(device) if isinstance(value, Tensor) else value for value in given]


CROW, COL = GOOD
PARAMETERS = "loss 1 must have 2 parameters, got"
GAMMA, ALPHA = r"loss 1: gamma must be in \[0, 1e300\]", r"loss 1: alpha must be in \[0, 1\], or -1"
# What is changed, and the words of the error.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": X.long()}, "input must be float16, bfloat16, float32 or float64"),
    ({"target": Y[:1]}, "target must have the shape of input"),
    ({"target": X + 1j}, "a dtype that weighted_bce has no kernel for"),
    ({"weight": X[0, :4]}, "weight must broadcast to the shape of input"),
    ({"pos_weight": X.expand(2, 3, 5)}, "pos_weight must broadcast to the shape of input"),
    *(({"pos_weight_value": p}, "pos_weight must be at least 0") for p in (-1.0, math.nan)),
    ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
    ({"first_label": 0}, "first_label needs crow_indices"),
    ({"values": torch.ones(3)}, "values are not supported, must be None"),
    ({"normalizer": torch.tensor(2.0)}, r"a normalizer needs reduction 1 \(mean\), got "),
    (
        {"normalizer": torch.ones(1), "reduction": MEAN},
        "normalizer must be 0-d, got 1 dim|needs reduction 1",
    ),
    # Sparse labels.
    ({**OF_SPARSE, "target": COL.float()}, "col_indices must be int32 or int64"),
    ({**OF_SPARSE, "crow_indices": CROW.int()}, "crow_indices must have the dtype of col_indices"),
    ({**OF_SPARSE, "target": COL[None]}, "col_indices must be 1-d and contiguous"),
    (
        {**OF_SPARSE, "target": COL.repeat_interleave(2)[::2]},
        "col_indices must be 1-d and contiguous",
    ),
    ({**OF_SPARSE, "crow_indices": CROW[1:]}, "crow_indices must have 4 elements, one more than"),
    ({**OF_SPARSE, "input": X[None]}, "input must be 2-d with sparse labels, got 3"),
    ({**OF_SPARSE, "first_label": -1}, "first_label must be in"),
    ({**OF_SPARSE, "first_label": 2**62}, "first_label must be in"),
    # The loss and its parameters.
    *(
        ({"loss": 1, "parameters": p}, f"{PARAMETERS} {len(p or [])}")
        for p in ([], None, [1.0] * 3)
    ),
    ({"parameters": [2.0, 0.25]}, "loss 0 must have 0 parameters, got 2"),
    *(({"loss": n}, rf"loss must be in \[0, 6\), got {n}") for n in (6, -1, 256)),
    *(({"loss": 1, "parameters": [g, 0.5]}, GAMMA) for g in (-0.5, math.inf, math.nan)),
    *(({"loss": 1, "parameters": [2.0, a]}, ALPHA) for a in (1.5, -0.5, math.nan)),
]


def refused(words: str, op: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(RuntimeError, match=words):
        op(*arguments)


@pytest.mark.parametrize("op", CALLS)
def test_wrong_arguments(kernel_device: str, op: str) -> None:
    for right in ({}, OF_SPARSE, {**OF_SPARSE, "first_label": 0}):
        CALLS[op](*options(kernel_device, **{"input": X.clone(), **right}))
    for changed, words in WRONG:
        x, *rest = options(kernel_device, **changed)
        before = x.clone()
        refused(words, CALLS[op], x, *rest)
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_wrong_values_of_sparse_labels(wrong: str, dtype: torch.dtype) -> None:
    crow, col, _, words = WRONG_VALUES[wrong]
    labels, x = sparse_labels(crow, col, dtype), X.clone()
    given = options("cpu", input=x, target=labels.col_indices, crow_indices=labels.crow_indices)
    for call in CALLS.values():
        refused(re.escape(words), call, *given)
        assert torch.equal(x, X)


@pytest.mark.parametrize("first", [None, 0])
@pytest.mark.parametrize("crow", [[-(2**40), 0, 1, 2], [0, 0, 1, 2**40], [0, 2, 1, 2]])
def test_rows_of_a_part_are_those_of_all_indices(crow: list[int], first: int | None) -> None:
    labels = sparse_labels(crow, [1, 3])
    given = {"target": labels.col_indices, "crow_indices": labels.crow_indices}
    refused("crow_indices must", ops.loss, *options("cpu", **given, first_label=first))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_indices_of_any_value_are_harmless_on_cuda() -> None:
    """A look at them would have to wait; where they point, nothing is read or written."""
    for crow, col, *_ in WRONG_VALUES.values():
        x = torch.randn(3, 5, device="cuda", requires_grad=True)
        with backend("fused"):  # the reference would end this process
            weighted_bce_with_logits(x, sparse_labels(crow, col).to("cuda")).backward()
        torch.cuda.synchronize()
        assert x.grad is not None


def test_reductions_and_what_comes_from_backward(kernel_device: str) -> None:
    given = options(kernel_device)
    x, one = given[0], ones(given[0])[0]
    for n in (0, 4, -1):
        refused(f"reduction must be 1 .*, got {n}", ops.loss, *given[:9], n)
    scalar = options(kernel_device, input=X[0, 0], target=Y[0, 0], reduction=BATCHMEAN)
    refused("batchmean needs an input with a first dimension", ops.loss, *scalar)
    for grad_output in (x[:, 0], x[0], x[:1]):
        refused("grad_output must be 0-d or have the shape", ops.grad, grad_output, *given)
    for op in (ops.loss_and_grad, ops.loss_and_grad_):
        refused("expected must be 0-d", op, one.view(1), *given)
    refused("expected must be float32 like the loss", ops.loss_and_grad, one.double(), *given)
    for grad in (x[:, :4], x.double()):
        words = "grad must have the shape and dtype of input"
        refused(words, ops.update_grad_, *ones(x), grad, *given)


def test_what_is_written_does_not_overlap_itself(kernel_device: str) -> None:
    x, *rest = options(kernel_device)
    overlapping = x[:1].expand(3, 5)
    refused("grad must not overlap", ops.update_grad_, *ones(x), overlapping, overlapping, *rest)
    for op in (ops.grad_, ops.loss_and_grad_):
        refused("must not overlap itself", op, ones(x)[0], overlapping, *rest)


def test_tensors_without_memory() -> None:
    def empty(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(0)
        return tensor

    one, given = torch.tensor(1.0), options("cpu")
    for weight in (empty(one), empty(torch.ones(1)), empty(torch.ones(5))):
        for name in ("weight", "pos_weight"):
            refused("no memory", ops.loss, *options("cpu", **{name: weight}))
    for weight in (torch.tensor(1j), torch.tensor([1j])):
        words = "a dtype that weighted_bce has no kernel for"
        refused(words, ops.loss, *options("cpu", weight=weight))
    refused("expected must have memory", ops.loss_and_grad, empty(one), *given)
    for place in range(3):
        scalars = ones(X)
        scalars[place] = empty(one)
        refused("must have memory", ops.update_grad_, *scalars, torch.zeros_like(X), *given)
    assert torch.equal(given[0], torch.full((3, 5), 0.5))
