"""The same input gives the same bits, whatever the threads and however often."""

import pytest
import torch

from .comparison import outcome
from .truth import INPUT_DTYPES, Case, labels, logits


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_any_number_of_threads_gives_the_same_bits(device: str, dtype: torch.dtype) -> None:
    x, y = logits(37, 20011, dtype=dtype, device=device), labels(37, 20011, device=device)
    with_ignored = torch.where(torch.rand(37, 20011, device=device) < 0.1, -1, y.long())
    w = torch.rand(20011, device=device)
    for case in (
        Case(x, y),
        Case(x, y, w, 7.0, "sum"),
        Case(x, y, w, 7.0, sparse=torch.int64),
        Case(x, y.float(), None, w, "none", 0.1),
        Case(x.t(), y.t(), None, 7.0),
        Case(x[:, ::2], y[:, ::2], None, 7.0),
        Case(x, with_ignored, None, 7.0, ignore_index=-1),
    ):
        torch.set_num_threads(1)
        first = outcome(case, case.input)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for _ in range(3):
                for one, other in zip(first, outcome(case, case.input), strict=True):
                    assert torch.equal(one, other), (threads, case.reduction)
            with torch.no_grad():
                assert torch.equal(case(), first[0]), threads


def test_rows_give_the_same_bits_wherever_they_lie(kernel_device: str) -> None:
    """Whole vectors, tails, other offsets: an element's loss and gradient depend on it alone."""
    for dtype in INPUT_DTYPES:
        x, y = logits(1000, dtype=dtype, device=kernel_device), labels(1000, device=kernel_device)
        whole = outcome(Case(x, y, None, 7.0, "none"), x)
        for start, stop in ((0, 1), (1, 18), (3, 300), (500, 1000), (999, 1000)):
            rows = slice(start, stop)
            part = outcome(Case(x[rows], y[rows], None, 7.0, "none"), x[rows])
            for one, other in zip(whole, part, strict=True):
                assert torch.equal(one[rows], other), (dtype, start)
