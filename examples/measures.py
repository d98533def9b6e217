"""How good predictions are: at a threshold, as a ranking, and as probabilities.

Scores are (rows, labels).
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.metrics import precision_recall_fscore_support as scores_of

EDGE = 8  # logits are put into bins of width 1 from -EDGE to EDGE; the outer ones hold the rest


class Predictions(NamedTuple):
    """The worth of predicting each label whose score is at least a threshold."""

    # Micro-averaged over all (row, label) pairs, except where it says otherwise.
    precision: float
    recall: float
    f1: float
    macro_f1: float  # mean over the labels that have a positive
    per_row: float  # predicted labels
    empty_rows: float  # the share of rows without a predicted label


def predictions(scores: np.ndarray, labels: csr_matrix, threshold: float) -> Predictions:
    predicted = csr_matrix(scores >= threshold)
    micro = scores_of(labels, predicted, average="micro", zero_division=0)[:3]
    some = with_positives(labels)
    macro = scores_of(labels[:, some], predicted[:, some], average="macro", zero_division=0)[2]
    each = np.diff(predicted.indptr)
    return Predictions(*map(float, (*micro, macro, each.mean(), (each == 0).mean())))


class Calibration(NamedTuple):
    """How far the probabilities of logits are from the frequencies of the labels."""

    per_row: float  # the sum of a row's probabilities; calibrated: its number of true labels
    error: float  # the sum over bins of |expected - true|, divided by all true labels
    # For each bin, in the order of the logits.
    pairs: tuple[float, ...]  # of a row and a label
    expected: tuple[float, ...]  # the sum of their probabilities
    true: tuple[float, ...]


def calibration(logits: np.ndarray, labels: csr_matrix) -> Calibration:
    """Compares probabilities with frequencies, in bins of the logit.

    It is not the usual expected calibration error: of bins that hold equally many pairs almost all
    would be without a true label, and among all pairs the error of those that matter is tiny.
    """
    within = np.clip(logits, -EDGE, EDGE)
    pairs, expected, true = (
        np.histogram(values, 2 * EDGE, (-EDGE, EDGE), weights=weights)[0].astype(float)
        for values, weights in (
            (within, None),
            (within, expit(logits)),
            (within[labels.nonzero()], None),
        )
    )
    error = np.abs(expected - true).sum() / labels.nnz
    per_row = float(expected.sum() / len(logits))
    return Calibration(per_row, float(error), *(tuple(x.tolist()) for x in (pairs, expected, true)))


def best_threshold(scores: np.ndarray, labels: csr_matrix) -> float:
    """The threshold with the largest micro-F1.

    It is the score of a positive: between two of those, the higher threshold predicts fewer
    negatives.
    """
    candidates = np.sort(scores[labels.nonzero()])
    right = np.arange(len(candidates), 0, -1)
    predicted = scores.size - np.searchsorted(np.sort(scores, axis=None), candidates)
    return float(candidates[np.argmax(2 * right / (predicted + labels.nnz))])


def mean_average_precision(scores: np.ndarray, labels: csr_matrix) -> float:
    """The average precision of each label's ranking of the rows, mean over labels with a positive.

    It is sklearn's average_precision_score(average="macro") of these labels, only faster.
    """
    columns = labels.tocsc()
    precisions = []
    for label in with_positives(labels):
        every = np.sort(scores[:, label])
        own = np.sort(scores[columns.indices[slice(*columns.indptr[label : label + 2])], label])
        # The precision among the rows that are ranked at least as high as each positive.
        right = len(own) - np.searchsorted(own, own)
        precisions.append((right / (len(every) - np.searchsorted(every, own))).mean())
    return float(np.mean(precisions))


def with_positives(labels: csr_matrix) -> np.ndarray:
    return np.flatnonzero(labels.getnnz(axis=0))
