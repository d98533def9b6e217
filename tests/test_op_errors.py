"""The registered ops check what they are given, and write to nothing where it is wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce import backend, weighted_bce_with_logits
from weighted_bce._extension import extension

from .sparse_values import GOOD, WRONG_VALUES, sparse_labels
from .truth import BATCHMEAN, SUM

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

ops = torch.ops.weighted_bce
X = torch.full((3, 5), 0.5)
Y = torch.zeros(3, 5, dtype=torch.bool)


def ones(like: Tensor) -> list[Tensor]:
    """Scalars for grad_output, used and expected."""
    one = torch.tensor(1.0, device=like.device)
    return [one, 2 * one, one.clone()]


CALLS: dict[str, Callable[..., Any]] = {
    "loss": lambda x, *rest: ops.loss(x, *rest, SUM),
    "loss_and_grad": lambda x, *rest: ops.loss_and_grad(ones(x)[0], x, *rest, SUM),
    "loss_and_grad_": lambda x, *rest: ops.loss_and_grad_(ones(x)[0], x, *rest, SUM),
    "update_grad_": lambda x, *rest: ops.update_grad_(*ones(x), torch.zeros_like(x), x, *rest, SUM),
    "grad": lambda x, *rest: ops.grad(ones(x)[0], x, *rest, SUM),
    "grad_": lambda x, *rest: ops.grad_(ones(x)[0], x, *rest, SUM),
    "unreduced": lambda x, *rest: ops.unreduced(x, *rest),
}


def options(device: str, **changed: Any) -> tuple[Any, ...]:
    """What ops take from `input` to `first_label`, all of it right but for what is changed."""
    right: dict[str, Any] = {"input": X.to(device), "target": Y.to(device), "crow_indices": None}
    right |= {"weight": None, "pos_weight": None, "pos_weight_value": 1.0, "label_smoothing": 0.0}
    right |= {"ignore_index": None, "first_label": None}
    assert changed.keys() <= right.keys()
    return tuple({**right, **changed}.values())


# A row for each argument: its name, a wrong value, the words of the error.
WRONG: tuple[tuple[str, Any, str], ...] = (
    ("input", X.long(), "input must be float16, bfloat16, float32 or float64"),
    ("target", Y[:1], "target must have the shape of input"),
    ("target", X + 1j, ""),
    ("weight", X[0, :4], "weight must broadcast to the shape of input"),
    ("pos_weight", X.expand(2, 3, 5), "pos_weight must broadcast to the shape of input"),
    ("pos_weight_value", -1.0, "pos_weight must be at least 0"),
    ("pos_weight_value", float("nan"), ""),
    ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\)"),
)


@pytest.mark.parametrize("op", CALLS)
def test_wrong_arguments(kernel_device: str, op: str) -> None:
    x = X.to(kernel_device)
    for name, value, words in WRONG:
        value = value.to(kernel_device) if isinstance(value, Tensor) else value
        with pytest.raises(RuntimeError, match=words or None):
            CALLS[op](*options(kernel_device, **{"input": x, name: value}))
        assert torch.equal(x.cpu(), X)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_wrong_values_of_sparse_labels(wrong: str, dtype: torch.dtype) -> None:
    crow, col, _, words = WRONG_VALUES[wrong]
    labels, x = sparse_labels(crow, col, dtype), X.clone()
    given = options("cpu", input=x, target=labels.col_indices, crow_indices=labels.crow_indices)
    for call in CALLS.values():
        with pytest.raises(RuntimeError) as actual:
            call(*given)
        assert words in str(actual.value)
        assert torch.equal(x, X)


@pytest.mark.parametrize("first", [None, 0])
@pytest.mark.parametrize("crow", [[-(2**40), 0, 1, 2], [0, 0, 1, 2**40], [0, 2, 1, 2]])
def test_rows_of_a_part_are_those_of_all_indices(crow: list[int], first: int | None) -> None:
    labels = sparse_labels(crow, [1, 3])
    given = {"target": labels.col_indices, "crow_indices": labels.crow_indices}
    with pytest.raises(RuntimeError, match="crow_indices must"):
        CALLS["loss"](*options("cpu", **given, first_label=first))


def test_forms_of_sparse_labels(kernel_device: str) -> None:
    x, (crow, col) = X.to(kernel_device), GOOD.to(kernel_device)

    def call(**changed: Any) -> None:
        CALLS["loss"](*options(kernel_device, **{"target": col, "crow_indices": crow, **changed}))

    call()
    call(first_label=0)
    for words, changed in (
        ("col_indices must be int32 or int64", {"target": col.float()}),
        ("crow_indices must have the dtype of col_indices", {"crow_indices": crow.int()}),
        ("col_indices must be 1-d and contiguous", {"target": col[None]}),
        ("col_indices must be 1-d and contiguous", {"target": col.repeat_interleave(2)[::2]}),
        ("crow_indices must have 4 elements, one more than input", {"crow_indices": crow[1:]}),
        ("input must be 2-d with sparse labels, got 3", {"input": x[None]}),
        ("first_label must be in", {"first_label": -1}),
        ("first_label must be in", {"first_label": 2**62}),
        ("target must have the shape of input", {"crow_indices": None}),
        (
            "first_label needs crow_indices",
            {"crow_indices": None, "target": x > 0, "first_label": 0},
        ),
    ):
        with pytest.raises(RuntimeError, match=words):
            call(**changed)


def test_indices_of_any_value_are_harmless_on_cuda(device: str) -> None:
    """Nobody waits there to look at them; what they say is not read or written."""
    if device == "cpu":
        pytest.skip("they are looked at")
    for crow, col, *_ in WRONG_VALUES.values():
        x = torch.randn(3, 5, device="cuda", requires_grad=True)
        with backend("fused"):  # the reference would end this process
            weighted_bce_with_logits(x, sparse_labels(crow, col).to("cuda")).backward()
        torch.cuda.synchronize()
        assert x.grad is not None


def test_reductions_and_what_comes_from_backward(kernel_device: str) -> None:
    given = options(kernel_device)
    x, one = given[0], ones(given[0])[0]
    for reduction in (0, 4, -1):
        with pytest.raises(RuntimeError, match=f"reduction must be 1 .*, got {reduction}"):
            ops.loss(*given, reduction)
    with pytest.raises(RuntimeError, match="batchmean needs an input with a first dimension"):
        ops.loss(*options(kernel_device, input=x[0, 0], target=x[0, 0] > 0), BATCHMEAN)
    for grad_output in (x[:, 0], x[0], x[:1]):
        with pytest.raises(RuntimeError, match="grad_output must be 0-d or have the shape"):
            ops.grad(grad_output, *given, SUM)
    for op in (ops.loss_and_grad, ops.loss_and_grad_):
        with pytest.raises(RuntimeError, match="expected must be 0-d"):
            op(one.view(1), *given, SUM)
    with pytest.raises(RuntimeError, match="expected must be float32 like the loss of input"):
        ops.loss_and_grad(one.double(), *given, SUM)
    for grad in (x[:, :4], x.double()):
        with pytest.raises(RuntimeError, match="grad must have the shape and dtype of input"):
            ops.update_grad_(*ones(x), grad, *given, SUM)


def test_what_is_written_does_not_overlap_itself(kernel_device: str) -> None:
    given = options(kernel_device)
    overlapping = given[0][:1].expand(3, 5)
    with pytest.raises(RuntimeError, match="grad must not overlap itself"):
        ops.update_grad_(*ones(overlapping), overlapping, *given, SUM)
    for op in (ops.grad_, ops.loss_and_grad_):
        with pytest.raises(RuntimeError, match="must not overlap itself"):
            op(ones(overlapping)[0], overlapping, *given[1:], SUM)


def test_tensors_without_memory() -> None:
    def empty(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(0)
        return tensor

    one, given = torch.tensor(1.0), options("cpu")
    for weight in (empty(one), empty(torch.ones(1)), empty(torch.ones(5))):
        for name in ("weight", "pos_weight"):
            with pytest.raises(RuntimeError, match="no memory"):
                ops.loss(*options("cpu", **{name: weight}), SUM)
    for weight in (torch.tensor(1j), torch.tensor([1j])):
        with pytest.raises(RuntimeError, match="a dtype that weighted_bce has no kernel for"):
            ops.loss(*options("cpu", weight=weight), SUM)
    with pytest.raises(RuntimeError, match="expected must have memory"):
        ops.loss_and_grad(empty(one), *given, SUM)
    for place in range(3):
        scalars = ones(X)
        scalars[place] = empty(one)
        with pytest.raises(RuntimeError, match="must have memory"):
            ops.update_grad_(*scalars, torch.zeros_like(X), *given, SUM)
    assert torch.equal(given[0], torch.full((3, 5), 0.5))
