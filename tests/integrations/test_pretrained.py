"""Models of Transformers with a criterion: saved, loaded in half precision and trained again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weighted_bce import (
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    WeightedBCEWithLogitsLoss,
    collate,
)

from .trainers import FEATURES, HIDDEN, LABELS, samples, transformers_trainer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
LARGE = 70_001.0  # infinity in float16, and 70,144 in bfloat16


class Configuration(transformers.PretrainedConfig):  # type: ignore[misc]
    model_type = "classifier_of_a_test"

    def __init__(self, kind: str = "linear", **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind


class Pretrained(transformers.PreTrainedModel):  # type: ignore[misc]
    config_class = Configuration
    _keep_in_fp32_modules_strict = ["pos_weight"]  # noqa: RUF012

    def __init__(self, config: Configuration) -> None:
        super().__init__(config)
        self.encoder = nn.Linear(FEATURES, HIDDEN)
        if config.kind == "linear":
            self.head = nn.Identity()
            self.criterion: Any = LinearWeightedBCEWithLogitsLoss(
                HIDDEN, LABELS, pos_weight=torch.full((LABELS,), LARGE)
            )
        else:
            weight = LARGE if config.kind == "number" else torch.full((LABELS,), LARGE)
            self.head = nn.Linear(HIDDEN, LABELS)
            self.criterion = WeightedBCEWithLogitsLoss(pos_weight=weight)
        self.post_init()

    def forward(self, x: Tensor, labels: SparseLabels | None = None) -> dict[str, Tensor]:
        hidden = self.head(self.encoder(x.to(self.encoder.weight.dtype)))
        return {"loss": self.criterion(hidden, labels)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "tensor", "number"])
def test_saved_and_loaded(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = Pretrained(Configuration(kind))
    model.save_pretrained(tmp_path)
    loaded = Pretrained.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    weight = torch.as_tensor(loaded.criterion.pos_weight)
    assert weight.unique().item() == LARGE
    x, labels = collate(samples())  # type: ignore[arg-type]
    losses = [each(x, labels)["loss"].double() for each in (loaded, model)]
    torch.testing.assert_close(*losses, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=0)


def test_trained_and_loaded_again(tmp_path: Path) -> None:
    model = Pretrained(Configuration())
    arguments = {"num_train_epochs": 1, "learning_rate": 1e-3}
    trainer = transformers_trainer(model, tmp_path, arguments)
    trainer.train()
    trainer.save_model(str(tmp_path / "best"))
    loaded = Pretrained.from_pretrained(tmp_path / "best")
    for (name, value), other in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
