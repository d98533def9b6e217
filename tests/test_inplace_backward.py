"""inplace_backward: the gradient takes the place of the logits, and nothing is silently wrong."""

import pytest
import torch
from torch import Tensor

from weighted_bce import backend, weighted_bce_with_logits

from .comparison import assert_grad
from .truth import INPUT_DTYPES, Case, as_given, labels, logits, truth


def run(case: Case, hidden: Tensor, factor: float = 1.0) -> Tensor:
    """The gradient that arrives at `hidden`."""
    received: list[Tensor] = []
    hidden.register_hook(received.append)
    loss = case(hidden, inplace_backward=True)
    loss.backward(torch.full_like(loss, factor))
    return received[0]


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (6, 9), (300, 400)], ids=str)
def test_gradient_lies_in_the_memory_of_the_logits(
    kernel_device: str, dtype: torch.dtype, shape: tuple[int, ...], sparse: torch.dtype | None
) -> None:
    if sparse is not None and len(shape) != 2:
        pytest.skip("sparse labels have rows")
    x, y = logits(*shape, dtype=dtype, device=kernel_device), labels(*shape, device=kernel_device)
    for reduction in ("mean", "sum", "none"):
        for factor in (1.0, -2.5, 65536.0 if dtype != torch.float16 else 8.0):
            case = Case(x, y, None, 3.0, reduction, sparse=sparse)
            hidden = x.clone().requires_grad_() * 1.0
            pointer = hidden.data_ptr()
            grad = run(case, hidden, factor)
            assert grad.data_ptr() == pointer
            assert_grad(grad, case, factor)


@pytest.mark.parametrize("ignore_index", [-1, 1])
def test_ignored_and_smoothed(device: str, sparse: torch.dtype | None, ignore_index: int) -> None:
    x, y = logits(50, 9, device=device), labels(50, 9, dtype=torch.int64, device=device)
    if sparse is None:
        y[::3] = -1
    case = Case(x, y, None, 3.0, "mean", 0.1, ignore_index, sparse=sparse)
    assert_grad(run(case, x.clone().requires_grad_() * 1.0), case)
    leaf = x.clone().requires_grad_()
    assert_grad(run(case, leaf), case)


def test_logits_stay_until_backward(device: str) -> None:
    x = logits(6, 9, device=device)
    y = labels(6, 9, device=device)
    hidden = x.clone().requires_grad_() * 1.0
    loss = weighted_bce_with_logits(hidden, y, inplace_backward=True)
    assert torch.equal(loss, weighted_bce_with_logits(x, y))
    assert torch.equal(hidden, x)
    with torch.no_grad():
        weighted_bce_with_logits(hidden, y, inplace_backward=True)
    assert torch.equal(hidden, x)


@pytest.mark.parametrize("how", ["second backward", "two losses", "older use", "newer use"])
def test_other_use_of_the_logits_raises_or_is_right(kernel_device: str, how: str) -> None:
    """Autograd runs the younger node first: only a use older than the loss finds them changed."""
    x, y = logits(6, 9, device=kernel_device), labels(6, 9, device=kernel_device)
    leaf = x.clone().requires_grad_()
    hidden = leaf * 1.0
    other = hidden.square().sum() if how == "older use" else 0
    loss = weighted_bce_with_logits(hidden, y, inplace_backward=True)
    if how == "two losses":
        other = weighted_bce_with_logits(hidden, y, inplace_backward=True)
    elif how == "newer use":
        (loss + hidden.square().sum()).backward()
        grad = truth(Case(x, y)).grad / x.numel() + 2 * x.double()
        torch.testing.assert_close(leaf.grad, grad.float())
        return
    elif how == "second backward":
        loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_strided_logits_keep_what_lies_between(kernel_device: str) -> None:
    for view in (lambda t: t[:, ::2], lambda t: t.t()[1:-1], lambda t: t[::3, 2:7]):
        base = logits(12, 10, device=kernel_device)
        whole = base.clone().requires_grad_() * 1.0
        x = view(base)
        case = Case(x, labels(*x.shape, device=kernel_device))
        outside = torch.ones_like(base, dtype=torch.bool)
        view(outside).fill_(False)
        hidden = view(whole)
        grad = run(case, hidden)
        assert_grad(grad, case)
        assert grad.data_ptr() == hidden.data_ptr()
        assert torch.equal(whole.detach()[outside], base[outside])


@pytest.mark.parametrize(
    "view",
    [lambda t: t[:1].expand(20, 9), lambda t: t.flatten().unfold(0, 9, 4)],
    ids=["expanded", "sliding window"],
)
def test_logits_that_overlap_get_memory_of_their_own(device: str, view: object) -> None:
    base = logits(12, 9, device=device)
    x = view(base)  # type: ignore[operator]
    case = Case(x, labels(*x.shape, device=device))
    before = base.clone()
    grad = run(case, view(base.requires_grad_() * 1.0))  # type: ignore[operator]
    assert_grad(grad, case)
    assert torch.equal(base.detach(), before)


def test_double_backward_is_right(device: str, sparse: torch.dtype | None) -> None:
    x, y = logits(4, 5, dtype=torch.float64, device=device), labels(4, 5, device=device)
    results = []
    for inplace, chosen in ((True, "auto"), (False, "auto"), (False, "reference")):
        leaf = x.clone().requires_grad_()
        target = as_given(y, sparse)
        with backend(chosen):
            loss = weighted_bce_with_logits(leaf * 1.0, target, inplace_backward=inplace)
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        results += torch.autograd.grad(grad.square().sum() + loss, leaf)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
