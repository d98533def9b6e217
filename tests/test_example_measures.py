"""What the examples say about predictions is what scikit-learn, or the definition, says."""

import numpy as np
import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from examples import comparison, data, losses, measures


def some_scores() -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels: label 4 is never true, row 3 has none."""
    scores, target = torch.randn(30, 9).numpy().round(1), torch.rand(30, 9).numpy() < 0.3
    target[3], target[:, 4] = False, False
    return scores, target


def test_predictions_and_average_precision_are_sklearns() -> None:
    scores, target = some_scores()
    labels, some = csr_matrix(target), target.any(0)
    predicted = scores >= 1
    micro = precision_recall_fscore_support(target, predicted, average="micro")[:3]
    macro = f1_score(target[:, some], predicted[:, some], average="macro", zero_division=0)
    rows = predicted.sum() / 30, (~predicted.any(1)).mean()
    assert measures.predictions(scores, labels, 1) == pytest.approx((*micro, macro, *rows))
    assert measures.predictions(scores, labels, 99) == (0, 0, 0, 0, 0, 1)
    expected = average_precision_score(target[:, some], scores[:, some], average="macro")
    assert measures.mean_average_precision(scores, labels) == pytest.approx(expected)


def test_best_threshold_is_that_of_all() -> None:
    for _ in range(5):
        scores, target = some_scores()
        every = [f1_score(target, scores >= t, average="micro") for t in np.unique(scores)]
        best = measures.best_threshold(scores, csr_matrix(target))
        assert f1_score(target, scores >= best, average="micro") == pytest.approx(max(every))


def test_ranking_of_a_small_case() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6]])
    true = csr_matrix([[1, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 0]], dtype=bool)
    rows = data.Dataset("two rows", csr_matrix(logits.numpy()), true)

    class Same(torch.nn.Module):
        def forward(self, features: csr_matrix) -> torch.Tensor:
            return torch.from_numpy(features.toarray())

    plain, categorical = losses.LOSSES[:2]
    quality = comparison.evaluate(Same(), plain, rows, rows, 2.0)
    assert (quality.precision_at_1, quality.precision_at_5) == (0.5, pytest.approx(0.3))
    assert quality.at_half.per_row == 7
    assert quality.threshold == 5  # two of its four predictions are true, and two of four labels
    # The first labels of a row have the softmax 0.633, 0.233 and 0.086; 0.5 / 2.3 is 0.217.
    softmax = comparison.evaluate(Same(), categorical, rows, rows, 2.3)
    assert softmax.at_half.per_row == 2
    assert softmax[4:6] == quality[4:6]
    assert (softmax.calibration, softmax.undone, quality.undone) == (None, None, None)
    firsts = rows._replace(labels=csr_matrix(logits.numpy() == 6))
    chosen = comparison.evaluate(Same(), plain, firsts, rows, 2.0)
    assert (chosen.threshold, chosen.at_best.per_row, chosen.at_best.precision) == (6, 1, 0.5)
    assert (chosen.validation_f1, quality.validation_f1) == (1, pytest.approx(0.5))
    # Odds of e^x undone by 7 are e^x / 7: at least 1 for the logits 2 to 6.
    (weighted,) = (loss for loss in losses.LOSSES if loss.name == "ours, weight 7")
    undone = comparison.evaluate(Same(), weighted, rows, rows, 2.0).undone
    assert undone is not None
    assert undone.at_half.per_row == 5
    odds = logits.double().exp() / 7
    assert undone.calibration.per_row == pytest.approx(float((odds / (1 + odds)).sum() / 2))


def test_calibration_is_that_of_its_definition() -> None:
    logits = 9 * torch.randn(40, 25).numpy()
    target = torch.rand(40, 25).numpy() < 0.1
    found = measures.calibration(logits, csr_matrix(target))
    differences = []
    for k in range(-8, 8):
        low, high = (-np.inf if k == -8 else k), (np.inf if k == 7 else k + 1)
        inside = (low <= logits) & (logits < high)
        of_bin = found.pairs[k + 8], found.expected[k + 8], found.true[k + 8]
        expected = (1 / (1 + np.exp(-logits[inside].astype(float)))).sum()
        assert of_bin == pytest.approx((inside.sum(), expected, target[inside].sum()))
        differences.append(abs(expected - target[inside].sum()))
    assert found.error == pytest.approx(sum(differences) / target.sum())
    assert found.per_row == pytest.approx(sum(found.expected) / 40)
    even = measures.calibration(np.zeros((2, 4)), csr_matrix([[1, 0, 1, 0], [1, 1, 0, 0]]))
    assert (even.error, even.per_row) == (0, 2)
