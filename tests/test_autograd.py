"""Gradients in every way in which autograd can ask for them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import softplus

from weighted_bce import weighted_bce_with_logits

from .linear_cases import LinearCase, grads_of
from .truth import REDUCTIONS, as_given, logits
from .ways import (
    AnyCase,
    assert_grads,
    assert_right,
    in_each_way,
    leaves_of,
    of_logits_and_layers,
    one_case,
    with_options,
)

GRAD_OUTPUTS = (0.0, 1.0, -2.5, 65536.0, 3.7)
Cases = Callable[[str], list[AnyCase]]


@of_logits_and_layers
@pytest.mark.parametrize("grad_output", GRAD_OUTPUTS)
def test_grad_outputs(device: str, chosen: str, cases: Cases, grad_output: float) -> None:
    """Unexpected first, expected then, which changes no bit."""
    for case in cases(device):
        results = [assert_right(case, grad_output) for _ in range(3)]
        if device == "cpu":
            assert all(all(map(torch.equal, one, results[0])) for one in results[1:])


@of_logits_and_layers
def test_a_graph_that_is_kept(device: str, cases: Cases) -> None:
    """What an earlier backward returned may have been changed."""
    for case in cases(device):
        leaves = leaves_of(case)
        loss = case(*leaves)
        large = 2.0 if case.input.dtype == torch.float16 else 65536.0
        for factor in (1.0, 1.0, -2.5, 1.0, 0.0, large):
            grad_output = torch.full_like(loss, factor)
            grads = torch.autograd.grad(loss, leaves, grad_output, retain_graph=True)
            assert_grads(grads, case, factor)
            for grad in grads:
                grad.fill_(torch.nan)
        loss.backward()
        assert_grads(grads_of(leaves), case)


@of_logits_and_layers
def test_hooks_that_modify_the_gradient_in_place(device: str, cases: Cases) -> None:
    """They see the gradients of tensors that are no leaves."""
    for case in cases(device):
        for factor in (0.0, 1.0, -2.5, 3.7):
            leaves = leaves_of(case)
            hidden = [leaf * 1.0 for leaf in leaves]
            for tensor in hidden:
                tensor.register_hook(lambda grad: grad.mul_(2))
            loss = case(*hidden) * factor
            for retain in (True, True, False):
                assert_grads(
                    torch.autograd.grad(loss, leaves, retain_graph=retain), case, 2 * factor
                )


@of_logits_and_layers
def test_nothing_is_modified(device: str, cases: Cases) -> None:
    """Inputs, saved tensors and grad_output stay, by value and by version."""
    for case in cases(device):
        for factor in (1.0, 1.0, 65536.0):
            loss = case(*leaves_of(case))
            grad_output = torch.full_like(loss, factor)
            given = {**vars(case), **getattr(case, "options", {}), "grad_output": grad_output}
            tensors = [t for t in given.values() if isinstance(t, Tensor)]
            before = [(t.clone(), t._version) for t in tensors]
            loss.backward(grad_output, retain_graph=True)
            loss.backward(grad_output)
            for tensor, (value, version) in zip(tensors, before, strict=True):
                assert torch.equal(tensor, value)
                assert tensor._version == version


@pytest.mark.parametrize("device", ["cpu"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("sparse", "options"),
    [
        (None, {}),
        (None, {"label_smoothing": 0.2}),
        (None, {"ignore_index": 0.0}),
        (torch.int64, {"label_smoothing": 0.2, "ignore_index": 1}),
    ],
)
def test_gradcheck(chosen: str, reduction: str, sparse: Any, options: dict[str, Any]) -> None:
    x, y = logits(3, 4, dtype=torch.float64) / 3, torch.rand(3, 4, dtype=torch.float64)
    if "ignore_index" in options:
        y[0, :2] = 0.0
    w, p = torch.rand(3, 1, dtype=torch.float64) + 0.5, torch.rand(4, dtype=torch.float64) + 0.5
    given = y if sparse is None else as_given(y < 0.4, sparse)

    def loss(x: Tensor, w: Tensor = w, p: Tensor = p, y: Any = given) -> Tensor:
        return weighted_bce_with_logits(x, y, w, p, reduction, **options)

    x.requires_grad_()
    forward = dict(check_forward_ad=True, check_batched_forward_grad=True)
    assert gradcheck(partial(loss, w=w, p=p), x, check_batched_grad=True, **forward)
    second = dict(check_fwd_over_rev=True, check_rev_over_rev=True)
    assert gradgradcheck(partial(loss, w=w, p=p), x, check_batched_grad=True, **second)
    # Whatever else requires a gradient gets the right one.
    others = (w, p) if "ignore_index" in options else (w, p, y)
    leaves = (x, *(t.clone().requires_grad_() for t in others))
    assert gradcheck(loss, leaves)
    assert gradgradcheck(loss, leaves)


@in_each_way
@pytest.mark.parametrize("shape", ["0-d", "per label", "per row", "full"])
@pytest.mark.parametrize("name", ["target", "weight", "pos_weight"])
def test_gradients_of_other_tensors(device: str, way: str, name: str, shape: str) -> None:
    """Alone, and with those of the logits or of the layer."""
    case = one_case(way, device, torch.float64)
    if name == "target" and ("sparse" in way or shape != "full"):
        pytest.skip("a target of floats has the shape of the logits")
    rows, columns = case.target.shape
    size = {"0-d": (), "per label": (columns,), "per row": (rows, 1), "full": (rows, columns)}
    other = torch.rand(size[shape], dtype=torch.float64, device=device).requires_grad_()
    given = with_options(case, **{name: other})
    (alone,) = torch.autograd.grad(given(), other)
    x = case.of_logits().input if isinstance(case, LinearCase) else case.input
    tensors = {"target": case.target.double(), "weight": 1.0, "pos_weight": 3.0}
    y, w, p = (other.detach() if n == name else t for n, t in tensors.items())
    a, b = softplus(-x), softplus(x)
    slopes = {"target": w * (p * a - b), "weight": p * y * a + (1 - y) * b, "pos_weight": w * y * a}
    torch.testing.assert_close(alone, (slopes[name] / x.numel()).sum_to_size(other.shape))
    leaves = leaves_of(case)
    *grads, together = torch.autograd.grad(given(*leaves), (*leaves, other))
    torch.testing.assert_close(together, alone)
    assert_grads(grads, with_options(case, **{name: other.detach()}))


@in_each_way
@pytest.mark.parametrize(
    "changed", ["input", "linear_weight", "target", "col_indices", "crow_indices"]
)
def test_what_is_modified_before_backward_is_noticed(device: str, way: str, changed: str) -> None:
    """What autograd saved and was then changed is an error, not a wrong gradient."""
    case = one_case(way, device)
    target = as_given(case.target, case.sparse)
    hidden = [leaf * 1.0 for leaf in leaves_of(case)]
    saved = {"target": target, **dict(zip(("input", "linear_weight"), hidden, strict=False))}
    saved |= {} if case.sparse is None else target._asdict()
    tensor = saved.get(changed)
    if not isinstance(tensor, Tensor):
        pytest.skip(f"no {changed} in this way")
    loss = with_options(case, target=target, sparse=None)(*hidden)
    tensor.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss * 2).backward()
