"""A step needs the memory of one gradient, in place none, and with a linear layer one chunk."""

import os
import subprocess
import sys

import pytest

from weighted_bce._extension import extension

pytestmark = [
    pytest.mark.skipif(extension is None, reason="no extension"),
    pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux only"),
]

# 256 MiB of logits and 64 MiB of bool targets.
OF_LOGITS = """
import torch
from tools.measuring import rise_of_peak
from weighted_bce import SparseLabels, empty_cache, weighted_bce_with_logits

def added(target, inplace, scales):
    x = torch.zeros(64, 1 << 20).fill_(0.5).requires_grad_()
    empty_cache()

    def steps():
        for scale in scales:
            x.grad = None
            (weighted_bce_with_logits(x, target, inplace_backward=inplace) * scale).backward()

    print(rise_of_peak(steps))

for inplace in (False, True):
    small = torch.zeros(600, 1000, requires_grad=True)
    y = small.detach() > 0
    weighted_bce_with_logits(small * 1.0, y, inplace_backward=inplace).backward()
dense = torch.ones(64, 1 << 20, dtype=torch.bool)
sparse = SparseLabels.from_padded(torch.randint(1 << 20, (64, 5)))
added(dense, False, (1.0, 1.0, 1.0))
added(dense, False, (1.0, 1024.0, 1024.0, 8.0))
added(sparse, False, (1.0, 1024.0, 1024.0))
added(dense, True, (3.0,))
added(sparse, True, (3.0,))
"""

# Arguments: dtypes, rows, features, labels, and which steps: 0, and 1 for those with fused_step.
# What gradients take is subtracted.
OF_A_LAYER = """
import sys
import torch
from tools.measuring import made_up_labels, rise_of_peak
from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss, empty_cache

rows, features, labels, *ways = map(int, sys.argv[2:])
torch.set_num_threads(1)
target = made_up_labels(rows, labels, 5, torch.Generator().manual_seed(0))

for dtype in sys.argv[1].split(","):
    dtype = getattr(torch, dtype)
    criterion = LinearWeightedBCEWithLogitsLoss(features, labels, dtype=dtype)
    x = torch.randn(rows, features, dtype=dtype, requires_grad=True)
    own = sum(p.numel() * p.element_size() for p in criterion.parameters())

    def step():
        criterion(x, target).backward()
        if criterion.fused_step is not None:
            criterion.fused_step.step()

    def topk():
        criterion.topk(x, 5)

    for fused in ways:
        criterion.fused_step = FusedSGD(criterion.linear.parameters(), lr=1.0) if fused else None
        for _ in range(2):
            step()
            criterion.zero_grad()
            empty_cache()
        print(rise_of_peak(step) - (0 if fused else own))
        criterion.zero_grad()
    topk()
    print(rise_of_peak(topk))
"""


# A dense target of 32 MiB; the logits alone would take 128 MiB.
OF_ROWS = """
import torch
from tools.measuring import rise_of_peak
from weighted_bce import LinearWeightedBCEWithLogitsLoss, empty_cache

torch.set_num_threads(1)
target = torch.zeros(512, 65536, dtype=torch.int8)
x = torch.randn(4, 128, 16, requires_grad=True)
for options in ({"reduction": "none"}, {"ignore_index": 1}):
    criterion = LinearWeightedBCEWithLogitsLoss(16, 65536, **options)
    own = sum(p.numel() * p.element_size() for p in criterion.parameters())

    def step():
        loss = criterion(x, target.view(4, 128, -1))
        (loss * torch.ones_like(loss)).sum().backward()

    for _ in range(2):
        step()
        criterion.zero_grad()
        empty_cache()
    print(rise_of_peak(step) - own)
"""


def measured(program: str, *arguments: object, **variables: str) -> list[float]:
    """Returns the MiB that a program prints, which its steps add at their peak."""
    command = (sys.executable, "-c", program, *map(str, arguments))
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    if "clear_refs" in ran.stderr:
        pytest.skip("the high-water mark of memory cannot be reset here")
    assert ran.returncode == 0, ran.stderr
    return [int(b) / 2**20 for b in ran.stdout.split()]


def of_a_layer(*arguments: object) -> list[float]:
    return measured(OF_A_LAYER, *arguments, MALLOC_MMAP_THRESHOLD_="65536")


def test_peak_is_one_gradient_or_nothing() -> None:
    """One whatever the loss scale does, nothing with inplace_backward; sparse labels add little."""
    same_scale, other_scales, sparse, inplace, sparse_inplace = measured(OF_LOGITS)
    assert 200 < same_scale < 256 + 48
    assert 200 < other_scales < 256 + 48
    assert 200 < sparse < 256 + 8
    assert inplace < 48
    assert sparse_inplace < 8


def test_a_layer_needs_one_chunk() -> None:
    """The logits alone would take 32 MiB in bfloat16."""
    rises = of_a_layer("float32,bfloat16", 256, 16, 65536, 0, 1)
    assert len(rises) == 6
    assert max(rises) < 16


def test_losses_of_rows_and_ignored_targets_need_one_chunk() -> None:
    """Neither all logits nor a mask of all targets is made."""
    of_rows, ignored = measured(OF_ROWS, MALLOC_MMAP_THRESHOLD_="65536")
    assert of_rows < 16
    assert ignored < 16


@pytest.mark.large
@pytest.mark.exhaustive
def test_millions_of_labels_are_trained_in_the_memory_of_the_weights() -> None:
    fused, best = of_a_layer("float32", 64, 128, 2812281, 1)
    assert fused < 64
    assert best < 64
