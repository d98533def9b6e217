"""What only a GPU can show: graphs, streams, several devices, memory, no wait for the device."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tools.gpu.cases import captured
from weighted_bce import WeightedBCEWithLogitsLoss, _eager, backend, weighted_bce_with_logits
from weighted_bce._kernels import why_not_on_cuda

from .comparison import assert_grad, check, divisor
from .tolerances import assert_close
from .truth import Case, labels, logits, truth

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _fused() -> Any:
    reason = why_not_on_cuda(torch.cuda.current_device())
    if reason is not None:
        pytest.skip(reason)
    with backend("fused"):
        yield


@pytest.fixture
def no_waiting() -> Any:
    """Any call that waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("ignore_index", [None, -1])
def test_nothing_waits_for_the_device(no_waiting: None, ignore_index: float | None) -> None:
    x, y = torch.randn(300, 70, device="cuda"), torch.zeros(300, 70, device="cuda")
    weight = torch.rand(70, device="cuda")
    one = torch.ones((), device="cuda")
    factors = (7.0, one * 7, weight, torch.tensor(7.0), torch.tensor(7))
    for p, reduction, inplace in product(factors, ("mean", "sum", "none"), (False, True)):
        leaf = x.clone().requires_grad_()
        options = {"ignore_index": ignore_index, "inplace_backward": inplace}
        loss = weighted_bce_with_logits(leaf * 1.0, y, weight, p, reduction, **options)
        loss.backward(torch.full_like(loss, 3.0))


@pytest.mark.parametrize("ignore_index", [None, -1.0])
@pytest.mark.parametrize("shape", [(4, 9), (300, 1030)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graph_replays_with_new_data(
    shape: tuple[int, int], dtype: torch.dtype, ignore_index: float | None
) -> None:
    """Also with another scale: what is expected is kept on the device, inside the graph."""
    x = logits(*shape, dtype=dtype, device="cuda").requires_grad_()
    y = labels(*shape, dtype=torch.float32, device="cuda")
    scale = torch.ones((), device="cuda")
    results: dict[str, Tensor] = {}

    def step() -> None:
        x.grad = None
        loss = weighted_bce_with_logits(x, y, pos_weight=7.0, ignore_index=ignore_index)
        (loss * scale).backward()
        results["loss"] = loss.detach()

    graph = captured(step)
    grad = x.grad
    for factor in (1.0, 1024.0, 1024.0, -2.5, 0.0, 1.0):
        with torch.no_grad():
            x.copy_(logits(*shape, dtype=dtype))
            y.copy_(labels(*shape, dtype=torch.float32))
            if ignore_index is not None:
                y[torch.rand(shape, device="cuda") < 0.2] = ignore_index
            scale.fill_(factor)
        graph.replay()
        case = Case(x.detach(), y, None, 7.0, ignore_index=ignore_index)
        assert_grad(grad, case, factor)
        expected = truth(case)
        by = divisor(case, expected.count)
        total, size = expected.loss.sum() / by, expected.loss.abs().sum() / by
        assert_close(results["loss"], total, size, "loss")


def test_training_step_in_a_graph() -> None:
    """Model, loss, backward and optimizer; the same weights as without a graph."""

    x, first = torch.randn(64, 20, device="cuda"), labels(64, 500, device="cuda")
    y = first.clone()

    def make() -> tuple[nn.Module, Callable[[], None]]:
        torch.manual_seed(3)
        model = nn.Linear(20, 500).cuda()
        criterion = WeightedBCEWithLogitsLoss(pos_weight=torch.full((500,), 7.0)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), 0.5)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            criterion(model(x), y).backward()
            optimizer.step()

        return model, step

    batches = [(torch.randn(64, 20).cuda(), labels(64, 500).cuda()) for _ in range(4)]
    finals = []
    for use_graph in (False, True):
        model, step = make()
        x.normal_(generator=torch.Generator("cuda").manual_seed(1))
        y.copy_(first)
        replay = captured(step).replay if use_graph else step
        for _ in range(0 if use_graph else 3):  # as often as the capture's warm-up
            step()
        for new_x, new_y in batches:
            x.copy_(new_x)
            y.copy_(new_y)
            replay()
        finals.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*finals, strict=True):
        torch.testing.assert_close(one, other)


