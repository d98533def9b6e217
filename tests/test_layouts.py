"""Any strides of any argument give what contiguous copies give."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from .comparison import assert_grad, backends, check, outcome
from .tolerances import assert_close
from .truth import Case, labels, logits, truth

SHAPE = (4, 6, 5, 8)


def _inside(t: Tensor, *margins: slice) -> Tensor:
    """The same values as a slice of something larger, filled with NaN or 1 outside."""
    larger = [n * (m.step or 1) + (m.start or 0) + 3 for n, m in zip(t.shape, margins, strict=True)]
    base = torch.ones(larger, dtype=t.dtype, device=t.device)
    if t.is_floating_point():
        base.fill_(torch.nan)
    cuts = (
        slice(m.start or 0, (m.start or 0) + n * (m.step or 1), m.step or 1)
        for n, m in zip(t.shape, margins, strict=True)
    )
    view = base[tuple(cuts)]
    return view.copy_(t)


ALL, STEP, OFFSET = slice(None), slice(0, None, 2), slice(1, None)

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.clone(),
    "channels_last": lambda t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "reversed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "rows apart": lambda t: _inside(t, ALL, ALL, ALL, OFFSET),
    "every second": lambda t: _inside(t, ALL, ALL, ALL, STEP),
    "every second row": lambda t: _inside(t, STEP, ALL, STEP, ALL),
    "slice of a transpose": lambda t: _inside(t.mT.contiguous(), ALL, ALL, ALL, STEP).mT,
    "misaligned": lambda t: _misaligned(t),
}


def _misaligned(t: Tensor) -> Tensor:
    base = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return base[1:].view(t.shape).copy_(t)


def _arguments(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = logits(*SHAPE, dtype=dtype, device=device)
    return x, labels(*SHAPE, device=device), torch.rand(SHAPE, device=device) + 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pair_of_layouts(device: str, dtype: torch.dtype, layout: str) -> None:
    x, y, w = _arguments(device, dtype)
    for name, other in LAYOUTS.items():
        assert torch.equal(other(y), y)
        for target in (other(y), other(y.float()), other(y.long())):
            for reduction in ("none", "mean"):
                check(Case(LAYOUTS[layout](x), target, None, 3.0, reduction, name=name))
        case = Case(LAYOUTS[layout](x), other(y), other(w), w, name=name)
        check(case, backends(device)[1])
        check(case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_a_layout(device: str, layout: str) -> None:
    x, y, w = _arguments(device, torch.float32)
    w = LAYOUTS[layout](w)
    for part in (w, w[0], w[:, :1], w[..., :1], w[0, :, :1, :1], w[0, 0, 0], w[:, :, :1]):
        check(Case(x, y, part, part, "sum"))
        check(Case(x, y, None, part, "none"))


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_grad_outputs_of_a_layout_come_in(device: str, layout: str) -> None:
    """Those of the unreduced loss have the shape of the logits."""
    x, y, whole = _arguments(device, torch.float32)
    if layout == "expanded":
        few = (torch.tensor(2.0), torch.rand(1, 6, 1, 1), torch.rand(4, 1, 1, 1))
        grad_outputs = [t.to(device).expand(SHAPE) for t in few]
    else:
        grad_outputs = [LAYOUTS[layout](whole)]
    for own in LAYOUTS.values():
        case = Case(own(x), y, None, 3.0, "none")
        for grad_output in grad_outputs:
            _, grad = outcome(case, case.input, grad_output)
            assert_grad(grad, case, grad_output.double(), layout)


def strided_cases(device: str) -> Iterator[Case]:
    """Zero strides, elements that share memory, six dimensions, and views at any offset."""
    x, y, w = _arguments(device, torch.float32)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 3), (3, 3, 3)):
        few, some, weights = (t.narrow(d, 0, 1).expand(SHAPE) for t, d in ((x, i), (y, j), (w, k)))
        yield from (Case(few, y), Case(x, some), Case(x, y, weights), Case(few, some, weights))
    one = torch.zeros((), device=device)
    yield Case(one.expand(1000, 7), one.bool().expand(1000, 7), one.expand(7) + 1)
    window = logits(500, device=device).unfold(0, 20, 3)
    yield Case(window, labels(*window.shape, device=device), None, 3.0)
    x = logits(2, 3, 2, 5, 3, 4, device=device)
    y = labels(*x.shape, device=device)
    for order in ((0, 1, 2, 3, 4, 5), (5, 3, 1, 0, 2, 4), (2, 0, 1, 5, 3, 4)):
        moved = x.permute(order)
        w = torch.rand(moved.shape[-3], 1, 1, device=device) + 0.5
        yield Case(moved, y.permute(order), w, w[:, 0, 0].view(-1, 1, 1))
        yield Case(moved[:, 1:, :, ::2], y.permute(order)[:, 1:, :, ::2])
    for dtype, n in product((torch.float16, torch.float32, torch.float64), (1, 15, 33, 40000)):
        base, targets = logits(n + 9, dtype=dtype, device=device), labels(n + 9, device=device)
        for start in range(9):
            part = slice(start, start + n)
            yield Case(base[part], targets[9 - start :][:n], None, 3.0)
            yield Case(base[part], targets.float()[part], None, 3.0)


def test_strides_of_any_kind(device: str) -> None:
    for case in strided_cases(device):
        for reduction in ("mean", "none"):
            check(replace(case, reduction=reduction))


def test_gradient_of_what_is_expanded(device: str) -> None:
    x, y, _ = _arguments(device, torch.float32)
    base = x[:1].clone().requires_grad_()
    case = Case(base.expand(SHAPE), y)
    case(base.expand(SHAPE)).backward()
    assert base.grad is not None
    expected = truth(case)
    total, size = (t.sum(0, keepdim=True) / y.numel() for t in (expected.grad, expected.terms))
    assert_close(base.grad, total, size * 10, "sum over the expanded dimension")


def _strided(device: str) -> Iterator[tuple[str, Tensor]]:
    x = logits(*SHAPE, device=device)
    yield from ((name, layout(x)) for name, layout in LAYOUTS.items())
    yield "expanded", x[:1].expand(SHAPE)
    yield "size 1", x[:, :1].transpose(0, 1)
    yield "empty", x[:0].transpose(0, 1)


def _strides(t: Tensor) -> list[int]:
    """Where they mean something."""
    return [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]


def test_results_have_the_strides_of_torch(device: str) -> None:
    """They are those of torch.empty_like, which the fake ops tell torch.compile as well."""
    wrong = []
    for name, x in _strided(device):
        y = torch.zeros_like(x, dtype=torch.bool)
        _, grad = outcome(Case(x, y), x)
        unreduced, again = outcome(Case(x, y, reduction="none"), x)
        like = _strides(torch.empty_like(x))
        for result in (grad, unreduced, again):
            if _strides(result) != like:
                wrong.append((name, x.stride(), result.stride(), like))
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", ["bool", "hard", "soft"])
@pytest.mark.parametrize("factors", [False, True])
def test_half_precision_in_a_line_gives_the_bits_of_any_layout(
    dtype: torch.dtype, target: str, factors: bool
) -> None:
    """All 65536 logits. In a line, they are converted in registers."""
    line = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).view(64, -1)
    line = line.T.contiguous()  # neighbours differ
    finite = torch.where(line.isfinite(), line, 0)
    y = labels(*line.shape)
    if target != "bool":
        y = y.float() if target == "hard" else torch.rand(line.shape)
    w = torch.rand(line.shape) + 0.5 if factors else None
    p = torch.rand(line.shape) + 0.5 if factors else 3.0
    grad_output = (torch.rand(line.shape) + 0.5).to(dtype)
    actual = []
    for own in (LAYOUTS["contiguous"], lambda t: torch.stack([t, t], -1)[..., 0]):
        unreduced, total = Case(own(line), y, w, p, "none"), Case(own(finite), y, w, p)
        one, other = outcome(unreduced, unreduced.input, grad_output), outcome(total, total.input)
        actual.append((*one, other[1]))
    for a, b in zip(*actual, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
