"""Weights from labels that are DTensors, for losses of DTensors."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from weighted_bce import (
    pos_weight_from_labels,
    prior_logits,
    propensity_from_labels,
    weighted_bce_with_logits,
)

from .processes import Processes
from .shards import assert_whole, distributed, layouts

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")


def check_weights(process: int) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(7, 13, generator=generator) < 0.3
    y[:, 5] = False
    logits = torch.randn(7, 13, generator=generator)
    for mesh, placements in layouts(dist.get_world_size()):
        for labels in (y, y.float()):
            parts: Any = distributed(labels, mesh, placements)
            for function in (pos_weight_from_labels, propensity_from_labels, prior_logits):
                assert_whole(function(parts), function(labels))
            total = pos_weight_from_labels(labels, per_class=False)
            assert pos_weight_from_labels(parts, 13, per_class=False) == total
        wrong = distributed(y.float().index_fill(0, torch.tensor(6), 3.0), mesh, placements)
        with pytest.raises(ValueError, match=r"^labels must be in \[0, 1\], got .* from 0 to 3"):
            prior_logits(wrong)
        weight = pos_weight_from_labels(parts)
        x = distributed(logits, mesh, placements)
        loss: Any = weighted_bce_with_logits(x, parts, pos_weight=weight)
        whole = weighted_bce_with_logits(logits, y, pos_weight=pos_weight_from_labels(y))
        assert_whole(loss, whole)


def test_weights_of_sharded_labels(processes: Processes) -> None:
    processes(check_weights)
