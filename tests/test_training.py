"""The loss within torch's machinery for training does what torch's own loss does there."""

import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from weighted_bce import WeightedBCEWithLogitsLoss, weighted_bce_with_logits

from .truth import REDUCTIONS, Case, as_given, assert_grad, labels, logits


def one_case(device: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case(logits(8, 5, dtype=dtype, device=device), labels(8, 5, device=device), None, 3.0)


def unfused(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    p = torch.tensor(7.0, device=x.device)
    return F.binary_cross_entropy_with_logits(x, y.to(x.dtype), pos_weight=p, reduction=reduction)


def fused(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    return weighted_bce_with_logits(x, y, None, 7.0, reduction)


OPTIMIZERS = {
    "foreach": partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
    "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "closure": partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"),
}


def trained(loss: Callable[[Tensor, Tensor], Tensor], make: Any, device: str) -> list[Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 9)).to(device, torch.float64)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = make(model.parameters())
    for rows in (12, 12, 7, 12):
        x, y = torch.randn(rows, 20).double().to(device), labels(rows, 9, device=device)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            result = loss(model(x), y)
            result.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return result

        optimizer.step(closure)
        average.update_parameters(model)
    return [p.detach() for p in (*model.parameters(), *average.parameters())]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_clipping_and_averages(device: str, name: str) -> None:
    ours, theirs = (trained(loss, OPTIMIZERS[name], device) for loss in (fused, unfused))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_every_hook_gets_the_gradient(device: str, inplace: bool) -> None:
    case = one_case(device)
    criterion = WeightedBCEWithLogitsLoss(pos_weight=3.0, inplace_backward=inplace)
    leaf = nn.Parameter(case.input.clone())
    hidden = leaf * 1.0
    hidden.retain_grad()
    seen: dict[str, Tensor] = {}

    def remember(name: str, grad: Tensor | None) -> None:
        assert grad is not None
        seen[name] = grad.clone()

    criterion.register_full_backward_pre_hook(lambda _, grads: remember("grad_output", grads[0]))
    criterion.register_full_backward_hook(lambda _, grads, up: remember("module", grads[0]))
    leaf.register_hook(partial(remember, "leaf"))
    leaf.register_post_accumulate_grad_hook(lambda p: remember("accumulated", p.grad))
    hidden.register_hook(partial(remember, "hidden"))
    register_multi_grad_hook((hidden, leaf), lambda grads: remember("first of many", grads[0]))
    loss = criterion(hidden, case.target)
    loss.register_hook(lambda grad: grad * 3)
    loss.backward()
    remember("retained", hidden.grad)
    assert seen.pop("grad_output").item() == 3
    assert set(seen) == {*("module", "leaf", "accumulated", "hidden", "first of many", "retained")}
    for name, grad in seen.items():
        assert_grad(grad, case, 3, name)


def test_gradients_of_some_tensors(device: str) -> None:
    case = one_case(device)
    a, b, unused = (torch.ones(8, 5, device=device, requires_grad=True) for _ in range(3))
    hidden = case.input + a - b
    loss = case(hidden)
    torch.autograd.backward(loss, inputs=[b], retain_graph=True)
    torch.autograd.backward(loss, torch.full_like(loss, 2.0), inputs=[hidden], retain_graph=True)
    assert a.grad is None
    assert_grad(-b.grad, case, 1)
    assert_grad(hidden.grad, case, 2)
    found = torch.autograd.grad(loss, (unused, a), allow_unused=True)
    assert found[0] is None
    assert_grad(found[1], case, 1)


@pytest.mark.parametrize("rows", [8, 800])
def test_accumulated_gradients_keep_layout_and_place(device: str, rows: int) -> None:
    """The gradient of a transposed parameter becomes its `.grad` as it is, and stays in place."""
    x, y = logits(400, rows, device=device).t(), labels(rows, 400, device=device)
    case = Case(x, y, None, 3.0)
    leaf = nn.Parameter(x)
    places: list[int] = []
    leaf.register_hook(lambda grad: places.append(grad.data_ptr()))
    for step in (1, 2, 3):
        case(leaf).backward()
        assert leaf.grad is not None
        assert leaf.grad.stride() == leaf.stride() == (1, rows)
        assert leaf.grad.data_ptr() == places[0]
        assert_grad(leaf.grad, case, step)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_anomaly_mode(kernel_device: str, inplace: bool) -> None:
    """Finds nothing in good input, and names the loss where a gradient is NaN."""
    case = one_case(kernel_device)
    leaf = case.input.clone().requires_grad_()
    with torch.autograd.detect_anomaly():
        for grad_output in (1.0, 3.0):
            leaf.grad = None
            (case(leaf * 1.0, inplace_backward=inplace) * grad_output).backward()
            assert_grad(leaf.grad, case, grad_output)
        case.input[2, 3] = float("nan")
        loss = case(case.input.clone().requires_grad_() * 1.0, inplace_backward=inplace)
        with pytest.raises(RuntimeError, match="'FusedLossBackward' returned nan"):
            loss.backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_deterministic_mode(device: str, reduction: str) -> None:
    """No error, no warning, the same bits; memory filled with NaN beforehand is all written."""
    small, large = (
        (logits(*s, device=device), labels(*s, device=device)) for s in ((8, 5), (700, 400))
    )

    def outcome() -> list[Tensor]:
        results = []
        for x, y in (small, large, (small[0].t(), small[1].t())):
            for grad_output in (1.0, 3.0):
                leaf = x.detach().requires_grad_()
                loss = fused(leaf, y, reduction)
                results += [
                    loss.detach(),
                    *torch.autograd.grad(loss, leaf, torch.full_like(loss, grad_output)),
                ]
        return results

    expected = outcome()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = outcome()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_labels_made_in_inference_mode(
    device: str, dtype: torch.dtype, sparse: torch.dtype | None
) -> None:
    """Pseudo-labels of a teacher, which `labels.float()` makes usable in torch's own loss."""
    case = one_case(device)
    with torch.inference_mode():
        target = as_given(case.target.to(dtype) | case.target.to(dtype), sparse)
    assert (target if sparse is None else target.col_indices).is_inference()
    for reduction in ("mean", "none"):
        case.reduction = reduction
        leaf = case.input.clone().requires_grad_()
        loss = weighted_bce_with_logits(leaf, target, None, case.pos_weight, reduction)
        loss.backward(torch.ones_like(loss))
        assert_grad(leaf.grad, case, 1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_enabled_gradients_within_inference_mode(device: str, reduction: str) -> None:
    """torch.set_grad_enabled(True) there records nothing, and leaves nothing behind."""
    case = one_case(device)
    case.reduction = reduction
    leaf = case.input.clone().requires_grad_()
    with torch.inference_mode(), torch.enable_grad():
        loss = case(leaf)
    assert not loss.requires_grad
    for grad_output in (2.0, 3.0):
        leaf.grad = None
        loss = case(leaf)
        loss.backward(torch.full_like(loss, grad_output))
        assert_grad(leaf.grad, case, grad_output)


def test_inference_mode(device: str) -> None:
    """Evaluation between two steps: the same loss, without a graph, and training goes on."""
    case = one_case(device)
    leaf = case.input.clone().requires_grad_()
    for grad_output in (1.0, 3.0):
        for reduction in REDUCTIONS:
            case.reduction = reduction
            expected = case()
            with torch.inference_mode():
                of_parameter, of_inference = case(leaf), case(leaf.clone())
                assert case(leaf.clone().requires_grad_()).is_inference()
            kept = leaf.detach()
            with torch.inference_mode():
                kept = kept.clone()
            for loss in (of_parameter, of_inference, case(kept)):
                assert torch.equal(loss, expected)
                assert not loss.requires_grad
            assert of_parameter.is_inference()
            leaf.grad = None
            loss = case(leaf)
            loss.backward(torch.full_like(loss, grad_output))
            assert_grad(leaf.grad, case, grad_output)


def test_threads_with_modes_of_their_own(device: str) -> None:
    """Replicas in threads, as in nn.DataParallel; some train while others evaluate."""
    case = one_case(device)
    criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.full((5,), 3.0)).to(device)
    together = threading.Barrier(6)

    def work(number: int) -> None:
        mode = (torch.enable_grad, torch.no_grad, torch.inference_mode)[number % 3]
        replica = copy.deepcopy(criterion)
        leaf = case.input.clone().requires_grad_()
        with mode():
            for step in range(30):
                together.wait(10)
                loss = replica(leaf, case.target)
                assert torch.equal(loss, expected)
                assert loss.requires_grad == (number % 3 == 0)
                if loss.requires_grad:
                    leaf.grad = None
                    (loss * 2.0**step).backward()
                    assert_grad(leaf.grad, case, 2.0**step)

    expected = criterion(case.input, case.target)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))  # raises what a thread raised


@pytest.mark.parametrize("vectorize", [False, True])
def test_autograd_functional(device: str, vectorize: bool) -> None:
    x, y = logits(3, 4, dtype=torch.float64, device=device), labels(3, 4, device=device)
    functional, v = torch.autograd.functional, torch.randn_like(x)
    found = []
    for loss in (fused, unfused):
        mean, each = partial(loss, y=y), partial(loss, y=y, reduction="none")
        results = [
            functional.jacobian(each, x, vectorize=vectorize),
            functional.hessian(mean, x, vectorize=vectorize),
            *(getattr(functional, name)(mean, x, v)[1] for name in ("vhp", "hvp", "jvp")),
        ]
        if vectorize:
            results.append(functional.jacobian(each, x, vectorize=True, strategy="forward-mode"))
        found.append(results)
    torch.testing.assert_close(*found)
