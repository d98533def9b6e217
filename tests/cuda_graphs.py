"""CUDA graphs of a training step."""

from collections.abc import Callable
from typing import Any

import torch


def captured(step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A graph of the step, after the warm-up on a side stream that capturing asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
