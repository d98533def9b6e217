"""The public names but for the function itself, and the package without its extension."""

import doctest
import importlib
import pkgutil
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weighted_bce as package
from weighted_bce import (
    BCE,
    Focal,
    MultilabelLoss,
    WeightBCEWithLogitsLoss,
    WeightedBCELoss,
    WeightedBCEWithLogitsLoss,
    backend,
    weighted_bce,
    weighted_bce_with_logits,
)
from weighted_bce._extension import extension
from weighted_bce._kernels import why_not_on_cuda

from .comparison import outcome
from .scripts import run_python
from .truth import REDUCTIONS, TARGET_DTYPES, as_given, labels, logits, options_of, positives_of


def masked_multiply(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """The usual way to write the loss, which this package replaces."""
    loss = F.binary_cross_entropy_with_logits(x, y.to(x.dtype), reduction="none")
    factor = torch.ones_like(loss)
    factor[y.bool() if y.dtype != torch.bool else y] *= weight
    return loss * factor


@pytest.mark.parametrize("target_dtype", TARGET_DTYPES)
def test_weight_bce_is_the_masked_multiply(device: str, target_dtype: torch.dtype) -> None:
    y = (torch.rand(9, 13, device=device) < 0.3).to(target_dtype)
    x = logits(9, 13, device=device)
    reductions = {
        None: torch.mean,
        torch.mean: torch.mean,
        torch.sum: torch.sum,
        "sum": torch.sum,
        "none": lambda loss: loss,
        (lambda loss: loss.square().mean()): lambda loss: loss.square().mean(),
    }
    for target, (reduction, same) in product((y, positives_of(y.bool())), reductions.items()):
        ours = WeightBCEWithLogitsLoss(7.0, reduction)  # type: ignore[arg-type]
        actual = outcome(partial(ours, target=target), x)
        expected = outcome(lambda x, f=same: f(masked_multiply(x, y, 7.0)), x)
        torch.testing.assert_close(actual, expected)
    half = x.half()  # whose mean is float32, for torch.mean too
    for reduction in (None, torch.mean, "mean"):
        actual = WeightBCEWithLogitsLoss(7.0, reduction)(half, y)  # type: ignore[arg-type]
        torch.testing.assert_close(actual, masked_multiply(half.float(), y, 7.0).mean())


def test_drop_in_for_torch(device: str) -> None:
    x, y = logits(9, 13, device=device), labels(9, 13, dtype=torch.float32, device=device)
    w, p = torch.rand(9, 13, device=device), torch.rand(13, device=device) * 5
    for values in product((None, w, w[0]), (None, p, p[0]), ("none", "mean", "sum")):
        args = dict(zip(("weight", "pos_weight", "reduction"), values, strict=True))
        expected = nn.BCEWithLogitsLoss(**args)(x, y)
        torch.testing.assert_close(WeightedBCEWithLogitsLoss(**args)(x, y), expected)


def test_options_reach_the_function(device: str, sparse: torch.dtype | None) -> None:
    x, y = logits(9, 13, device=device) / 8, labels(9, 13, dtype=torch.int64, device=device)
    if sparse is None:
        y[0] = -1
    target = as_given(y, sparse)
    options = {"label_smoothing": 0.1, "ignore_index": -1 if sparse is None else 0}
    for reduction in (*REDUCTIONS, torch.amax):
        given: Any = (None, 3.0, reduction)
        expected = weighted_bce_with_logits(x, target, *given, **options)
        assert torch.equal(WeightedBCEWithLogitsLoss(*given, **options)(x, target), expected)
        assert torch.equal(MultilabelLoss(BCE(), *given, **options)(x, target), expected)
        of_p = WeightedBCELoss(*given, **options)(x.sigmoid(), target)
        torch.testing.assert_close(of_p, expected, rtol=1e-3, atol=1e-5)
    for module in (WeightedBCEWithLogitsLoss, partial(MultilabelLoss, Focal())):
        hidden = x.clone().requires_grad_() * 1.0
        loss = module(pos_weight=3.0, inplace_backward=True)(hidden, target)
        (grad,) = torch.autograd.grad(loss, hidden)
        assert torch.equal(hidden, grad) or device != "cpu"


def test_repr() -> None:
    loss = WeightedBCEWithLogitsLoss(pos_weight=torch.ones(5), label_smoothing=0.1, ignore_index=-1)
    for words in ("WeightedBCEWithLogitsLoss", "tensor(5,)", "'mean'", "0.1", "ignore_index=-1"):
        assert words in repr(loss)
    assert "pos_weight=7.0" in repr(WeightedBCELoss(pos_weight=7.0))
    assert "weight=7.0" in repr(WeightBCEWithLogitsLoss(7.0, torch.sum))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_probabilities(device: str, reduction: str) -> None:
    """The loss is F.binary_cross_entropy, at 0 and 1 too."""
    p = torch.cat([torch.rand(50), torch.tensor([0.0, 1.0, 1e-30, 1 - 2**-24])]).to(device)
    for y in (torch.zeros(54), torch.ones(54), torch.rand(54)):
        y = y.to(device)
        (loss, grad), (expected, expected_grad) = (
            outcome(partial(function, target=y, reduction=reduction), p)
            for function in (weighted_bce, F.binary_cross_entropy)
        )
        torch.testing.assert_close(loss, expected)
        # Where a label is met (nearly) exactly torch says 0; the derivative is 1 or -1.
        exact = (p - y).abs() < 1e-12
        n = 54 if reduction == "mean" else 1
        assert torch.equal(grad[exact], (1 - 2 * y[exact]) / n)
        torch.testing.assert_close(grad[~exact], expected_grad[~exact], rtol=1e-4, atol=1e-5)


def test_probabilities_and_logits_agree(device: str, sparse: torch.dtype | None) -> None:
    x, y = torch.randn(9, 13, dtype=torch.float64, device=device), labels(9, 13, device=device)
    target = as_given(y, sparse)
    for reduction, options in product(REDUCTIONS, options_of(9, 13, device)):
        given = partial(weighted_bce, target=target, reduction=reduction, **options)
        of_logits = partial(weighted_bce_with_logits, target=y, reduction=reduction, **options)
        actual = outcome(lambda x, f=given: f(x.sigmoid()), x)
        torch.testing.assert_close(actual, outcome(of_logits, x))
    w, p = torch.rand(9, 1, device=device).double(), torch.rand(13, device=device).double() * 5
    leaf = x.sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(lambda q: weighted_bce(q, target, w, p), leaf)


@pytest.mark.skipif(extension is None or not extension.cuda_archs, reason="built without CUDA")
def test_the_cuda_driver_is_asked_where_there_is_none_too() -> None:
    assert extension is not None
    assert 0 <= extension.cuda_driver() < 100_000
    assert (extension.cuda_driver() > 0) >= torch.cuda.is_available()
    if not torch.cuda.is_available():
        assert why_not_on_cuda(0) is not None


def test_import_does_not_bring_the_compiler() -> None:
    code = "import torch, sys; before = set(sys.modules); import weighted_bce; "
    code += "assert not any(m.startswith('torch._dynamo') for m in set(sys.modules) - before)"
    run_python(code)


def test_show_config() -> None:
    """And the backend that it shows is restored, after an error too."""
    text = package.show_config()
    for fact in (f"weighted_bce: {package.__version__}", torch.__version__, "threads", "backend"):
        assert fact in text
    assert ("SIMD level in use: " in text) == (extension is not None)
    with backend("reference"):
        with pytest.raises(KeyError), backend("fused"):
            raise KeyError
        assert "backend: reference" in package.show_config()
    assert "backend: reference" not in package.show_config()


def test_all_names_exist_and_are_documented() -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__, name


MODULES = [m.name for m in pkgutil.walk_packages(package.__path__, "weighted_bce.")]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"weighted_bce._C"}))
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