def test_streams_other_than_the_default() -> None:
    x, y = logits(500, 700, device="cuda"), labels(500, 700, device="cuda")
    case = Case(x, y, None, 7.0)
    streams = [torch.cuda.Stream() for _ in range(3)]
    leaves = []
    for number, stream in enumerate(streams * 4):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Work that keeps the stream busy: a kernel on another one would be too early.
            late = torch.zeros_like(x)
            torch.cuda._sleep(2_000_000)
            leaf = late.copy_(x).requires_grad_()
            (case(leaf) * 2.0**number).backward()
            leaves.append((leaf, 2.0**number))
    torch.cuda.synchronize()
    for leaf, factor in leaves:
        assert_grad(leaf.grad, case, factor)


def test_threads_on_streams_of_their_own() -> None:
    """They share what is expected, each brings another scale, and each gets its own gradient."""
    x, y = logits(200, 1000, device="cuda"), labels(200, 1000, device="cuda")
    case = Case(x, y, None, 7.0)
    torch.cuda.synchronize()

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for step in range(30):
                leaf = x.clone().requires_grad_()
                factor = 2.0 ** (number + step % 3)
                (case(leaf) * factor).backward()
                torch.cuda.current_stream().synchronize()
                assert_grad(leaf.grad, case, factor)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_backward_in_a_graph_of_its_own() -> None:
    """It may be replayed more than once after one forward pass, with other grad_outputs."""
    x = logits(300, 400, device="cuda")
    y = labels(300, 400, device="cuda")
    criterion = WeightedBCEWithLogitsLoss(pos_weight=7.0).cuda()
    sample = (x.clone().requires_grad_(), y)
    graphed = torch.cuda.make_graphed_callables(criterion, sample)
    leaf = x.clone().requires_grad_()
    loss = graphed(leaf, y)
    for factor in (2.0, 1.0, 3.0, 3.0, 1.0):
        (grad,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, factor), retain_graph=True)
        assert_grad(grad, Case(x, y, None, 7.0), factor)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_device_that_is_not_the_current_one() -> None:
    for device in ("cuda:1", "cuda:0"):
        check(Case(logits(300, 400, device=device), labels(300, 400, device=device), None, 7.0))
        assert torch.cuda.current_device() == 0


def test_numbers_on_the_cpu_are_taken_along() -> None:
    """0-d tensors of the CPU are taken, as by torch's own operators."""
    x, y = logits(60, 70, device="cuda"), labels(60, 70, device="cuda")
    for number in (torch.tensor(2.5), torch.tensor(2), torch.tensor(2.5, dtype=torch.float64)):
        for reduction in ("mean", "none"):
            check(Case(x, y, number, None, reduction))
            check(Case(x, y, None, number, reduction))


def test_factors_of_any_dtype() -> None:
    """Those that the kernels do not read themselves are converted."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        x, y = logits(60, 70, dtype=dtype, device="cuda"), labels(60, 70, device="cuda")
        for other in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32):
            p = (torch.rand(70, device="cuda") * 4).to(other)
            check(Case(x, y, p, p, "sum"))
            check(Case(x, y, None, p))


@pytest.mark.parametrize("inplace", [False, True])
def test_peak_is_one_gradient_or_nothing(inplace: bool) -> None:
    x = torch.randn(1 << 24, device="cuda").requires_grad_()
    y = torch.rand(1 << 24, device="cuda") < 0.01
    for scale in (1.0, 1.0, 1024.0, 8.0):
        hidden = x * 1.0
        torch.cuda.empty_cache()  # else a block that is a little too large may serve
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = weighted_bce_with_logits(hidden, y, inplace_backward=inplace)
        torch.autograd.grad(loss * scale, hidden)
        added = torch.cuda.max_memory_allocated() - before
        assert added < (0 if inplace else x.nbytes) + (1 << 20), (scale, added)


def test_kept_expectations_survive_many_kinds() -> None:
    """A graph may hold an expectation: none is dropped, however many kinds there are."""
    first = torch.zeros(2, 3, device="cuda", requires_grad=True)
    weighted_bce_with_logits(first, first.detach()).backward()
    kept = dict(_eager._expected)
    for n in range(4, 400):
        x = torch.zeros(2, n, device="cuda", requires_grad=True)
        weighted_bce_with_logits(x, x.detach()).backward()
    assert all(_eager._expected[kind] is tensor for kind, tensor in kept.items())
