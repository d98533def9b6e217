"""The ways to compute the loss: the one list of them, for the benchmark and for its tests."""

import logging
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_bce import SparseLabels, backend, weighted_bce_with_logits

from .names import COPY, OURS
from .settings import Setting

LossFunction = Callable[[Tensor, Any], Tensor]  # of logits and a target
Maker = Callable[[Setting, str], LossFunction]  # for a setting, on a device


class Loss(NamedTuple):
    """One way, and what it takes."""

    key: str  # on the command line
    name: str
    make: Maker
    takes: str = "dense"  # the target; "dense": a dense one, "sparse": SparseLabels, "any": both
    given: str = "target"  # which field of a sample it gets for one
    before: str = "take"  # how its sample is prepared, see contenders.py
    gradients: tuple[int, int] = (1, 0)  # its memory at the peak of a step, and of a forward pass
    weighted: bool = True  # with pos_weight; else it computes another function, with pos_weight 1
    positives: bool = True  # False: none, which is another function too
    needs: str = ""  # a package that may be missing
    compiles: bool = False
    only: str = ""  # "step" or "forward": the other makes no sense
    device: str = ""  # "cpu" or "cuda", likewise
    quick: bool = True  # also in a quick run
    loss_scale: float = 1.0

    @property
    def is_own(self) -> bool:
        return OURS in self.name


def _weight(setting: Setting, device: str) -> Tensor:
    return torch.tensor(setting.pos_weight, dtype=getattr(torch, setting.dtype), device=device)


def ours(setting: Setting, device: str, **options: Any) -> LossFunction:
    def loss(logits: Tensor, target: Any) -> Tensor:
        return weighted_bce_with_logits(logits, target, pos_weight=setting.pos_weight, **options)

    return loss


def reference(setting: Setting, device: str) -> LossFunction:
    def loss(logits: Tensor, target: Any) -> Tensor:
        with backend("reference"):
            return weighted_bce_with_logits(logits, target, pos_weight=setting.pos_weight)

    return loss


