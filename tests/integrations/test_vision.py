"""torchvision, timm and MONAI: these losses in their models, engines and wrappers.

They need an environment of their own, which `make vision` makes.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_bce import (
    AsymmetricLoss,
    Focal,
    MultilabelLoss,
    WeightedBCEWithLogitsLoss,
    sigmoid_focal_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_focal_loss_of_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of torchvision's RetinaNet finds the same loss and gradient with our function."""
    pytest.importorskip("torchvision")
    from torchvision.models.detection import retinanet

    head = retinanet.RetinaNetClassificationHead(8, 2, 5)
    targets = [{"labels": torch.tensor([1, 3])}, {"labels": torch.tensor([2])}]
    x = torch.randn(2, 8, 4, 4)
    matched = [torch.randint(-2, 2, (32,)), torch.randint(-2, 1, (32,))]

    def gradients() -> list[Tensor]:
        head.zero_grad()
        loss = head.compute_loss(targets, {"cls_logits": head([x])}, matched)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in head.parameters())]

    wanted = gradients()
    monkeypatch.setattr(retinanet, "sigmoid_focal_loss", sigmoid_focal_loss)
    for one, other in zip(gradients(), wanted, strict=True):
        torch.testing.assert_close(one, other)


def wrapped(kind: str, tensor: Tensor) -> Tensor:
    """A subclass of tensors as transforms of images return them."""
    if kind == "torchvision":
        return pytest.importorskip("torchvision.tv_tensors").Mask(tensor)
    return pytest.importorskip("monai").data.MetaTensor(tensor)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["torchvision", "monai"])
@pytest.mark.parametrize(
    "loss", [WeightedBCEWithLogitsLoss, lambda **o: MultilabelLoss(Focal(), **o)]
)
def test_masks(loss: Any, kind: str) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    mask = torch.randint(2, (2, 3, 4, 4), dtype=torch.uint8)
    criterion = loss(pos_weight=torch.rand(3, 1, 1))
    wanted = criterion(logits, mask)
    (grad,) = torch.autograd.grad(wanted, logits)
    found = criterion(logits, wrapped(kind, mask))
    torch.testing.assert_close(found.as_subclass(Tensor), wanted)
    assert torch.equal(torch.autograd.grad(found, logits)[0].as_subclass(Tensor), grad)


def test_timm() -> None:
    """A model of timm with labels mixed up: its losses and ours are the same."""
    pytest.importorskip("timm")
    import timm.data
    import timm.loss

    model = timm.create_model("test_vit", num_classes=10)
    mixup = timm.data.Mixup(mixup_alpha=0.8, num_classes=10, label_smoothing=0.0)
    x, y = mixup(torch.randn(4, 3, 160, 160), torch.tensor([1, 2, 3, 4]))
    logits = model(x)
    loss = WeightedBCEWithLogitsLoss()(logits, y)
    torch.testing.assert_close(loss, timm.loss.BinaryCrossEntropy(smoothing=0.0)(logits, y))
    hard = (y > 0.4).float()
    theirs = timm.loss.AsymmetricLossMultiLabel(disable_torch_grad_focal_loss=False)
    ours = AsymmetricLoss(reduction="batchmean")
    torch.testing.assert_close(ours(logits, hard), theirs(logits, hard))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_monai_engines() -> None:
    """A trainer and an evaluator of MONAI with masks of two classes that may overlap."""
    monai = pytest.importorskip("monai")
    pytest.importorskip("ignite")
    from monai.engines import SupervisedEvaluator, SupervisedTrainer
    from monai.handlers import MeanAbsoluteError

    images = torch.randn(6, 3, 8, 8)
    data = [{"image": x, "label": (x[:2] > 0.5).float()} for x in images]
    net = torch.nn.Conv2d(3, 2, 1)
    criterion = WeightedBCEWithLogitsLoss(pos_weight=3.0)
    before = criterion(net(images), images[:, :2] > 0.5).item()
    loader = monai.data.DataLoader(
        [{k: wrapped("monai", v) for k, v in d.items()} for d in data], 2
    )
    engine = {"device": torch.device("cpu"), "network": net}
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    trainer = SupervisedTrainer(
        max_epochs=5,
        train_data_loader=loader,
        optimizer=optimizer,
        loss_function=criterion,
        **engine,
    )
    trainer.run()
    assert criterion(net(images), images[:, :2] > 0.5).item() < before / 2
    metric = MeanAbsoluteError(output_transform=lambda out: (out[0]["pred"], out[0]["label"]))
    SupervisedEvaluator(val_data_loader=loader, key_val_metric={"error": metric}, **engine).run()


def test_monai_wrappers() -> None:
    losses = pytest.importorskip("monai").losses
    logits, y = torch.randn(2, 3, 8, 8), (torch.rand(2, 3, 8, 8) < 0.3).float()
    mask = (torch.rand(2, 1, 8, 8) < 0.5).float()
    wanted = F.binary_cross_entropy_with_logits(
        logits * mask, y * mask, pos_weight=torch.tensor(3.0)
    )
    masked = losses.MaskedLoss(WeightedBCEWithLogitsLoss, pos_weight=3.0)
    torch.testing.assert_close(masked(logits, y, mask), wanted)
    deep = losses.DeepSupervisionLoss(WeightedBCEWithLogitsLoss(pos_weight=3.0))
    assert deep([logits, logits[..., ::2, ::2]], y).isfinite()
