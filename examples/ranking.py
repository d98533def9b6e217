"""How good the first few labels of a ranking are: the measures of extreme classification."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from weighted_bce import SparseLabels

from .losses import places

KS = (1, 3, 5)
DEEPEST = max(KS)


class Quality(NamedTuple):
    """Each at the first 1, 3 and 5 labels of a row, from 0 to 1."""

    precision: list[float]
    ndcg: list[float]
    propensity_scored: list[float]


class Ranking:
    """Running sums from which `Quality` follows.

    P@k is the share of a row's first k labels that are true, averaged over rows. nDCG@k is

        (sum over the true ones of 1 / log2(1 + place)) / (the same of the best ranking),

    averaged over rows (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques",
    TOIS 2002). PSP@k is

        (sum over rows, over the true ones of 1 / p[label]) / (the same of the best rankings),

    where p is how likely a true label was marked (Jain, Prabhu and Varma, "Extreme Multi-label Loss
    Functions", KDD 2016), so that a rare label counts more. As in the extreme classification
    repository, a row without true labels counts as a ranking with none right.

    Args:
        propensity: (labels,), p.
    """

    def __init__(self, propensity: Tensor) -> None:
        self._inverse = propensity.double().reciprocal()
        self._discounts = 1 / torch.arange(2, DEEPEST + 2, dtype=torch.float64).log2()
        self._rows = 0
        self._hits, self._ndcg, self._found, self._best = torch.zeros(4, DEEPEST).double()

    def add(self, ranked: Tensor, labels: SparseLabels) -> None:
        """Counts a block of rows, all on the CPU.

        Args:
            ranked: (rows, 5), the first labels of each row's ranking.
            labels: the true ones.
        """
        right = _are_true(ranked, labels, len(self._inverse)).double()
        counts = labels.crow_indices.diff()
        best = (torch.arange(DEEPEST) < counts[:, None]).double()
        gains, ideal = ((x * self._discounts).cumsum(1) for x in (right, best))
        self._rows += len(ranked)
        self._hits += right.sum(0).cumsum(0)
        self._ndcg += (gains / ideal.clamp(min=1)).sum(0)  # without a true label both are 0
        self._found += (right * self._inverse[ranked]).sum(0).cumsum(0)
        each = self._inverse[labels.col_indices].split(counts.tolist())
        scores = F.pad(pad_sequence(list(each), batch_first=True), (0, DEEPEST))
        self._best += scores.topk(DEEPEST).values.sum(0).cumsum(0)

    def quality(self) -> Quality:
        def at_ks(sums: Tensor) -> list[float]:
            return [float(sums[k - 1]) for k in KS]

        rows = max(self._rows, 1)
        shown = torch.arange(1, DEEPEST + 1)
        return Quality(
            at_ks(self._hits / shown / rows),
            at_ks(self._ndcg / rows),
            # 1 / p is at least 1: below 1 there is no true label, and both sums are 0.
            at_ks(self._found / self._best.clamp(min=1)),
        )


def _are_true(ranked: Tensor, labels: SparseLabels, width: int) -> Tensor:
    """Which of these labels, (rows, k), their rows have."""
    row, label = places(labels)
    own = torch.arange(len(ranked))[:, None] * width + ranked
    return torch.isin(own, row * width + label)
