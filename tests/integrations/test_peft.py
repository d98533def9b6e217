"""peft: LoRA on an encoder under these losses, and a classifier with its loss that trains whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .trainers import HIDDEN, LABELS, Classifier, loader, transformers_trainer

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


def adapted(model: nn.Module) -> Any:
    """Returns the model with LoRA on its encoder; the classifier trains whole."""
    config = peft.LoraConfig(r=2, target_modules=["encoder.0"], modules_to_save=["criterion"])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return peft.get_peft_model(model, config)


def train(model: Any) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    losses = []
    for x, labels in 4 * list(loader()):
        optimizer.zero_grad()
        loss = model(x=x, labels=labels)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_trains_the_adapter_and_the_classifier() -> None:
    frozen, model = Classifier(), adapted(Classifier())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in trained if "lora" not in name} == {"weight", "bias"}
    assert len(trained) == 4
    losses = train(model)
    assert sum(losses[-11:]) < sum(losses[:11])
    base = model.get_base_model()
    torch.testing.assert_close(
        base.encoder[0].base_layer.weight, frozen.encoder[0].weight, rtol=0, atol=0
    )
    original = base.criterion.original_module.linear.weight
    torch.testing.assert_close(original, frozen.criterion.linear.weight, rtol=0, atol=0)
    assert not torch.equal(base.criterion.modules_to_save["default"].linear.weight, original)


def test_saved_and_merged(tmp_path: Path) -> None:
    """Other names of the classifier, such as its best labels, lead to the part that is trained."""
    model = adapted(Classifier())
    model.get_base_model().criterion.pos_weight = torch.rand(LABELS)
    train(model)
    batch = next(iter(loader()))
    wanted = model(*batch)["loss"]
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(Classifier(), tmp_path)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(*batch)["loss"], wanted)
    hidden = torch.randn(2, HIDDEN)
    for criterion in (again.get_base_model().criterion, merged.criterion):
        assert criterion.topk(hidden, 3).indices.shape == (2, 3)
    torch.testing.assert_close(
        again.get_base_model().criterion.linear.weight, merged.criterion.linear.weight
    )


def test_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = adapted(Classifier())
    before = {name: p.clone() for name, p in model.named_parameters()}
    arguments = {"num_train_epochs": 1, "learning_rate": 0.1, "label_names": ["labels"]}
    transformers_trainer(model, tmp_path, arguments).train()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
