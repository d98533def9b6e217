"""The cases of the smoke test. Truth and tolerances are those of the tests."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.comparison import assert_grad, check
from tests.linear_cases import assert_right, base
from tests.truth import INPUT_DTYPES, Case, labels, logits, positives_of, sample_inputs
from weighted_bce import backend, weighted_bce_with_logits

Check = Callable[[], object]
FEW = ((1, 1), (5, 205), (7, 1111))
SIZES = (*FEW, (3, 5), (4, 256), (37, 20011), (64, 65536))
TRAINED = (torch.float32, torch.bfloat16)
GIVEN = (None, torch.int64)  # dense or sparse, with indices of this dtype
GRAD_OUTPUTS = (1.0, 1.0, 1024.0, 1024.0, -2.5)  # some are expected and some are not
BYTES = 13  # that a far element takes: bfloat16 logits and gradient, the targets, comparisons


class Skip(Exception):
    """Why a case cannot run here."""


class Group(NamedTuple):
    name: str
    checks: Iterator[Check]


def groups(device: str, small: bool, far: int) -> Iterator[Group]:
    """Yields them in the order in which a failure tells most.

    Args:
        device: where the tensors are.
        small: few cases of each group, and small ones: for compute-sanitizer.
        far: how many elements the last case has.
    """

    def each(check: Callable[..., object], *values: Sequence[object]) -> Iterator[Check]:
        return (partial(check, device, *some) for some in product(*values))

    sizes = FEW if small else SIZES
    first, *others = [
        *(
            Group(f"{str(dtype)[6:]}, all targets", _targets(device, dtype, sizes))
            for dtype in INPUT_DTYPES
        ),
        Group("weights for each label", _weights(device)),
        Group("misaligned and strided", _layouts(device)),
        Group("options and layouts", (c for case in sample_inputs(device) for c in _checks(case))),
        Group("gradient over the logits", each(_written_over, INPUT_DTYPES, GIVEN)),
        Group("linear layer", each(_layer, TRAINED, GIVEN)),
    ]
    if small:
        # There are five grad_outputs: a third of the checks still has all of them.
        for name, checks in (first, *others):
            yield Group(name, islice(checks, 0, None, 3))
    else:
        yield first
        # What only this test has comes early: it is little and quick.
        yield Group("captured graph", each(_graph, TRAINED, GIVEN))
        yield Group(f"{far} elements", each(_far, [far]))
        yield from others


def _checks(case: Case) -> Iterator[Check]:
    """Yields a check with each grad_output."""
    for grad_output in GRAD_OUTPUTS:
        yield partial(check, case, "fused", grad_output)


def _targets(device: str, dtype: torch.dtype, sizes: Sequence[tuple[int, int]]) -> Iterator[Check]:
    for size in sizes:
        x = logits(*size, dtype=dtype, device=device)
        hard = labels(*size, device=device)
        soft = labels(*size, dtype=torch.float32, device=device)
        for y in (hard, soft, soft.to(dtype), hard.to(dtype), hard.long()):
            yield from _checks(Case(x, y, None, 7.0, name="dense"))
        for indices in (torch.int64, torch.int32):
            yield from _checks(Case(x, hard, None, 7.0, name="sparse", sparse=indices))


def _weights(device: str) -> Iterator[Check]:
    for dtype in INPUT_DTYPES:
        x, hard = logits(37, 1029, dtype=dtype, device=device), labels(37, 1029, device=device)
        p, w = (torch.rand(1029, device=device) * 4 for _ in range(2))
        for sparse in GIVEN:
            for weight in (None, w, w.to(dtype)):
                yield from _checks(Case(x, hard, weight, p, name="weights", sparse=sparse))


def _layouts(device: str) -> Iterator[Check]:
    """Views that begin at any element, rows with gaps, columns, and a transposed matrix."""
    rows, columns = 13, 523

    def offset(flat: Tensor, by: int) -> Tensor:
        return flat[by : by + rows * columns].view(rows, columns)

    for dtype in INPUT_DTYPES:
        x = logits(rows * columns + 16, dtype=dtype, device=device)
        hard = labels(rows * columns + 16, device=device)
        for by in (1, 2, 3, 5):
            yield from _checks(Case(offset(x, by), offset(hard, 0), None, 7.0, name="offset"))
            yield from _checks(Case(offset(x, 0), offset(hard, by), None, 7.0, name="offset"))
            yield from _checks(Case(offset(x, by), offset(hard, by).to(dtype), name="offset"))
        x, hard = offset(x, 0), offset(hard, 0)
        for part in (x[:, 1:-1], hard[:, 1:-1]), (x[:, ::3], hard[:, ::3]), (x.t(), hard.t()):
            yield from _checks(Case(*part, None, 7.0, name="strided"))
            yield from _checks(Case(*part, None, 7.0, name="strided", sparse=torch.int64))


def _written_over(device: str, dtype: torch.dtype, sparse: torch.dtype | None) -> None:
    x, hard = logits(7, 1111, dtype=dtype, device=device), labels(7, 1111, device=device)
    case = Case(x, hard, None, 7.0, name="in place", sparse=sparse)
    hidden = case.input.clone().requires_grad_() * 1.0
    with backend("fused"):
        loss = case(hidden, inplace_backward=True)
        (grad,) = torch.autograd.grad(loss, hidden, torch.full_like(loss, 3.0))
    assert grad.data_ptr() == hidden.data_ptr(), "the gradient has memory of its own"
    assert_grad(grad, case, 3.0, f"gradient: {case.name}")


def _layer(device: str, dtype: torch.dtype, sparse: torch.dtype | None) -> None:
    case = base(dtype, device, 33, 1111, pos_weight=7.0, chunk_labels=300)
    with backend("fused"):
        assert_right(replace(case, sparse=sparse))


def captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of the step, after the warm-up on a side stream that capturing asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _graph(device: str, dtype: torch.dtype, sparse: torch.dtype | None) -> None:
    """It sees new logits and another loss scale each time it is replayed."""
    x, hard = logits(300, 1030, dtype=dtype, device=device), labels(300, 1030, device=device)
    target = positives_of(hard, sparse) if sparse else hard
    x.requires_grad_()
    scale = torch.ones((), device=device)

    def step() -> None:
        x.grad = None
        with backend("fused"):
            (weighted_bce_with_logits(x, target, pos_weight=7.0) * scale).backward()

    replay = captured(step).replay if device == "cuda" else step
    for grad_output in (1.0, 1024.0, 1024.0, 0.0, -2.5):
        with torch.no_grad():
            x.copy_(logits(300, 1030, dtype=dtype))
        scale.fill_(grad_output)
        replay()
        assert_grad(x.grad, Case(x.detach(), hard, None, 7.0), grad_output, "gradient: graph")


def _far(device: str, elements: int) -> None:
    """An index of 32 bits would be negative at the far end."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else 2**30
    if free < BYTES * elements:
        raise Skip(f"{BYTES * elements / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free")
    x = torch.zeros(elements, dtype=torch.bfloat16, device=device)
    y = torch.zeros(elements, dtype=torch.bool, device=device)
    x[-2:] = 3.0
    y[-1] = True
    x.requires_grad_()
    with backend("fused"):
        loss = weighted_bce_with_logits(x, y, pos_weight=7.0, reduction="sum")
    loss.backward()
    assert x.grad is not None
    three = torch.tensor(3.0, dtype=torch.float64, device=device)
    ends = F.softplus(three) + 7 * F.softplus(-three)
    expected = (elements - 2) * math.log(2.0) + float(ends)
    actual = loss.item()
    assert abs(actual / expected - 1) < 1e-6, f"loss {actual}, expected {expected}"
    assert bool((x.grad[:-2] == 0.5).all()), "a gradient of a logit of 0 is not 0.5"
    last = torch.stack((torch.sigmoid(three), -7 * torch.sigmoid(-three))).bfloat16()
    assert torch.equal(x.grad[-2:], last), f"the last gradients are {x.grad[-2:].tolist()}"