def masked(setting: Setting, device: str) -> LossFunction:
    """The question that began it all, with the target in the dtypes that torch takes."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        matrix = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), reduction="none"
        )
        matrix[target.bool()] *= setting.pos_weight
        return matrix.mean()

    return loss


def bce(setting: Setting, device: str, weighted: bool = True) -> LossFunction:
    weight = _weight(setting, device) if weighted else None

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), pos_weight=weight
        )

    return loss


def scatter(setting: Setting, device: str) -> LossFunction:
    weight = _weight(setting, device)

    def loss(logits: Tensor, labels: SparseLabels) -> Tensor:
        places = labels.col_indices.view(len(logits), -1)
        target = torch.zeros_like(logits).scatter_(1, places, 1.0)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)

    return loss


def torchvision(setting: Setting, device: str) -> LossFunction:
    """The focal loss without focus, which weighs positives by alpha and negatives by 1 - alpha."""
    focal = import_module("torchvision.ops").sigmoid_focal_loss
    total = 1 + setting.pos_weight

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        alpha = setting.pos_weight / total
        mean = focal(logits, target.to(logits.dtype), alpha, gamma=0.0, reduction="mean")
        return total * mean

    return loss


def timm(setting: Setting, device: str) -> LossFunction:
    criterion = import_module("timm.loss").BinaryCrossEntropy(
        smoothing=0.0, pos_weight=_weight(setting, device)
    )
    return lambda logits, target: criterion(logits, target.to(logits.dtype))


def compiled(make: Maker, fullgraph: bool = True) -> Maker:
    def of(setting: Setting, device: str) -> LossFunction:
        torch.compiler.reset()  # what earlier settings compiled counts towards a limit
        if not fullgraph:  # much is said of each graph break
            torch._logging.set_logs(dynamo=logging.ERROR)
            warnings.filterwarnings("ignore", "Error detected in IndexPut")
        return torch.compile(make(setting, device), dynamic=False, fullgraph=fullgraph)

    return of


LOSSES = (
    Loss(OURS, "ours", ours, takes="any", before="steady"),
    Loss("released", "ours, memory released", ours, before="released", only="step", device="cpu"),
    Loss(
        "scaled",
        "ours, loss scale 65536",
        ours,
        before="steady",
        only="step",
        device="cuda",
        loss_scale=65536.0,  # the one that torch.amp.GradScaler starts with
    ),
    Loss(
        "inplace",
        "ours, inplace_backward",
        partial(ours, inplace_backward=True),
        takes="any",
        before="overwritable",
        gradients=(0, 0),
        only="step",
    ),
    Loss(
        "ours-compiled",
        "torch.compile(ours)",
        compiled(ours),
        takes="any",
        before="steady",
        compiles=True,
    ),
    Loss("reference", "ours, in plain PyTorch", reference, "any", gradients=(12, 8), quick=False),
    Loss(
        "no-positives",
        "ours, no positives",
        ours,
        takes="sparse",
        given="nothing",
        before="steady",
        positives=False,
    ),
    Loss("dense", "ours, bool target", ours, "sparse", given="ready", before="steady"),
    Loss("masked", "masked multiply", masked, gradients=(3, 3)),
    Loss("bce", "F.bce_with_logits", bce, gradients=(4, 3)),
    Loss("bce-float", "F.bce_with_logits, float target", bce, given="ready", gradients=(3, 2)),
    Loss(
        "bce-plain",
        "F.bce_with_logits, no pos_weight",
        partial(bce, weighted=False),
        gradients=(4, 3),
        weighted=False,
    ),
    Loss("compile", "torch.compile(F.bce_with_logits)", compiled(bce), compiles=True),
    Loss(
        "compile-plain",
        "torch.compile(F..., no pos_weight)",
        compiled(partial(bce, weighted=False)),
        weighted=False,
        compiles=True,
        quick=False,
    ),
    Loss(
        "compile-masked",
        "torch.compile(masked multiply)",
        compiled(masked, fullgraph=False),
        gradients=(3, 3),
        compiles=True,
        quick=False,
    ),
    Loss("scatter", "zeros().scatter_, F.bce_with_logits", scatter, "sparse", gradients=(4, 4)),
    Loss(
        "torchvision",
        "torchvision sigmoid_focal_loss",
        torchvision,
        gradients=(8, 6),
        needs="torchvision",
    ),
    Loss("timm", "timm BinaryCrossEntropy", timm, gradients=(4, 3), needs="timm"),
)
KEPT = 2**20  # bytes of a gradient from which on ours keeps its memory
BY_KEY = {loss.key: loss for loss in LOSSES}
NAMES = {COPY: "copy_ of the logits"} | {loss.key: loss.name for loss in LOSSES}


def fitting(setting: Setting, pass_: str, device: str) -> list[Loss]:
    """Those that make sense for a setting."""
    kind = "sparse" if setting.is_sparse else "dense"
    return [
        loss
        for loss in LOSSES
        if loss.takes in (kind, "any")
        and loss.only in ("", pass_)
        and loss.device in ("", device)
        and not (loss.key == "bce-float" and setting.target == "float")
        and not (loss.key == "released" and setting.gradient_bytes < KEPT)
    ]


@cache
def lack(package: str) -> str:
    """Why a package cannot be used; "" where it can, or none is needed."""
    if not package:
        return ""
    if find_spec(package) is None:
        return f"{package} is not installed"
    try:
        import_module(package)
    except Exception as error:  # such as a torchvision for another torch
        return f"{package} does not import: {error}"
    return ""


def step(function: LossFunction, target: Any, scale: float, logits: Tensor) -> Tensor:
    """Forward and backward, to logits.grad."""
    loss = function(logits, target)
    loss.backward(None if scale == 1 else torch.full_like(loss, scale))
    return loss.detach()
