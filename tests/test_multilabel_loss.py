"""Every loss, everywhere that binary cross-entropy is: layouts, derivatives, transforms, compile.

The truth of each loss is its terms in float64; the focal loss has its own, by NumPy, in
test_losses.py.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import weighted_bce
from weighted_bce import (
    BCE,
    Focal,
    FusedSGD,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    MultilabelLoss,
    WeightedBCEWithLogitsLoss,
    backend,
    linear_multilabel_loss_with_logits,
    linear_weighted_bce_with_logits,
    multilabel_loss_with_logits,
    weighted_bce_with_logits,
)
from weighted_bce._extension import extension
from weighted_bce._terms import Term, terms_of

from .processes import Processes
from .tolerances import assert_close
from .truth import INPUT_DTYPES, backends, labels, logits, positives_of

LOSSES = (BCE(), Focal(), Focal(0.0), Focal(0.5, 0.25), Focal(2.7, 1.0))
OTHERS = LOSSES[1:]
INF = math.inf
needs_extension = pytest.mark.skipif(extension is None, reason="no extension")


def terms(loss: Any) -> tuple[Term, Term]:
    return terms_of(loss._loss_id, loss._parameters)


def formula(
    loss: Any,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | float = 1.0,
    smoothing: float = 0.0,
    part: str = "value",
) -> Tensor:
    """The loss of each element, or its slope, in the dtype of x; differentiable."""
    positive, negative = terms(loss)
    y = y.to(x.dtype) * (1 - smoothing) + smoothing / 2
    result = pos_weight * y * getattr(positive, part)(x) + (1 - y) * getattr(negative, part)(x)
    return result if weight is None else weight * result


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_slopes_and_curvatures_are_derivatives_of_values(loss: Any) -> None:
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64).requires_grad_()
    for term in terms(loss):
        first, second = term.slope(x), term.curvature(x)
        for function, derivative in ((term.value, first), (term.slope, second)):
            (expected,) = torch.autograd.grad(function(x).sum(), x)
            torch.testing.assert_close(derivative, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 1e4, 1e38, 1e300])
def test_terms_have_their_limits(gamma: float, dtype: torch.dtype) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([INF, -INF, large, -large, 100, -100, 0, 1e-30], dtype=dtype)
    for loss in (Focal(gamma), Focal(gamma, 0.0), Focal(gamma, 1.0)):
        for term, sign in zip(terms(loss), (-1, 1), strict=True):
            value, slope, curvature = term.value(x), term.slope(x), term.curvature(x)
            assert not torch.stack((value, slope, curvature)).isnan().any()
            ends = sign * x
            has_factor = (slope != 0).any()
            assert (value[ends == INF] == (INF if has_factor else 0)).all()
            assert (value[ends == -INF] == 0).all()
            assert (slope[ends == INF] == (sign if has_factor else 0)).all()
            assert (slope[ends == -INF] == 0).all()
            assert (curvature[ends.isinf()] == 0).all()
            assert term.value(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("loss", OTHERS, ids=str)
def test_loss_and_gradient(device: str, loss: Any, dtype: torch.dtype) -> None:
    """The kernels and the reference agree with the formula, for every form of the target."""
    shape = (9, 40)
    x = logits(*shape, dtype=dtype, device=device)
    hard = labels(*shape, device=device)
    soft = labels(*shape, dtype=torch.float32, device=device)
    ignoring = torch.where(torch.rand(shape, device=device) < 0.2, -1, hard.long())
    row, column = torch.rand(40, device=device) * 3, torch.rand(9, 1, device=device) + 0.5
    for given, y, options in (
        (hard, hard, dict(pos_weight=7.0)),
        (positives_of(hard), hard, dict(pos_weight=row, weight=column)),
        (hard.t(), hard.t(), {}),
        (soft, soft, dict(pos_weight=row, weight=column, label_smoothing=0.1)),
        (ignoring, hard, dict(ignore_index=-1)),
    ):
        own = x.t() if y.shape != shape else x
        wide = own.double()
        smoothing = options.get("label_smoothing", 0.0)
        terms_given = {k: v for k, v in options.items() if "weight" in k}
        each = formula(loss, wide, y, smoothing=smoothing, **terms_given)
        counts = ignoring != -1 if given is ignoring else torch.ones_like(each, dtype=torch.bool)
        slope = formula(loss, wide, y, smoothing=smoothing, part="slope", **terms_given)
        each, slope = torch.where(counts, each, 0), torch.where(counts, slope, 0)
        divisors = {"none": 1, "sum": 1, "mean": int(counts.sum()), "batchmean": len(own)}
        for chosen in backends(device):
            for reduction, by in divisors.items():
                leaf = own.detach().requires_grad_()
                with backend(chosen):
                    result = multilabel_loss_with_logits(
                        leaf, given, loss, reduction=reduction, **options
                    )
                expected = each if reduction == "none" else each.sum() / by
                assert_close(result.detach(), expected, 3 * expected, f"{loss}, {reduction}")
                (grad,) = torch.autograd.grad(result.sum() * 3, leaf)
                size = slope.abs() * 9 / by + each * 3 / by  # soft targets cancel
                assert_close(grad, slope * 3 / by, size, f"gradient, {loss}, {reduction}")


def test_bce_is_weighted_bce(device: str) -> None:
    x, y = logits(9, 40, device=device), labels(9, 40, device=device)
    for target in (y, y.float(), positives_of(y)):
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        options: dict[str, Any] = dict(pos_weight=7.0, label_smoothing=0.1, reduction="sum")
        loss = multilabel_loss_with_logits(leaf, target, BCE(), **options)
        expected = weighted_bce_with_logits(other, target, **options)
        assert torch.equal(loss, expected)
        loss.backward()
        expected.backward()
        assert leaf.grad is not None
        assert other.grad is not None
        assert torch.equal(leaf.grad, other.grad)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("loss", OTHERS, ids=str)
def test_derivatives_of_all_orders(device: str, loss: Any, reduction: str) -> None:
    x = (logits(4, 5, dtype=torch.float64, device=device) / 3).requires_grad_()
    soft = torch.rand(4, 5, dtype=torch.float64, device=device)
    hard = labels(4, 5, device=device)
    weight = torch.rand(5, dtype=torch.float64, device=device).requires_grad_()
    p = (torch.rand(4, 1, dtype=torch.float64, device=device) + 1).requires_grad_()
    checks = (torch.autograd.gradcheck, torch.autograd.gradgradcheck)

    def dense(x: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, soft, loss, pos_weight=3.0, reduction=reduction)

    def sparse(x: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, positives_of(hard), loss, reduction=reduction)

    def others(x: Tensor, y: Tensor, w: Tensor, p: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, y, loss, w, p, reduction)

    assert checks[0](dense, x, check_forward_ad=True)
    assert checks[1](dense, x)
    assert all(check(sparse, x) for check in checks)
    assert checks[0](others, (x, soft.requires_grad_(), weight, p))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradient_of_hard_targets(device: str, loss: Any) -> None:
    """Targets of exactly 0 and 1 have the gradient of others, p P(x) - N(x)."""
    x = logits(4, 5, dtype=torch.float64, device=device) / 3
    y = labels(4, 5, device=device).double().requires_grad_()
    positive, negative = terms(loss)
    for p in (3.0, torch.full((5,), 3.0, dtype=torch.float64, device=device)):
        result = multilabel_loss_with_logits(x, y, loss, pos_weight=p, reduction="sum")
        (grad,) = torch.autograd.grad(result, y)
        torch.testing.assert_close(grad, 3 * positive.value(x) - negative.value(x))


@pytest.mark.parametrize("loss", OTHERS, ids=str)
def test_transforms(device: str, loss: Any) -> None:
    x = logits(6, 5, dtype=torch.float64, device=device) / 3
    y = labels(6, 5, device=device)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return multilabel_loss_with_logits(x, y, loss, pos_weight=3.0)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return formula(loss, x, y, pos_weight=3.0).mean()

    def per_row(function: Callable[..., Tensor]) -> Any:
        return torch.vmap(torch.func.grad_and_value(function))(x, y)

    def along(function: Callable[..., Tensor]) -> Any:
        tangents = torch.ones_like(x), torch.zeros_like(x)
        return torch.func.jvp(lambda x, _: function(x, y), (x, x), tangents)

    def hessian(function: Callable[..., Tensor]) -> Any:
        return torch.func.hessian(lambda x: function(x, y[0]))(x[0])

    def third(function: Callable[..., Tensor]) -> Any:
        return torch.func.jacrev(lambda x: torch.func.hessian(function)(x, y[0]))(x[0])

    for transform in (per_row, along, hessian, third):
        torch.testing.assert_close(transform(ours), transform(plain), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("loss", OTHERS[:1], ids=str)
def test_in_place_and_expected_grad_output(kernel_device: str, loss: Any) -> None:
    """What was expected changes no bit, and in place the gradient takes the logits' memory."""
    x, y = logits(9, 40, device=kernel_device), labels(9, 40, device=kernel_device)
    grads = []
    for scale, inplace in ((1.0, False), (512.0, False), (512.0, False), (512.0, True)):
        own = x.clone().requires_grad_() * 1.0
        result = scale * multilabel_loss_with_logits(own, y, loss, inplace_backward=inplace)
        (grad,) = torch.autograd.grad(result, own)
        assert torch.equal(own.detach(), grad) == inplace
        grads.append(grad / scale)
    for one, other in pairwise(grads):
        assert torch.equal(one, other)


