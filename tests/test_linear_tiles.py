"""The CPU's kernels compute a linear layer by tiles, which give what all logits at once give, with
the same bits on any threads."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from weighted_bce._extension import extension

from .linear_cases import LinearCase, assert_near, expected

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
        with pytest.raises(RuntimeError, match="linear_weight must "):
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
