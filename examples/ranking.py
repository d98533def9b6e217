"""How good the first few labels of a ranking are: the measures of extreme classification."""

from typing import NamedTuple

import torch
from torch import Tensor

from weighted_bce import SparseLabels

from .losses import places

KS = (1, 3, 5)
DEEPEST = max(KS)


class Quality(NamedTuple):
    """Each at the first 1, 3 and 5 labels of a row, from 0 to 1."""

    precision: list[float]
    ndcg: list[float]
    propensity_scored: list[float]


def quality(ranked: Tensor, labels: SparseLabels, propensity: Tensor) -> Quality:
    """The measures of a ranking, all on the CPU.

    P@k is the share of a row's first k labels that are true, averaged over rows. nDCG@k is

        (sum over the true ones of 1 / log2(1 + place)) / (the same of the best ranking),

    averaged over rows (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques",
    TOIS 2002). PSP@k is

        (sum over rows, over the true ones of 1 / p[label]) / (the same of the best rankings),

    where p is how likely it is that a true label was given (Jain, Prabhu and Varma, "Extreme
    Multi-label Loss Functions", KDD 2016), so that a rare label counts more. As in the extreme
    classification repository, a row without true labels counts as a ranking with none right.

    Args:
        ranked: (rows, 5), the first labels of each row's ranking.
        labels: the true ones.
        propensity: (labels,), p.
    """
    inverse = propensity.double().reciprocal()
    row, label = places(labels)
    own = torch.arange(len(ranked))[:, None] * len(inverse) + ranked
    right = torch.isin(own, row * len(inverse) + label).double()
    # The best ranking has the true labels first, those with the smallest p before the others.
    start, count = labels.crow_indices[:-1], labels.crow_indices.diff()
    best = (torch.arange(DEEPEST) < count[:, None]).double()
    order = inverse[label].argsort(descending=True)
    order = order[row[order].argsort(stable=True)]
    place = torch.arange(len(label)) - start[row]
    first = place < DEEPEST
    rarest = torch.zeros_like(best[0]).index_add(0, place[first], inverse[label][order][first])

    discounts = 1 / torch.arange(2, DEEPEST + 2).double().log2()
    gains, ideal = ((x * discounts).cumsum(1) for x in (right, best))
    scored = (right * inverse[ranked]).sum(0).cumsum(0)
    measures = (
        right.mean(0).cumsum(0) / torch.arange(1, DEEPEST + 1),
        (gains / ideal.clamp(min=1)).mean(0),  # without a true label both are 0
        # 1 / p is at least 1: below 1 there is no true label, and both sums are 0.
        scored / rarest.cumsum(0).clamp(min=1),
    )
    return Quality(*([float(measure[k - 1]) for k in KS] for measure in measures))