@needs_extension
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_compile_has_the_op(kernel_device: str, sparse: bool) -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    y = labels(9, 40, device=kernel_device)
    target = positives_of(y) if sparse else y

    def step(x: Tensor, loss: Any) -> Tensor:
        return multilabel_loss_with_logits(x * 1.5, target, loss, pos_weight=7.0)

    compiled = torch.compile(step, fullgraph=True, backend=keep)
    for loss in (BCE(), Focal(2.0, 0.25)):
        x = logits(9, 40, device=kernel_device)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(leaf, loss).backward()
        step(other, loss).backward()
        assert torch.equal(leaf.grad, other.grad)  # type: ignore[arg-type]
        names = [str(node.target) for node in graphs[-1].graph.nodes]
        assert "weighted_bce.loss.default" in names


@needs_extension
def test_a_parameter_that_changes_is_compiled(kernel_device: str) -> None:
    y = labels(9, 40, device=kernel_device)
    x = logits(9, 40, device=kernel_device)

    def focal(x: Tensor, gamma: float) -> Tensor:
        return multilabel_loss_with_logits(x, y, Focal(gamma))

    compiled = torch.compile(focal, fullgraph=True, backend="aot_eager")
    for step in range(4):
        gamma = 2.0 - step / 4
        torch.testing.assert_close(compiled(x, gamma), focal(x, gamma))


