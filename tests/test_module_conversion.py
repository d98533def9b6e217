"""A conversion of a module's dtype leaves its weights as they are; devices move them."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weighted_bce import (
    AsymmetricLoss,
    Focal,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)

from .truth import labels, logits

Make = Callable[..., Any]
Convert = Callable[[nn.Module], nn.Module]
FOCAL = Focal(1.5)
MODULES: dict[str, Make] = {
    "bce": WeightedBCEWithLogitsLoss,
    "probabilities": WeightedBCELoss,
    "focal": partial(MultilabelLoss, FOCAL),
    "asymmetric": AsymmetricLoss,
    "linear": partial(LinearWeightedBCEWithLogitsLoss, 3, 4),
    "linear focal": partial(LinearMultilabelLoss, 3, 4, FOCAL),
}
# Half precision has none of these numbers: float16 rounds them to infinity, 256 and 0.
NUMBERS = [70_001.0, 257.0, 1e-9, 1 / 3]
HALF = torch.float16, torch.bfloat16
CONVERSIONS: dict[str, Convert] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "to float16": lambda m: m.to(torch.float16),
    "to a device and bfloat16": lambda m: m.to("cpu", torch.bfloat16),
    "to like a tensor": lambda m: m.to(torch.empty(0, dtype=torch.float16)),
    "type": lambda m: m.type(torch.bfloat16),
    "of a parent": lambda m: nn.ModuleDict({"loss": nn.Sequential(m)}).half(),
    "compiled": lambda m: torch.compile(m).half(),  # type: ignore[union-attr]
}


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    numbers = torch.tensor(NUMBERS, dtype=dtype)
    return {"weight": numbers.flip(0), "pos_weight": numbers}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_weights_keep_their_numbers(module: Make, convert: Convert) -> None:
    given = weights()
    criterion = module(**given)
    convert(criterion)
    for name, weight in given.items():
        kept = getattr(criterion, name)
        assert kept.dtype == torch.float32
        assert torch.equal(kept, torch.tensor(NUMBERS) if name == "pos_weight" else weight)
    nn.Module.half(criterion)
    assert all(p.dtype == torch.float16 for p in criterion.parameters())  # those of the layer


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64, torch.int64])
def test_weights_keep_the_dtype_they_were_given(dtype: torch.dtype) -> None:
    given = {"weight": torch.tensor([3, 5, 7]).to(dtype), "pos_weight": torch.tensor(2).to(dtype)}
    for convert in CONVERSIONS.values():
        criterion = WeightedBCEWithLogitsLoss(**given)
        convert(criterion)
        assert {buffer.dtype for buffer in criterion.buffers()} == {dtype}
        assert all(torch.equal(getattr(criterion, n), weight) for n, weight in given.items())


@pytest.mark.parametrize("dtype", HALF)
def test_the_loss_after_a_conversion(dtype: torch.dtype, chosen: str, device: str) -> None:
    """It is that of the logits in half precision with the weights in full."""
    x, y = logits(5, 4, device=device).clamp(-8, 8).to(dtype), labels(5, 4, device=device)
    exact = {name: weight.to(device) for name, weight in weights(torch.float64).items()}
    x64 = x.double()
    expected = {
        "bce": weighted_bce_with_logits(x64, y, **exact),
        "probabilities": weighted_bce(x.sigmoid().double(), y, **exact),
        "focal": multilabel_loss_with_logits(x64, y, FOCAL, **exact),
    }
    for name, loss in expected.items():
        criterion = MODULES[name](**weights()).to(device, dtype)
        actual = criterion(x.sigmoid() if name == "probabilities" else x, y)
        torch.testing.assert_close(actual.double(), loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("swap", [False, True])
def test_a_learned_weight_and_its_gradient(swap: bool) -> None:
    x, y = logits(5, 4), labels(5, 4)
    criterion = WeightedBCEWithLogitsLoss()
    criterion.pos_weight = nn.Parameter(torch.tensor(NUMBERS))
    criterion(x, y).backward()
    grad = criterion.pos_weight.grad.clone()
    optimizer = torch.optim.SGD(criterion.parameters(), lr=1.0)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        nn.Sequential(criterion).half()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert torch.equal(criterion.pos_weight, torch.tensor(NUMBERS))
    assert torch.equal(criterion.pos_weight.grad, grad)
    optimizer.step()
    assert torch.equal(criterion.pos_weight, torch.tensor(NUMBERS) - grad)


def test_other_tensors_of_a_subclass_are_converted() -> None:
    class WithTemperature(WeightedBCEWithLogitsLoss):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.temperature = nn.Parameter(torch.ones(()))
            self.register_buffer("steps", torch.ones(()))

    criterion = WithTemperature(**weights()).half()
    assert {n: t.dtype for n, t in criterion.state_dict().items()} == {
        "temperature": torch.float16,
        "steps": torch.float16,
        "weight": torch.float32,
        "pos_weight": torch.float32,
    }


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_devices_move_weights(module: Make) -> None:
    criterion = module(**weights()).to("meta", torch.float16)
    assert all(t.is_meta for t in criterion.state_dict().values())
    assert criterion.pos_weight.dtype == torch.float32
    criterion.to_empty(device="cpu", recurse=False)
    assert (criterion.pos_weight.device.type, criterion.pos_weight.dtype) == ("cpu", torch.float32)
    assert all(p.is_meta for p in criterion.parameters())
    criterion = module(**weights()).to_empty(device="meta").to_empty(device="cpu")
    assert {t.device.type for t in criterion.state_dict().values()} == {"cpu"}
    criterion = module(**weights()).half().share_memory()
    assert all(t.is_shared() for t in criterion.state_dict().values())


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_copies_are_converted_alike(module: Make) -> None:
    criterion = module(**weights())
    for same in (
        copy.copy(criterion),
        copy.deepcopy(criterion),
        pickle.loads(pickle.dumps(criterion)),
    ):
        assert torch.equal(same.half().pos_weight, torch.tensor(NUMBERS))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_numbers_and_gradients_asked_of_nobody(module: Make) -> None:
    """There is nothing to convert in a number; buffers are none of requires_grad_'s tensors."""
    assert module(pos_weight=70_001.0).half().pos_weight == 70_001.0
    criterion = module(**weights()).requires_grad_()
    assert not criterion.pos_weight.requires_grad


def test_lightning_in_true_half_precision() -> None:
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    for precision, dtype in (("16-true", torch.float16), ("bf16-true", torch.bfloat16)):
        model = nn.Sequential(nn.Linear(3, 4), WeightedBCEWithLogitsLoss(**weights()))
        plugins.HalfPrecision(precision).convert_module(model)
        assert model[0].weight.dtype == dtype
        assert torch.equal(model[1].pos_weight, torch.tensor(NUMBERS))
