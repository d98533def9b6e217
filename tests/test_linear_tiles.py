"""The CPU's kernels compute a linear layer by tiles, which give what all logits at once give, with
the same bits on any threads."""

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from weighted_bce import FusedAdam, FusedSGD, LinearWeightedBCEWithLogitsLoss
from weighted_bce._extension import extension

from .linear_cases import LinearCase, assert_near, assert_right, expected

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

BLOCK = 2**18  # an input of more elements is cut into blocks of rows


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def layer_case(rows: int, features: int, labels: int, **options: Any) -> LinearCase:
    x, bias = torch.randn(rows, features), torch.randn(labels)
    weight = torch.randn(labels, features) / features**0.5
    target = torch.rand(rows, labels) < 0.1
    return LinearCase(x, weight, target, bias, options, name=f"{rows} x {features} x {labels}")


def loss_and_gradients(case: LinearCase) -> list[Tensor]:
    leaves = case.leaves()
    loss = case(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def assert_same_bits(actual: list[Tensor], wanted: list[Tensor]) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


# Sizes that are a little more or less than tiles, slabs and blocks have, and the ways to cut them.
SHAPES = [
    (1, 1, 1),
    (1, 300, 4097),  # labels alone are cut
    (65, 17, 1000),
    (97, 4100, 130),  # features that fill a tile alone, and blocks of rows
    (BLOCK // 512 + 65, 512, 700),  # two blocks of rows, and tiles of rows and labels
    (300, 16, 1040),  # tiles of rows within a slab of labels
    (1025, 40, 63),  # slabs of rows
    (700, 2, 130),  # slabs of rows with several tiles of labels
    (6200, 3, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_each_tile_once(shape: tuple[int, int, int], reduction: str) -> None:
    """Every tile has its own target, weights, bias and grad_output, and is added once."""
    rows, _, labels = shape
    weight, pos_weight = torch.rand(rows, labels) + 0.5, torch.rand(labels) * 5
    options = {"reduction": reduction, "weight": weight, "pos_weight": pos_weight}
    for most in (48, 1000):
        case = layer_case(*shape, **options, chunk_labels=most)
        grad_output = torch.rand(rows) + 0.5 if reduction == "none" else 0.5
        for sparse in (None, torch.int32):
            assert_right(replace(case, sparse=sparse), grad_output)
        row_weights = case.with_options(weight=torch.rand(rows, 1) + 0.5)
        assert_right(row_weights, grad_output)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_only_the_gradients_that_are_needed_with_the_same_bits(shape: tuple[int, ...]) -> None:
    case = layer_case(*shape, chunk_labels=48)
    _, *wanted = loss_and_gradients(case)
    for needed in ([0], [1], [2], [0, 1], [1, 2], [0, 2]):
        layer = [tensor.detach().clone() for tensor in case.layer]
        leaves = [layer[i].requires_grad_() for i in needed]
        grads = torch.autograd.grad(case(*layer), leaves)
        assert_same_bits([*grads], [wanted[i] for i in needed])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_of_another_dtype_than_the_weight(dtype: torch.dtype) -> None:
    """Blocks of rows are added to its gradient before it is rounded."""
    case = layer_case(BLOCK // 512 + 100, 512, 600, chunk_labels=256)
    assert case.linear_bias is not None
    case.linear_bias = case.linear_bias.to(dtype)
    leaves = case.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        loss = case(*leaves)
    loss.backward()
    _, wanted = expected(case)
    for leaf, one in zip(leaves, wanted, strict=True):
        assert_near(leaf.grad, one)
    args, needs = case.op_args(), [False, False, True]
    of_op = torch.ops.weighted_bce.linear_grads(loss.detach(), *args[:14], needs, *args[14:])
    assert of_op[-1].dtype == dtype  # as the op says, and autograd would convert it


def test_the_same_bits_on_threads_that_have_never_computed() -> None:
    """torch sets how many threads MKL takes when a thread first computes, and new Python threads
    have new OpenMP threads."""
    case = layer_case(700, 900, 1500, chunk_labels=272)
    torch.set_num_threads(1)
    wanted = loss_and_gradients(case)
    results: list[list[Tensor]] = []
    torch.set_num_threads(4)
    for _ in range(4):
        thread = threading.Thread(target=lambda: results.append(loss_and_gradients(case)))
        thread.start()
        thread.join()
    for actual in results:
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_same_bits_of_sums_over_slabs(threads: int) -> None:
    """Calls follow one another, since a thread may find no slab in the first one."""
    case = layer_case(64, 128, 20000)
    torch.set_num_threads(1)
    wanted = loss_and_gradients(case)
    torch.set_num_threads(threads)
    for _ in range(20):
        assert_same_bits(loss_and_gradients(case), wanted)


@pytest.mark.parametrize(("fused", "ordinary"), [(FusedSGD, SGD), (FusedAdam, Adam)])
@pytest.mark.parametrize("dense", [False, True])
def test_a_step_of_several_calls(fused: Any, ordinary: Any, dense: bool) -> None:
    """The gradient of each label is the sum over all tiles of rows of all calls, and of another
    term; in float64, which shows what float32 would round away."""
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    one = LinearWeightedBCEWithLogitsLoss(
        20, 1000, reduction="sum", chunk_labels=300, dtype=torch.float64
    )
    other = copy.deepcopy(one)
    optimizer = fused(one.parameters(), accumulate=3, **options)
    one.fused_step, wanted = optimizer, ordinary(other.parameters(), **options)
    torch.set_num_threads(3)
    for _ in range(3):
        for rows in (1, 900, 70):
            x = torch.randn(rows, 20, dtype=torch.float64)
            target = torch.rand(rows, 1000) < 0.1
            for classifier in (one, other):
                (classifier(x, target) / rows).backward()
        for classifier in (one, other) if dense else ():
            classifier.linear.weight.square().sum().backward()
        for each in (optimizer, wanted):
            each.step()
            each.zero_grad()
    for actual, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-11)


class TestOps:
    """Direct calls with wrong arguments are refused before anything is written."""

    ops = torch.ops.weighted_bce

    def call(self) -> Tensor:
        x, like = torch.randn(9, 12), torch.empty(()).expand(9, 70)
        options = (torch.zeros(9, 70, dtype=torch.bool), None, None, None, 1.0, 0.0, None, None)
        handle: Tensor = self.ops.linear_call(
            torch.tensor(1.0), x, None, like, *options, 1, 0, None, None, None
        )
        return handle

    def sgd(self, call: Tensor, weight: Tensor) -> None:
        self.ops.linear_sgd_([call], None, weight, None, None, 0.1, 0, 0, 0, False, False, False)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
    def test_the_dtype_of_the_weight(self, dtype: torch.dtype) -> None:
        weight = torch.ones(70, 12, dtype=dtype)
        with pytest.raises(RuntimeError, match="linear_weight"):
            self.sgd(self.call(), weight)
        assert torch.equal(weight, torch.ones_like(weight))

    def test_what_is_no_call(self) -> None:
        """A copy of a call owns nothing that the call refers to."""
        call, weight = self.call(), torch.ones(70, 12)
        zeros = torch.zeros(1, dtype=torch.uint8)
        for wrong in (call.clone(), zeros.expand_as(call), zeros, torch.zeros_like(call)):
            with pytest.raises(RuntimeError, match="calls must be what linear_call has returned"):
                self.sgd(wrong, weight)
        assert torch.equal(weight, torch.ones_like(weight))
        self.sgd(call, weight)
        assert not torch.equal(weight, torch.ones_like(weight))
