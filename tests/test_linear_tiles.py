"""The CPU's kernels compute a linear layer by tiles, which give what all logits at once give."""

import pytest
import torch

from weighted_bce._extension import extension

from .linear_cases import LinearCase, assert_near, expected

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

BLOCK = 2**18  # more elements of the input than this are cut into blocks of rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_of_another_dtype_than_the_weight(dtype: torch.dtype) -> None:
    """Blocks of rows are added to its gradient before it is rounded."""
    rows, features, labels = BLOCK // 512 + 100, 512, 600
    x = torch.randn(rows, features)
    weight, bias = torch.randn(labels, features) / 20, torch.randn(labels).to(dtype)
    target = torch.rand(rows, labels) < 0.1
    case = LinearCase(x, weight, target, bias, {"chunk_labels": 256})
    leaves = case.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        loss = case(*leaves)
    loss.backward()
    _, wanted = expected(case)
    for leaf, one in zip(leaves, wanted, strict=True):
        assert_near(leaf.grad, one)
