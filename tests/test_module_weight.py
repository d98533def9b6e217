"""The modules take a weight in a call, and say so."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import weighted_bce as package
from weighted_bce import (
    Asymmetric,
    AsymmetricLoss,
    Focal,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    multilabel_loss_with_logits,
    weighted_bce,
    weighted_bce_with_logits,
)

from .layer_changes import Doubled
from .truth import as_given, labels

Make = Callable[..., Any]
FOCAL = Focal()
ROWS, FEATURES, LABELS = 4, 3, 5
OF_LOGITS: dict[str, tuple[Make, Callable[..., Tensor]]] = {
    "bce": (WeightedBCEWithLogitsLoss, weighted_bce_with_logits),
    "focal": (partial(MultilabelLoss, FOCAL), partial(multilabel_loss_with_logits, loss=FOCAL)),
    "asymmetric": (AsymmetricLoss, partial(multilabel_loss_with_logits, loss=Asymmetric())),
    "probabilities": (WeightedBCELoss, weighted_bce),
}
LINEAR: dict[str, tuple[Make, Callable[..., Tensor]]] = {
    "linear": (
        partial(LinearWeightedBCEWithLogitsLoss, FEATURES, LABELS),
        weighted_bce_with_logits,
    ),
    "linear focal": (
        partial(LinearMultilabelLoss, FEATURES, LABELS, FOCAL),
        partial(multilabel_loss_with_logits, loss=FOCAL),
    ),
}
BOTH = "weight must be given to the module or in the call, got both"


def weights(device: str) -> list[Tensor]:
    """For each label, for each row, and for each element."""
    shapes = (LABELS,), (ROWS, 1), (ROWS, LABELS)
    return [torch.rand(shape, device=device) + 0.5 for shape in shapes]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", OF_LOGITS)
def test_a_weight_in_a_call(
    kind: str, reduction: str, sparse: torch.dtype | None, device: str
) -> None:
    module, function = OF_LOGITS[kind]
    x, y = torch.rand(ROWS, LABELS, device=device), labels(ROWS, LABELS, device=device)
    target = as_given(y, sparse)
    pos_weight = torch.rand(LABELS, device=device) * 7
    criterion = module(pos_weight=pos_weight, reduction=reduction)
    plain = criterion(x, target)
    for weight in weights(device):
        expected = function(x, target, weight=weight, pos_weight=pos_weight, reduction=reduction)
        assert torch.equal(criterion(x, target, weight), expected)
        assert torch.equal(criterion(x, target, weight=weight), expected)
        own = module(weight=weight, pos_weight=pos_weight, reduction=reduction)
        assert torch.equal(own(x, target), expected)
        with pytest.raises(ValueError, match=f"^{BOTH}$"):
            own(x, target, weight)
    assert criterion.weight is None
    assert torch.equal(criterion(x, target), plain)


@pytest.mark.filterwarnings("ignore:all logits are held")
@pytest.mark.parametrize("layer", ["plain", "another forward"])
@pytest.mark.parametrize("kind", LINEAR)
def test_a_weight_in_a_call_of_a_layer(
    kind: str, layer: str, sparse: torch.dtype | None, device: str
) -> None:
    module, function = LINEAR[kind]
    criterion = module(pos_weight=3.0).to(device)
    own = module(pos_weight=3.0).to(device)
    if layer != "plain":
        criterion.linear = own.linear = Doubled(FEATURES, LABELS).to(device)
    x, y = torch.randn(ROWS, FEATURES, device=device), labels(ROWS, LABELS, device=device)
    target = as_given(y, sparse)
    for weight in weights(device):
        actual = criterion(x, target, weight)
        expected = function(criterion.linear(x), target, weight=weight, pos_weight=3.0)
        torch.testing.assert_close(actual, expected)
        own.weight = weight
        own.linear.register_forward_hook(lambda *_: pytest.fail("the layer was called"))
        with pytest.raises(ValueError, match=f"^{BOTH}$"):
            own(x, target, weight)
        own.linear._forward_hooks.clear()


def test_gradients_of_a_weight_in_a_call() -> None:
    x, y = torch.randn(ROWS, LABELS).double(), labels(ROWS, LABELS)
    weight = torch.rand(ROWS, 1).double().requires_grad_()
    for kind in ("bce", "focal", "asymmetric"):
        criterion = OF_LOGITS[kind][0]()
        assert torch.autograd.gradcheck(lambda w, c=criterion: c(x, y, w), weight)


def test_compiled() -> None:
    for kind, (module, _) in {**OF_LOGITS, **LINEAR}.items():
        criterion = module(pos_weight=3.0)
        columns = FEATURES if kind in LINEAR else LABELS
        x, y = torch.rand(ROWS, columns), labels(ROWS, LABELS)
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        for weight in (None, *weights("cpu")):
            torch.testing.assert_close(compiled(x, y, weight), criterion(x, y, weight))


def test_wrong_weights_in_a_call() -> None:
    x, y = torch.rand(ROWS, LABELS), labels(ROWS, LABELS)
    for module, _ in OF_LOGITS.values():
        with pytest.raises(TypeError, match=r"^weight must be a torch.Tensor or None, got float; "):
            module()(x, y, 2.0)
        with pytest.raises(ValueError, match=r"^weight must broadcast to shape \(4, 5\) of input"):
            module()(x, y, torch.ones(3))


MODULES = [
    value
    for name in package.__all__
    if isinstance(value := getattr(package, name), type) and issubclass(value, nn.Module)
]


@pytest.mark.parametrize("module", MODULES)
def test_forward_is_documented_and_typed(module: type[nn.Module]) -> None:
    """An editor shows what a call takes."""
    forward = vars(module)["forward"]
    text = inspect.getdoc(forward)
    assert text is not None
    names = list(inspect.signature(forward).parameters)[1:]
    assert set(get_type_hints(forward)) == {*names, "return"}
    for words in ("Args:", "Returns:", "Raises:", *(f"    {name}: " for name in names)):
        assert words in text
    assert ("weight" in names) == (module is not WeightBCEWithLogitsLoss)


def test_repr_shows_both_weights() -> None:
    for module, _ in OF_LOGITS.values():
        text = repr(module(weight=torch.ones(5), pos_weight=torch.ones(3, 1)))
        assert "weight=tensor(5,), pos_weight=tensor(3, 1), reduction=" in text
    text = repr(LINEAR["linear"][0](weight=torch.ones(5)))
    assert "weight=tensor(5,), reduction='mean'" in text
