"""The layer of a criterion counts as it is, where its forward is not torch.nn.Linear's too."""

import copy
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from weighted_bce import (
    Focal,
    FusedSGD,
    LinearMultilabelLoss,
    LinearWeightedBCEWithLogitsLoss,
    SparseLabels,
    multilabel_loss_with_logits,
)
from weighted_bce import linear_weighted_bce_with_logits as linear_loss
from weighted_bce._extension import extension
from weighted_bce.linear import _layer

from .layer_changes import (
    WITH_GRADIENTS,
    backward_hook,
    double_first,
    hook,
    old_spectral_norm,
    pre_hook,
    quantised,
    replaced_forward,
    subclassed,
)
from .linear_cases import FEATURES, LABELS, REDUCTIONS, ROWS, assert_near
from .processes import Processes, mesh_of
from .shards import distributed, whole
from .test_compile import Graphs

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:all logits are held"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_warned() -> None:
    _layer._warn_if_new.cache_clear()
    torch._dynamo.reset()


def new(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    options = {"pos_weight": 3.0, "chunk_labels": 64, **options}
    return LinearWeightedBCEWithLogitsLoss(FEATURES, LABELS, dtype=dtype, **options)


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, FEATURES).to(dtype)
    return x.requires_grad_(), torch.rand(ROWS, LABELS) < 0.1


def assert_loss_of_the_logits(criterion: Any, x: Tensor, y: Tensor, wanted: Any = ()) -> None:
    """Compares the loss and the gradients of what is wanted with those of `criterion.logits`."""
    loss = criterion(x, y)
    weight = torch.tensor(3.0, dtype=torch.float64)
    logits = criterion.logits(x).double()
    truth = functional.binary_cross_entropy_with_logits(logits, y.double(), pos_weight=weight)
    assert_near(loss, truth.detach(), 1e-5)
    if wanted:
        of_truth = torch.autograd.grad(truth, wanted)
        for one, other in zip(torch.autograd.grad(loss, wanted), of_truth, strict=True):
            assert_near(one, other, 1e-5)


@pytest.mark.parametrize("change", WITH_GRADIENTS)
def test_its_own_forward_counts(change: Any) -> None:
    """In training as in evaluation; with sparse labels too, and among the largest logits."""
    criterion = new()
    criterion.linear = change(criterion.linear)
    criterion.eval()  # spectral_norm changes its vectors in each call of training
    x, y = batch()
    assert_loss_of_the_logits(criterion, x, y, (x, *criterion.parameters()))
    torch.testing.assert_close(criterion(x, SparseLabels.from_dense(y)), criterion(x, y))
    values, indices = criterion.topk(x, 5)
    assert not values.requires_grad
    torch.testing.assert_close((values, indices), tuple(criterion.logits(x).topk(5)))


def test_a_quantised_layer() -> None:
    """It has no parameters, and is for evaluation."""
    criterion = new()
    criterion.linear = quantised(criterion.linear)
    x, y = batch()
    with torch.no_grad():
        assert_loss_of_the_logits(criterion, x, y)
        assert torch.equal(criterion.topk(x, 5).values, criterion.logits(x).topk(5).values)