@needs_extension
def test_export(kernel_device: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = MultilabelLoss(Focal(1.5, 0.25), pos_weight=torch.ones(40))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.criterion(x, y)

    model = Model().to(kernel_device)
    given = logits(9, 40, device=kernel_device), labels(9, 40, device=kernel_device)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, given), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(*given), model(*given))


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_linear_layer(device: str, loss: Any, dtype: torch.dtype) -> None:
    """The loss and all gradients of a linear layer, in chunks, are those of its logits."""
    x, w, b = (torch.randn(s, device=device).to(dtype) for s in ((7, 12), (150, 12), (150,)))
    y = labels(7, 150, device=device)
    for target in (y, positives_of(y)):
        for reduction, chunk_labels in (("mean", None), ("batchmean", 64)):
            leaves = [t.detach().requires_grad_() for t in (x, w, b)]
            wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
            each = formula(loss, torch.nn.functional.linear(*wide), y, pos_weight=3.0)
            expected = each.mean() if reduction == "mean" else each.sum() / 7
            result = linear_multilabel_loss_with_logits(
                *leaves[:2],
                target,
                loss,
                linear_bias=leaves[2],
                pos_weight=3.0,
                reduction=reduction,
                chunk_labels=chunk_labels,
            )
            half = dtype in (torch.float16, torch.bfloat16)
            tolerance = 1e-12 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=0)
            (2.5 * result).backward()
            (2.5 * expected).backward()
            for leaf, other in zip(leaves, wide, strict=True):
                size = other.grad.abs().max()  # type: ignore[union-attr]
                error = (leaf.grad.double() - other.grad).abs().max()  # type: ignore[operator,union-attr]
                assert error <= (2.0**-7 if half else 10 * tolerance) * size


