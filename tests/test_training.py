"""The loss within torch's machinery for training does what torch's own loss does there."""

import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from weighted_bce import WeightedBCEWithLogitsLoss

from .comparison import assert_grad, outcome
from .linear_cases import grads_of
from .truth import REDUCTIONS, Case, as_given, labels, logits
from .ways import WAYS, AnyCase, assert_grads, in_each_way, leaves_of, one_case, with_options


def unfused(x: Tensor, y: Tensor) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    p = torch.tensor(7.0, device=x.device)
    return F.binary_cross_entropy_with_logits(x, y.to(x.dtype), pos_weight=p)


fused = WeightedBCEWithLogitsLoss(pos_weight=7.0)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True)
OPTIMIZERS = {
    "foreach": SGD,
    "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "closure": partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"),
}


def trained(
    loss: Callable[[Tensor, Tensor], Tensor],
    make: Any,
    device: str,
    dtype: torch.dtype = torch.float64,
    half: torch.dtype | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Parameters, averages of them, and the scale of each step, at first far too high for half."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 9)).to(device, dtype)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler(
        device, init_scale=2.0**26, growth_interval=3, enabled=half is not None
    )
    rows = (12, 12, 7, 12)
    batches = [(torch.randn(n, 20).to(device, dtype), labels(n, 9, device=device)) for n in rows]
    scales, done = list[float](), 0
    while done < 10:
        x, y = batches[done % 4]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast(device, half, enabled=half is not None):
                result = loss(model(x), y)
            scaler.scale(result).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return result

        if half is None:
            optimizer.step(closure)
        else:
            assert closure().dtype == torch.float32
            scaler.step(optimizer)
        scales.append(scaler.get_scale())
        scaler.update()
        done += scaler.get_scale() >= scales[-1]
        average.update_parameters(model)
    return [p.detach() for p in (*model.parameters(), *average.parameters())], scales


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_clipping_and_averages(device: str, name: str) -> None:
    ours, theirs = (trained(loss, OPTIMIZERS[name], device) for loss in (fused, unfused))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_grad_scaler(device: str) -> None:
    """Steps that overflow are skipped and the scale grows again, in the same steps as unfused."""
    dtypes = torch.float32, torch.float16
    (ours, scales), (theirs, expected) = (
        trained(loss, SGD, device, *dtypes) for loss in (fused, unfused)
    )
    changes = [b / a for a, b in pairwise(scales)]
    assert scales == expected
    assert changes[:2] == [0.5, 0.5]
    assert changes.count(2.0) >= 2
    assert 0.5 in changes[changes.index(2.0) :]  # it grew too far
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    without, _ = trained(fused, SGD, device, torch.float32)
    torch.testing.assert_close(ours[:4], without[:4], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("inplace", [False, True])
def test_every_hook_gets_the_gradient(device: str, inplace: bool) -> None:
    case = one_case("dense", device)
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
    case = one_case("dense", device)
    a, b, unused = (torch.ones(8, 5, device=device, requires_grad=True) for _ in range(3))
    hidden = case.input + a - b
    loss = case(hidden)
    torch.autograd.backward(loss, inputs=[b], retain_graph=True)
    torch.autograd.backward(loss, torch.full_like(loss, 2.0), inputs=[hidden], retain_graph=True)
    assert a.grad is None
    assert_grad(-b.grad, case, 1)
    assert_grad(hidden.grad, case, 2)
    of_unused, of_a = torch.autograd.grad(loss, (unused, a), allow_unused=True)
    assert of_unused is None
    assert_grad(of_a, case, 1)


def test_accumulated_gradients_keep_layout_and_place(device: str) -> None:
    """A gradient becomes the leaf's `.grad` as it is, transposed or not, and stays in place."""
    shapes = ((8, 400), (800, 400))
    cases: list[AnyCase] = [
        Case(logits(*shape[::-1], device=device).t(), labels(*shape, device=device), None, 3.0)
        for shape in shapes
    ]
    for case in (*cases, one_case("linear", device), one_case("linear, sparse", device)):
        leaves = leaves_of(case)
        places: list[list[int]] = [[] for _ in leaves]
        for leaf, own in zip(leaves, places, strict=True):
            leaf.register_hook(lambda grad, own=own: own.append(grad.data_ptr()))
        for step in (1, 2, 3):
            case(*leaves).backward()
            assert_grads(grads_of(leaves), case, step)
            for leaf, own in zip(leaves, places, strict=True):
                assert leaf.grad is not None
                assert leaf.grad.stride() == leaf.stride()
                assert leaf.grad.data_ptr() == own[0]


@pytest.mark.parametrize(
    ("way", "more"), [*((way, {}) for way in WAYS), ("dense", {"inplace_backward": True})]
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_anomaly_mode(kernel_device: str, way: str, more: dict[str, Any]) -> None:
    """Finds nothing in good input, and names the loss where a gradient is NaN."""
    case = one_case(way, kernel_device)
    with torch.autograd.detect_anomaly():
        for grad_output in (1.0, 3.0):
            leaves = leaves_of(case)
            (case(*(leaf * 1.0 for leaf in leaves), **more) * grad_output).backward()
            assert_grads(grads_of(leaves), case, grad_output)
        case.input[2, 3] = float("nan")
        loss = case(*(leaf * 1.0 for leaf in leaves_of(case)), **more)
        with pytest.raises(RuntimeError, match=r"'Fused(Linear)?LossBackward' returned nan"):
            loss.backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_deterministic_mode(device: str, reduction: str) -> None:
    """No error, no warning, the same bits; memory filled with NaN beforehand is all written."""
    shapes = ((8, 5), (700, 400))
    small, large = ((logits(*s, device=device), labels(*s, device=device)) for s in shapes)
    cases = [Case(x, y, None, 7.0, reduction) for x, y in (small, large, [t.t() for t in small])]

    def results() -> list[Any]:
        return [outcome(case, case.input, scale) for case in cases for scale in (1.0, 3.0)]

    expected = results()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            actual = results()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@in_each_way
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_labels_made_in_inference_mode(device: str, dtype: torch.dtype, way: str) -> None:
    """Pseudo-labels of a teacher, which `labels.float()` makes usable in torch's own loss."""
    case = one_case(way, device)
    with torch.inference_mode():
        target = as_given(case.target.to(dtype) | case.target.to(dtype), case.sparse)
        pos_weight = torch.full(case.target.shape[1:], 3.0, device=device)
    assert (target if case.sparse is None else target.col_indices).is_inference()
    assert pos_weight.is_inference()
    for reduction in ("mean", "sum" if "linear" in way else "none"):
        given = with_options(case, target=target, sparse=None)
        leaves = leaves_of(case)
        loss = with_options(given, reduction=reduction, pos_weight=pos_weight)(*leaves)
        loss.backward(torch.ones_like(loss))
        assert_grads(grads_of(leaves), with_options(case, reduction=reduction))


@in_each_way
def test_inference_mode(device: str, way: str) -> None:
    """The loss stays the same and has no graph, even where torch.set_grad_enabled(True) is called
    within it, and training goes on."""
    for reduction in ("mean", "sum") if "linear" in way else REDUCTIONS:
        case = one_case(way, device, reduction=reduction)
        leaves, expected = leaves_of(case), case()
        for grad_output in (1.0, 3.0):
            with torch.inference_mode():
                copies = [leaf.detach().clone() for leaf in leaves]
                losses = [case(*leaves), case(*copies), case(*(c.clone() for c in leaves))]
                with torch.enable_grad():
                    losses.append(case(*leaves))
                assert case(*(c.clone().requires_grad_() for c in copies)).is_inference()
            assert all(loss.is_inference() for loss in losses)
            for loss in (*losses, case(*copies)):
                assert torch.equal(loss, expected)
                assert not loss.requires_grad
            for leaf in leaves:
                leaf.grad = None
            loss = case(*leaves)
            loss.backward(torch.full_like(loss, grad_output))
            assert_grads(grads_of(leaves), case, grad_output)


def test_threads_with_modes_and_scales_of_their_own(device: str) -> None:
    """Replicas in threads, as in nn.DataParallel; some train while others evaluate."""
    cases = [
        Case(logits(*shape, device=device), labels(*shape, device=device), None, 3.0)
        for shape in ((8, 5), (700, 400))
    ]
    criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.tensor(3.0)).to(device)
    modes = 4 * [torch.enable_grad] + [torch.no_grad, torch.inference_mode]
    together = threading.Barrier(len(modes))

    def work(number: int) -> None:
        replica = copy.deepcopy(criterion)
        with modes[number]():
            for step in range(20):
                case, loss_alone = cases[step % 2], expected[step % 2]
                leaf = case.input.clone().requires_grad_()
                together.wait(10)
                loss = replica(leaf, case.target)
                assert torch.equal(loss, loss_alone)
                assert loss.requires_grad == (modes[number] is torch.enable_grad)
                if loss.requires_grad:
                    factor = 2.0 ** (number if step < 10 else step)
                    (loss * factor).backward()
                    assert_grad(leaf.grad, case, factor)

    expected = [criterion(case.input, case.target) for case in cases]
    with ThreadPoolExecutor(len(modes)) as threads:
        list(threads.map(work, range(len(modes))))  # raises what a thread raised


@pytest.mark.parametrize("vectorize", [False, True])
def test_autograd_functional(device: str, vectorize: bool) -> None:
    x, y = logits(3, 4, dtype=torch.float64, device=device), labels(3, 4, device=device)
    functional, v = torch.autograd.functional, torch.randn_like(x)
    each = []
    for loss in (fused, unfused):
        mean = partial(loss, y=y) if loss is unfused else partial(loss, target=y)
        results = [
            functional.jacobian(mean, x, vectorize=vectorize),
            functional.hessian(mean, x, vectorize=vectorize),
            *(getattr(functional, name)(mean, x, v)[1] for name in ("vhp", "hvp", "jvp")),
        ]
        if vectorize:
            results.append(functional.jacobian(mean, x, vectorize=True, strategy="forward-mode"))
        each.append(results)
    torch.testing.assert_close(*each)
