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
from examples.losses import made_up_labels, rise_of_peak
from weighted_bce import FusedSGD, LinearWeightedBCEWithLogitsLoss, empty_cache

rows, features, labels, *ways = map(int, sys.argv[2:])
torch.set_num_threads(1)
criterion = LinearWeightedBCEWithLogitsLoss(features, labels, dtype=getattr(torch, sys.argv[1]))
x = torch.randn(rows, features, dtype=criterion.linear.weight.dtype, requires_grad=True)
target = made_up_labels(rows, labels, 5, torch.Generator().manual_seed(0))
own = sum(p.numel() * p.element_size() for p in criterion.parameters())

def step():
    criterion(x, target).backward()

def topk():
    criterion.topk(x, 5)

found = []
for fused in ways:
    criterion.fused_step = FusedSGD(criterion.linear.parameters(), lr=1.0) if fused else None
    for _ in range(2):
        step()
        criterion.zero_grad()
        empty_cache()
    found.append(rise_of_peak(step) - (0 if fused else own))
    criterion.zero_grad()
topk()
print(*found, rise_of_peak(topk))
"""


def measured(dtype: str, *arguments: int) -> list[float]:
    """MiB beyond inputs and gradients: of a step (0), of one with fused_step (1), of topk.

    Arguments: rows, features, labels, and which steps.
    """
    command = (sys.executable, "-c", MEASURED, dtype, *map(str, arguments))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return [int(b) / 2**20 for b in ran.stdout.split()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_needs_one_chunk(dtype: str) -> None:
    """Of bfloat16 the logits alone would take 32 MiB."""
    for found in measured(dtype, 256, 16, 65536, 0, 1):
        assert found < 16


@pytest.mark.large
def test_millions_of_labels_are_trained_in_the_memory_of_the_weights() -> None:
    fused, best = measured("float32", 64, 128, 2812281, 1)
    assert fused < 64
    assert best < 64
