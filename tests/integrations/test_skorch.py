"""skorch's NeuralNet with these losses, with dense, padded and scipy labels."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import nn

from weighted_bce import Focal, MultilabelLoss, SparseLabels, WeightedBCEWithLogitsLoss, collate

from .linear_models import (
    LEARNING_RATE,
    POS_WEIGHT,
    LinearModel,
    assert_same_weights,
    dense,
    features,
    padded,
    train_truly,
)
from .trainers import LABELS

skorch = pytest.importorskip("skorch")
pytestmark = pytest.mark.usefixtures("one_thread")


class PaddedLabels(skorch.NeuralNet):  # type: ignore[misc, name-defined]
    """Takes labels that are padded with -1, as skorch cannot slice sparse ones."""

    def get_loss(self, y_pred: torch.Tensor, y_true: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self.criterion_(y_pred, SparseLabels.from_padded(y_true.to(y_pred.device)))


class SparseRows(skorch.NeuralNet):  # type: ignore[misc, name-defined]
    """Takes rows of a scipy matrix by `collate`."""

    def get_loss(self, y_pred: torch.Tensor, y_true: SparseLabels, *_: Any, **__: Any) -> Any:
        return self.criterion_(y_pred, y_true.to(y_pred.device))


def labels_of(kind: str) -> Any:
    if kind == "scipy":
        return SparseLabels.from_dense(dense()).to_scipy(LABELS)
    return {"dense": dense, "padded": padded}[kind]().numpy()


def net_of(kind: str, **options: Any) -> Any:
    options = {
        "criterion": WeightedBCEWithLogitsLoss,
        "criterion__pos_weight": POS_WEIGHT,
        "train_split": None,
        "max_epochs": 1,
        "lr": LEARNING_RATE,
        "batch_size": 8,
        "predict_nonlinearity": torch.sigmoid,
        "verbose": 0,
        **options,
    }
    if kind == "scipy":
        options["iterator_train__collate_fn"] = collate
    kinds = {"dense": skorch.NeuralNet, "padded": PaddedLabels, "scipy": SparseRows}
    return kinds[kind](LinearModel().linear, **options)


def precision(net: Any, x: Any, y: Any) -> float:
    """The share of true ones among the 3 likeliest labels of a row."""
    best = np.argsort(-net.predict_proba(x), axis=1)[:, :3]
    if hasattr(y, "toarray"):
        y = y.toarray()
    if y.shape[1] != LABELS:
        y = SparseLabels.from_padded(torch.from_numpy(y)).to_dense(LABELS).numpy()
    return float(np.take_along_axis(y, best, axis=1).mean())


@pytest.mark.parametrize("kind", ["dense", "padded", "scipy"])
def test_fit_and_predict(kind: str) -> None:
    """The loss of an epoch is that of its rows, though the last batch has fewer."""
    net = net_of(kind).fit(features().double().numpy(), labels_of(kind))
    wanted, losses = train_truly(8)
    assert_same_weights(net.module_, wanted.linear)
    mean = (8 * losses[0] + 8 * losses[1] + 6 * losses[2]) / 22
    assert net.history[-1, "train_loss"] == pytest.approx(mean)
    probabilities = torch.from_numpy(net.predict_proba(features().double().numpy()))
    torch.testing.assert_close(probabilities, wanted(features())["logits"].sigmoid())


def test_logits_need_a_sigmoid() -> None:
    """skorch knows that of torch.nn.BCEWithLogitsLoss alone."""
    net = net_of("dense", predict_nonlinearity="auto")
    net.fit(features().double().numpy(), labels_of("dense"))
    assert net.predict_proba(features().double().numpy()).min() < 0


@pytest.mark.parametrize("kind", ["dense", "padded"])
def test_cross_validation(kind: str) -> None:
    x, y = features().double().numpy(), labels_of(kind)
    scores = cross_val_score(net_of(kind), x, y, cv=3, scoring=precision, error_score="raise")
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("kind", ["dense", "scipy"])
def test_grid_of_weights(kind: str) -> None:
    """The criterion is made anew with each weight, a number or a tensor for each label."""
    x, y = features().double().numpy(), labels_of(kind)
    weights = [1.0, torch.full((LABELS,), 5.0)]
    search = GridSearchCV(
        net_of(kind),
        {"criterion__pos_weight": weights},
        scoring=precision,
        cv=2,
        error_score="raise",
    )
    search.fit(x, y)
    assert isinstance(search.best_estimator_.criterion_, WeightedBCEWithLogitsLoss)


def test_validation_and_another_loss() -> None:
    split = skorch.dataset.ValidSplit(4)
    options = {"criterion": MultilabelLoss, "criterion__loss": Focal(gamma=2.0)}
    net = net_of("padded", train_split=split, max_epochs=3, **options)
    net.fit(features().double().numpy(), labels_of("padded"))
    losses = net.history[:, "valid_loss"]
    assert losses[-1] < losses[0]


def test_state_is_saved(tmp_path: Any) -> None:
    x, y = features().double().numpy(), labels_of("dense")
    net = net_of("dense", criterion__pos_weight=torch.full((LABELS,), 5.0)).fit(x, y)
    net.save_params(tmp_path / "module.pt", f_criterion=tmp_path / "criterion.pt")
    other = net_of("dense", criterion__pos_weight=torch.ones(LABELS)).initialize()
    other.load_params(tmp_path / "module.pt", f_criterion=tmp_path / "criterion.pt")
    assert (other.criterion_.pos_weight == 5).all()
    assert isinstance(other.module_, nn.Linear)
    assert np.array_equal(other.predict(x), net.predict(x))
