"""A program that uses every public name, for type checkers; `wrong` has what they must reject.

In `wrong`, each comment that ignores an error is itself an error where there is none to ignore.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnknownMemberType=false

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import assert_type

import weighted_bce as w
from weighted_bce import SparseLabels

Sample = tuple[Tensor, list[int]]


class Model(nn.Module):
    def __init__(self, pos_weight: Tensor) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.criterion = w.LinearWeightedBCEWithLogitsLoss(
            8, 5, pos_weight=pos_weight, reduction="batchmean"
        )

    def forward(self, x: Tensor, labels: SparseLabels | Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.encoder(x), labels)
        return loss


def batches() -> DataLoader[Any]:
    samples: list[Sample] = [(torch.zeros(4), [1, 3]), (torch.ones(4), [])]
    return DataLoader[Any](samples, batch_size=2, collate_fn=w.collate)  # type: ignore[arg-type]


def sparse_labels() -> SparseLabels:
    labels = assert_type(SparseLabels.from_lists([[1, 3], []]), SparseLabels)
    assert_type(SparseLabels.from_padded(torch.tensor([[1, 3], [-1, -1]])), SparseLabels)
    assert_type(SparseLabels.from_dense(labels.to_dense(5)), SparseLabels)
    assert_type(SparseLabels.from_tensor(torch.eye(2).to_sparse()), SparseLabels)
    assert_type(labels.to_dense(5, torch.float32), Tensor)
    assert_type(labels.select(torch.tensor([1])), SparseLabels)
    assert_type(labels.select(slice(0, 1)), SparseLabels)
    assert_type(labels.num_rows, int)
    crow, col = labels
    assert_type(crow, Tensor)
    assert_type(col, Tensor)
    assert_type(labels.col_indices, Tensor)
    return assert_type(labels.to("cpu", non_blocking=True), SparseLabels)


def weights(per_class: bool) -> Tensor:
    dense = torch.eye(5)
    assert_type(w.pos_weight_from_labels(dense), Tensor)
    assert_type(w.pos_weight_from_labels(dense, per_class=True, max_weight=100), Tensor)
    assert_type(w.pos_weight_from_labels(dense, per_class=False, smoothing=1.0), float)
    assert_type(w.pos_weight_from_labels(dense, per_class=per_class), Tensor | float)
    assert_type(w.pos_weight_from_labels(dense.numpy()), Tensor)
    assert_type(w.propensity_from_labels(sparse_labels(), 5, A=0.5, B=0.4), Tensor)
    assert_type(w.prior_logits([(dense, sparse_labels())], 5), Tensor)
    return w.pos_weight_from_labels(batches(), num_labels=5)


def functions(logits: Tensor, target: Tensor | SparseLabels) -> list[Tensor]:
    features, weight, bias = torch.randn(2, 3), torch.randn(5, 3), torch.randn(5)
    reductions: list[Literal["none", "mean", "sum", "batchmean"]] = ["sum", "batchmean"]
    losses = [
        w.weighted_bce_with_logits(logits, target, reduction=reduction, pos_weight=7)
        for reduction in reductions
    ]
    return [
        *losses,
        assert_type(w.weighted_bce_with_logits(logits, target, None, torch.ones(5)), Tensor),
        w.weighted_bce_with_logits(logits, target, reduction="sum", normalizer=torch.tensor(2)),
        w.weighted_bce_with_logits(logits, target, reduction=torch.mean),
        w.weighted_bce_with_logits(logits, target, reduction=lambda loss: loss.sum(1).mean()),
        assert_type(w.weighted_bce(logits.sigmoid(), target, ignore_index=-1), Tensor),
        assert_type(w.multilabel_loss_with_logits(logits, target, w.Focal(gamma=1)), Tensor),
        assert_type(w.sigmoid_focal_loss(logits, target, 0.25, 2, "mean"), Tensor),
        assert_type(
            w.linear_weighted_bce_with_logits(
                features, weight, target, linear_bias=bias, reduction="sum", normalizer=2
            ),
            Tensor,
        ),
        assert_type(
            w.linear_multilabel_loss_with_logits(features, weight, target, w.Hill()), Tensor
        ),
    ]


def modules(logits: Tensor, target: Tensor | SparseLabels) -> list[Tensor]:
    criteria: list[nn.Module] = [
        w.WeightedBCEWithLogitsLoss(torch.ones(5), 7.0, "sum", label_smoothing=0.1),
        w.WeightBCEWithLogitsLoss(7.0, torch.mean),
        w.WeightBCEWithLogitsLoss(7, "batchmean"),
        w.MultilabelLoss(w.Poly1(epsilon=1.0), pos_weight=torch.ones(5)),
        w.MultilabelLoss(w.BCE(), reduction=torch.sum),
        w.AsymmetricLoss(gamma_neg=4, clip=None, reduction="mean"),
    ]
    linear = w.LinearMultilabelLoss(5, 5, w.Asymmetric(clip=0.0), reduction="mean")
    values, indices = linear.topk(logits, 2)
    assert_type(values, Tensor)
    assert_type(indices, Tensor)
    assert_type(linear.logits(logits), Tensor)
    probabilities: Tensor = w.WeightedBCELoss(reduction="none")(logits.sigmoid(), target)
    return [*(criterion(logits, target) for criterion in criteria), probabilities]


def train() -> float:
    model = Model(weights(per_class=True))
    fused = w.FusedSGD(model.criterion.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    model.criterion.fused_step = fused
    adam = torch.optim.Adam(model.encoder.parameters())
    optimizer: torch.optim.Optimizer = w.ChainedOptimizer([adam, fused])
    total = 0.0
    for x, labels in batches():
        loss = model(x, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    w.FusedAdam([{"params": [torch.ones(2, requires_grad=True)], "lr": 0.1}], betas=(0.9, 0.99))
    return total


def main() -> None:
    name: Literal["auto", "fused", "reference"] = "reference"
    with w.backend(name):
        train()
    with w.backend("auto"):
        logits = torch.randn(2, 5)
        functions(logits, sparse_labels())
        modules(logits, sparse_labels().to_dense(5))
    by_name = partial(w.collate, labels="tags")
    assert assert_type(by_name([{"tags": [1]}]), Any)["tags"].num_rows == 1
    w.empty_cache()
    losses: list[w.BCE | w.SquaredHinge] = [w.BCE(), w.SquaredHinge()]
    print(assert_type(w.__version__, str), assert_type(w.show_config(), str), losses)


def wrong(x: Tensor, y: Tensor, name: str) -> None:
    w.weighted_bce_with_logits(x, y, reduction="avg")  # type: ignore[arg-type]
    w.weighted_bce_with_logits(x, y, reduction=name)  # type: ignore[arg-type]
    w.weighted_bce_with_logits(x, y, 7.0)  # type: ignore[arg-type]
    w.weighted_bce_with_logits(x, [[1], [2]])  # type: ignore[arg-type]
    w.weighted_bce(x, y, reduction=None)  # type: ignore[arg-type]
    w.multilabel_loss_with_logits(x, y, "focal")  # type: ignore[arg-type]
    w.multilabel_loss_with_logits(x, y, w.Focal(), reduction="avg")  # type: ignore[arg-type]
    w.weighted_bce(x, y, reduction="sum", normalizer="2")  # type: ignore[arg-type]
    w.sigmoid_focal_loss(x, y, reduction="avg")  # type: ignore[arg-type]
    w.linear_weighted_bce_with_logits(x, x, y, reduction=torch.mean)  # type: ignore[arg-type]
    w.linear_multilabel_loss_with_logits(x, x, y, w.BCE(), reduction="avg")  # type: ignore[arg-type]
    w.WeightedBCEWithLogitsLoss(reduction="avg")  # type: ignore[arg-type]
    w.WeightedBCELoss(reduction="avg")  # type: ignore[arg-type]
    w.MultilabelLoss(w.BCE(), reduction="avg")  # type: ignore[arg-type]
    w.AsymmetricLoss(reduction="avg")  # type: ignore[arg-type]
    w.WeightBCEWithLogitsLoss(7.0, "avg")  # type: ignore[arg-type]
    w.LinearWeightedBCEWithLogitsLoss(4, 5, reduction="avg")  # type: ignore[arg-type]
    w.LinearWeightedBCEWithLogitsLoss(4, 5, reduction=torch.sum)  # type: ignore[arg-type]
    w.LinearMultilabelLoss(4, 5, w.BCE(), reduction="avg")  # type: ignore[arg-type]
    w.backend("cuda")  # type: ignore[arg-type]
    w.pos_weight_from_labels(3)  # type: ignore[call-overload]
    w.pos_weight_from_labels(y, per_class="no")  # type: ignore[call-overload]
    w.pos_weight_from_labels(y).is_integer()  # type: ignore[attr-defined]
    w.pos_weight_from_labels(y, per_class=False).dim()  # type: ignore[attr-defined]
    w.prior_logits(y, "5")  # type: ignore[arg-type]
    w.collate([], labels=3)  # type: ignore[arg-type]
    w.Focal(gamma="2")  # type: ignore[arg-type]
    w.FusedSGD(3)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