WITHOUT_EXTENSION = """
import sys, warnings
sys.modules["weighted_bce._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import weighted_bce
    import torch
    x = torch.zeros(4, 10, requires_grad=True)
    y = torch.zeros(4, 10, dtype=torch.bool)
    for _ in range(2):
        loss = weighted_bce.weighted_bce_with_logits(x, y, pos_weight=7.0)
        loss.backward()
        weighted_bce.weighted_bce_with_logits(x, y, inplace_backward=True).backward()
        weighted_bce.WeightBCEWithLogitsLoss(7.0, torch.sum)(x, y).backward()
        weighted_bce.weighted_bce(torch.rand(3), torch.ones(3))
        weighted_bce.pos_weight_from_labels(y)
        weighted_bce.empty_cache()
(ours,) = (w for w in caught if "weighted_bce" in str(w.message))
print(ours.message, ours.filename)
assert abs(loss.item() - 0.6931) < 1e-4
assert "extension: none" in weighted_bce.show_config()
try:
    with weighted_bce.backend("fused"):
        weighted_bce.weighted_bce_with_logits(x, y)
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("backend fused without an extension")
"""


def test_without_the_extension() -> None:
    """Everything works, by the reference, with one warning that says how to build it."""
    warning, error = run_python(WITHOUT_EXTENSION)[0].strip().splitlines()
    for words in ("plain PyTorch", "pip install", "ninja"):
        assert words in warning
    assert warning.endswith(" <string>")  # at the import of the program
    assert "backend 'fused' has no kernel" in error
    assert "pip install" in error
