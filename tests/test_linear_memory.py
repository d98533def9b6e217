"""The loss of a linear layer needs the memory of one chunk beyond its inputs and gradients."""

import os
import subprocess
import sys

import pytest

from weighted_bce._extension import extension

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")

MEASURED = """
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


def measured(dtypes: str, *arguments: int) -> list[float]:
    """Returns the MiB beyond inputs and gradients: of each step, and of topk.

    Arguments: rows, features, labels, and which steps: 0, and 1 for those with fused_step.
    """
    command = (sys.executable, "-c", MEASURED, dtypes, *map(str, arguments))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return [int(b) / 2**20 for b in ran.stdout.split()]


def test_a_step_needs_one_chunk() -> None:
    """The logits alone would take 32 MiB in bfloat16."""
    rises = measured("float32,bfloat16", 256, 16, 65536, 0, 1)
    assert len(rises) == 6
    assert max(rises) < 16


@pytest.mark.large
@pytest.mark.exhaustive
def test_millions_of_labels_are_trained_in_the_memory_of_the_weights() -> None:
    fused, best = measured("float32", 64, 128, 2812281, 1)
    assert fused < 64
    assert best < 64