def test_a_forward_that_a_program_replaces_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion, (x, y) = new(), batch()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: functional.linear(x, 2 * self.weight))
    assert_loss_of_the_logits(criterion, x, y, (x, criterion.linear.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ignore_index", [None, 0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options(reduction: str, ignore_index: int | None, dtype: torch.dtype) -> None:
    """A loss is as wide as that of a plain layer. Without a reduction each row has one."""
    options: Any = {
        "pos_weight": torch.rand(LABELS),
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    criterion: Any = LinearMultilabelLoss(FEATURES, LABELS, Focal(), dtype=dtype, **options)
    criterion.linear = pre_hook(criterion.linear)
    criterion.ignore_index = ignore_index
    x, y = batch(dtype)
    loss = criterion(x, y)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    options |= {"pos_weight": options["pos_weight"].double(), "ignore_index": ignore_index}
    wanted = multilabel_loss_with_logits(criterion.logits(x).double(), y, Focal(), **options)
    wanted = wanted.detach()
    assert_near(loss, wanted.sum(1) if reduction == "none" else wanted, 1e-6)
    assert criterion.topk(x, 2).values.dtype == loss.dtype
    with pytest.raises(ValueError, match="k must be at most 150, the number of labels, got 151"):
        criterion.topk(x, LABELS + 1)


@pytest.mark.parametrize("leading", [(), (2, 3), (0, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sparse", [False, True])
def test_any_number_of_dimensions(sparse: bool, reduction: str, leading: tuple[int, ...]) -> None:
    """As with a plain layer of the same weight."""
    weight = torch.rand(*leading, 1) + 0.5
    criterion = new(torch.float64, weight=weight, reduction=reduction)
    hooked = copy.deepcopy(criterion)
    hooked.linear.register_forward_hook(lambda *_: None)
    x = torch.randn(*leading, FEATURES, dtype=torch.float64, requires_grad=True)
    y: Any = torch.rand(*leading, LABELS) < 0.1
    y = SparseLabels.from_dense(y.reshape(-1, LABELS)) if sparse else y
    if reduction == "batchmean" and not leading:
        for each in (criterion, hooked):
            with pytest.raises(ValueError, match="reduction 'batchmean' needs an input of shape"):
                each(x, y)
        return
    loss, wanted = hooked(x, y), criterion(x, y)
    torch.testing.assert_close(loss, wanted, equal_nan=True)
    gradients = [torch.autograd.grad(one.sum(), x)[0] for one in (loss, wanted)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(tuple(hooked.topk(x, 3)), tuple(criterion.topk(x, 3)))


def test_wrong_reductions() -> None:
    x, y = batch()
    for reduction, error in ((torch.sum, TypeError), ("avg", ValueError)):
        criterion = new()
        criterion.reduction = reduction
        criterion.linear = pre_hook(criterion.linear)
        with pytest.raises(error, match="reduction must be "):
            criterion(x, y)


def test_it_must_return_a_tensor() -> None:
    criterion, (x, y) = new(), batch()
    criterion.linear.register_forward_hook(lambda module, arguments, output: (output, None))
    with pytest.raises(TypeError, match=r"linear must return a torch\.Tensor, got tuple"):
        criterion(x, y)


def test_it_must_be_a_module() -> None:
    criterion, (x, y) = new(), batch()
    criterion.linear = None
    for call in (lambda: criterion(x, y), lambda: criterion.topk(x, 3)):
        with pytest.raises(TypeError, match=r"linear must be a torch\.nn\.Module, got NoneType"):
            call()


def warned(call: Callable[[], Any]) -> list[tuple[str, str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(str(w.message), w.filename) for w in caught if w.category is UserWarning]


def twice(call: Callable[..., Any], *arguments: Any) -> None:
    call(*arguments)
    call(*arguments)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (subclassed, "the forward of tests.layer_changes.Doubled"),
        (replaced_forward, "a forward that was set later"),
        (pre_hook, "hooks (double_first)"),
        (lambda layer: backward_hook(hook(layer)), "hooks (double_last, double_gradients)"),
        (old_spectral_norm, "hooks (SpectralNorm)"),
    ],
)
@pytest.mark.parametrize("compiles", [False, True])
def test_one_warning_for_each_kind_of_layer(compiles: bool, change: Any, what: str) -> None:
    """It is of the line that calls the criterion, and says what the layer has."""
    if compiles and "gradients" in what:
        return  # torch does not compile the hooks of modules for the backward pass
    x, y = batch()
    text = f"all logits are held, because linear is not a plain torch.nn.Linear: it has {what}"
    for wanted in ([(text, __file__)], []):
        criterion = new()
        criterion.linear = change(criterion.linear)
        call = Graphs().compiled(criterion) if compiles else criterion
        assert warned(partial(twice, call, x, y)) == wanted


def test_no_warning_for_a_plain_layer() -> None:
    """Not even where hooks of all modules, such as those of profilers, see its forward."""
    criterion, (x, y) = new(), batch()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert warned(lambda: (criterion(x, y), criterion.topk(x, 3))) == []
    finally:
        handle.remove()
    removed = criterion.linear.register_forward_pre_hook(double_first)
    removed.remove()
    assert warned(lambda: (criterion(x, y), criterion.topk(x, 3))) == []


@pytest.mark.parametrize("change", [subclassed, pre_hook])
def test_fused_step_needs_a_plain_layer(change: Any) -> None:
    criterion, (x, y) = new(), batch()
    criterion.linear = change(criterion.linear)
    before = copy.deepcopy(criterion.state_dict())
    criterion.fused_step = FusedSGD(criterion.linear.parameters(), lr=1.0)
    message = "linear must be a plain torch.nn.Linear with fused_step, got "
    with pytest.raises(TypeError, match=re.escape(message)):
        criterion(x, y)
    torch.testing.assert_close(criterion.state_dict(), before, rtol=0, atol=0)
    assert criterion.topk(x, 3).values.shape == (ROWS, 3)  # which takes no step


class Counted(nn.Module):
    """A parametrization that counts how often the weight is computed."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight.tanh()


@pytest.mark.parametrize(
    "parametrized",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        partial(parametrizations.orthogonal, orthogonal_map="householder"),
        lambda layer: parametrize.register_parametrization(layer, "weight", Counted()),
    ],
)
def test_a_parametrized_layer_is_plain(parametrized: Any) -> None:
    """The loss computes its weight once; the parameters behind it get their gradients."""
    criterion, (x, y) = new(), batch()
    parametrized(criterion.linear)
    criterion.eval()  # spectral_norm changes its vectors in each call of training
    assert warned(lambda: criterion(x, y)) == []
    assert_loss_of_the_logits(criterion, x, y, (x, *criterion.parameters()))
    torch.testing.assert_close(criterion.topk(x, 5).values, criterion.logits(x).topk(5).values)
    (counted,) = criterion.linear.parametrizations.weight
    if isinstance(counted, Counted):
        counted.calls = 0
        criterion(x, y)
        assert counted.calls == 1
        with parametrize.cached():
            (criterion(x, y) + criterion(x, y)).backward()
        assert counted.calls == 2


@pytest.mark.skipif(extension is None, reason="no extension")
@pytest.mark.parametrize(
    ("change", "ops"),
    [
        (lambda layer: layer, (["linear_loss"], ["linear_grads"])),
        (parametrizations.weight_norm, (["linear_loss"], ["linear_grads"])),
        (subclassed, (["loss"], ["grad"])),
        (pre_hook, (["loss"], ["grad"])),
    ],
)
def test_one_graph(change: Any, ops: tuple[list[str], list[str]]) -> None:
    criterion, (x, y), graphs = new(), batch(), Graphs()
    criterion.linear = change(criterion.linear)
    compiled = graphs.compiled(criterion)
    (of_graph,) = torch.autograd.grad(compiled(x, y), x)
    assert (graphs.forward, graphs.backward) == ops
    torch.testing.assert_close(of_graph, torch.autograd.grad(criterion(x, y), x)[0])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, FEATURES)
        self.criterion = new()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.encoder(x), y)


def test_a_lora_adapter() -> None:
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["linear"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(Model(), config)
    model, (_, y), x = adapted.base_model.model, batch(), torch.randn(ROWS, 5)
    hidden = model.encoder(x)
    adapters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert [name.split(".")[-3] for name in adapters] == ["lora_A", "lora_B"]
    assert_loss_of_the_logits(model.criterion, hidden, y, [*adapters.values()])
    torch.testing.assert_close(adapted(x, y), model.criterion(hidden, y))
    with adapted.disable_adapter():
        base = model.criterion.linear.base_layer
        alone = linear_loss(hidden, base.weight, y, linear_bias=base.bias, pos_weight=3.0)
        torch.testing.assert_close(adapted(x, y), alone)
    largest = model.criterion.topk(hidden, 5).values
    torch.testing.assert_close(largest, model.criterion.logits(hidden).topk(5).values)
    with_adapter = adapted(x, y)
    merged = adapted.merge_and_unload()
    assert warned(lambda: merged(x, y)) == []  # it is a plain layer again
    torch.testing.assert_close(merged(x, y), with_adapter)


def check_fully_sharded(processes: int) -> None:
    """The layer alone is refused; the criterion and a model around it train as unsharded."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    x, y = batch()
    criterion = new()
    fully_shard(criterion.linear)
    for call in (lambda: criterion(x, y), lambda: criterion.topk(x, 3)):
        with pytest.raises(TypeError, match="fully_shard alone: wrap the criterion, not its layer"):
            call()
    with pytest.raises(TypeError, match="if fully_shard has split the layer, wrap the criterion"):
        linear_loss(x, criterion.linear.weight, y, linear_bias=criterion.linear.bias)
    for wrap in (fully_shard, lambda model: fully_shard(model.criterion)):
        model, x = Model(), torch.randn(ROWS, 5)
        wanted = model(x, y)
        gradients = torch.autograd.grad(wanted, [*model.parameters()])
        wrap(model)
        loss = model(x, y)
        torch.testing.assert_close(loss, wanted)
        loss.backward()
        torch.testing.assert_close([whole(p.grad) for p in model.parameters()], [*gradients])


def check_wrapped_by_fsdp(processes: int) -> None:
    """The older FSDP is a wrapper, whose forward counts."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    x, y = batch()
    criterion = new()
    wanted = criterion(x, y)
    of_input = torch.autograd.grad(wanted, x)
    criterion.linear = FullyShardedDataParallel(criterion.linear, device_id=torch.device("cpu"))
    loss = criterion(x, y)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, x), of_input)


def check_split_by_labels(processes: int) -> None:
    """The hooks by which torch splits a layer only distribute tensors, so it is plain."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    torch.manual_seed(0)
    x, y = batch()
    criterion = new()
    wanted = criterion(x, y).detach()
    parallelize_module(criterion.linear, mesh_of(processes), ColwiseParallel())
    parts = distributed(x.detach(), mesh_of(processes), [Replicate()])
    labels = SparseLabels.from_dense(y)
    assert warned(lambda: criterion(parts, labels)) == []
    torch.testing.assert_close(criterion(parts, labels).full_tensor(), wanted)


@pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")
@pytest.mark.parametrize(
    "check", [check_fully_sharded, check_wrapped_by_fsdp, check_split_by_labels]
)
def test_sharded(processes: Processes, check: Any) -> None:
    processes(check)