def test_linear_layer_in_other_ways(device: str) -> None:
    """A fused step, compile, and torch.func give what the plain call gives."""
    loss = Focal(1.5, 0.25)
    x, w = torch.randn(7, 12, device=device), torch.randn(150, 12, device=device)
    y = labels(7, 150, device=device)

    def call(x: Tensor, w: Tensor, **options: Any) -> Tensor:
        return linear_multilabel_loss_with_logits(x, w, y, loss, pos_weight=3.0, **options)

    leaf = w.clone().requires_grad_()
    call(x, leaf).backward()
    assert leaf.grad is not None
    stepped = w.clone().requires_grad_()
    call(x, stepped, fused_step=FusedSGD([stepped], lr=0.5)).backward()
    torch.testing.assert_close(stepped.detach(), w - 0.5 * leaf.grad)
    torch.testing.assert_close(torch.func.grad(call, argnums=1)(x, w), leaf.grad)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    other = w.clone().requires_grad_()
    compiled(x, other).backward()
    torch.testing.assert_close(other.grad, leaf.grad)
    with backend("reference"):
        torch.testing.assert_close(call(x, w), call(x, leaf.detach()))


def check_shards(processes: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    from .processes import mesh_of

    mesh = mesh_of(processes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 13, generator=generator) * 4
    y = torch.rand(7, 13, generator=generator) < 0.3
    w = torch.randn(13, 5, generator=generator)
    for loss in (Focal(), Focal(0.5, 0.25)):
        for dim in (0, 1):
            leaf = x.clone().requires_grad_()
            shards = distribute_tensor(x, mesh, [Shard(dim)]).requires_grad_()
            for target, own in (
                (y, distribute_tensor(y, mesh, [Shard(dim)])),
                (positives_of(y), positives_of(y)),
            ):
                expected = multilabel_loss_with_logits(leaf, target, loss, pos_weight=3.0)
                result = multilabel_loss_with_logits(shards, own, loss, pos_weight=3.0)
                torch.testing.assert_close(result.full_tensor(), expected)  # type: ignore[attr-defined]
                (slope,) = torch.autograd.grad(expected, leaf, create_graph=True)
                (grad,) = torch.autograd.grad(result, shards, create_graph=True)
                torch.testing.assert_close(grad.full_tensor(), slope)  # type: ignore[attr-defined]
                (second,) = torch.autograd.grad((slope**2).sum(), leaf)
                (of_shards,) = torch.autograd.grad((grad**2).sum(), shards)
                torch.testing.assert_close(of_shards.full_tensor(), second)  # type: ignore[attr-defined]
        hidden = torch.randn(7, 5, generator=generator)
        expected = linear_multilabel_loss_with_logits(hidden, w, positives_of(y), loss)
        whole = distribute_tensor(hidden, mesh, None)
        parts = distribute_tensor(w, mesh, [Shard(0)])
        result = linear_multilabel_loss_with_logits(whole, parts, positives_of(y), loss)
        torch.testing.assert_close(result.full_tensor(), expected)  # type: ignore[attr-defined]


@needs_extension
def test_shards(processes: Processes) -> None:
    processes(check_shards)


def test_modules(device: str) -> None:
    x, y = logits(9, 40, device=device), labels(9, 40, device=device)
    criterion = MultilabelLoss(Focal(1.5), pos_weight=torch.full((40,), 3.0), reduction="sum")
    assert repr(criterion) == (
        "MultilabelLoss(Focal(gamma=1.5, alpha=None), pos_weight=tensor(40,), reduction='sum')"
    )
    criterion = criterion.to(device)
    expected = multilabel_loss_with_logits(x, y, Focal(1.5), pos_weight=3.0, reduction="sum")
    for copied in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(copied(x, y), expected)
        assert list(copied.state_dict()) == ["pos_weight"]
    bce = MultilabelLoss(BCE(), pos_weight=3.0)
    assert torch.equal(bce(x, y), WeightedBCEWithLogitsLoss(pos_weight=3.0)(x, y))

    torch.manual_seed(0)
    linear = LinearMultilabelLoss(12, 40, BCE(), pos_weight=3.0)
    torch.manual_seed(0)
    other = LinearWeightedBCEWithLogitsLoss(12, 40, pos_weight=3.0)
    hidden, target = torch.randn(9, 12), y.cpu()
    assert torch.equal(linear(hidden, target), other(hidden, target))
    assert linear.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(linear.topk(hidden, 3).indices, other.topk(hidden, 3).indices)
    assert "BCE()" in repr(linear)


def test_losses_are_values() -> None:
    assert Focal() == Focal(2.0, None) == Focal(2) != Focal(2.0, 0.25)
    assert len({Focal(), Focal(2.0), BCE(), BCE()}) == 2
    for loss in LOSSES:
        assert pickle.loads(pickle.dumps(loss)) == loss
        assert eval(repr(loss), vars(weighted_bce)) == loss
        with pytest.raises(AttributeError):
            loss.gamma = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Focal(-1), ValueError, "gamma must be a finite number >= 0, got -1"),
        (lambda: Focal(math.nan), ValueError, "gamma must be a finite number >= 0, got nan"),
        (lambda: Focal(INF), ValueError, "gamma must be a finite number >= 0, got inf"),
        (lambda: Focal("2"), TypeError, "gamma must be a number, got str"),
        (lambda: Focal(True), TypeError, "gamma must be a number, got bool"),
        (lambda: Focal(2.0, 1.5), ValueError, r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: Focal(2.0, -1), ValueError, r"alpha must be in \[0, 1\], got -1"),
        (lambda: Focal(2.0, math.nan), ValueError, r"alpha must be in \[0, 1\], got nan"),
        (lambda: Focal(2.0, "a"), TypeError, "alpha must be a number or None, got str"),
    ],
)
def test_wrong_parameters(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("wrong", [None, "focal", Focal, 2.0])
def test_unknown_losses(wrong: Any) -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    words = r"loss must be BCE\(\) or Focal\(\), got"
    for call in (
        lambda: multilabel_loss_with_logits(x, y, wrong),
        lambda: MultilabelLoss(wrong),
        lambda: linear_multilabel_loss_with_logits(x, torch.zeros(3, 3), y, wrong),
        lambda: LinearMultilabelLoss(3, 3, wrong),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_subclasses_of_tensor_see_the_functions() -> None:
    class Seen(Tensor):
        calls: ClassVar[list[Any]] = []

        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function.__module__.startswith("weighted_bce"):
                cls.calls.append((function, args[3:], kwargs))
                return None
            return super().__torch_function__(function, types, args, kwargs)

    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    seen = x.as_subclass(Seen)
    multilabel_loss_with_logits(seen, y, Focal(), reduction="sum")
    linear_multilabel_loss_with_logits(seen, torch.zeros(3, 3), y, Focal(), chunk_labels=2)
    linear_weighted_bce_with_logits(seen, torch.zeros(3, 3), y)
    functions = [function for function, *_ in Seen.calls]
    assert functions == [
        multilabel_loss_with_logits,
        linear_multilabel_loss_with_logits,
        linear_weighted_bce_with_logits,
    ]
    assert Seen.calls[0][1] == (None, None, "sum")
    assert Seen.calls[1][1] == (Focal(),)
    assert Seen.calls[1][2]["chunk_labels"] == 2
