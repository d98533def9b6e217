"""The ways to compute the loss: the one list of them, for the benchmark and for its tests."""

from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .makers import (
    LossFunction,
    Maker,
    alone,
    bce,
    compiled,
    fused_step,
    masked,
    ours,
    reference,
    scatter,
    timm,
    torchvision,
)
from .names import COPY, OURS, PRODUCTS
from .settings import Setting


class Loss(NamedTuple):
    """One way, and what it takes."""

    key: str  # on the command line
    name: str
    make: Maker
    takes: str = "dense"  # the target; "dense": a dense one, "sparse": SparseLabels, "any": both
    linear: str = ""  # the same of a linear layer and its loss; "": not among their contenders
    chunks: bool = False  # of such a layer it holds a chunk of the logits at a time
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
    scale_before: float = 0.0  # the loss scale of the untimed step before; 0: the same

    @property
    def is_own(self) -> bool:
        return OURS in self.name


LOSSES = (
    Loss(OURS, "ours", ours, "any", linear="any", chunks=True, before="steady"),
    Loss("released", "ours, memory released", ours, before="released", only="step", device="cpu"),
    Loss(
        "scaled",
        "ours, loss scale 65536",
        ours,
        takes="any",
        before="steady",
        only="step",
        device="cuda",
        loss_scale=65536.0,  # the one that torch.amp.GradScaler starts with
    ),
    Loss(
        "scaled-changing",
        "ours, loss scale that changes",
        ours,
        takes="any",
        before="steady",
        only="step",
        device="cuda",
        loss_scale=65536.0,
        scale_before=32768.0,
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
        "fused-step",
        "ours, fused_step",
        fused_step,
        takes="",
        linear="any",
        chunks=True,
        only="step",
    ),
    Loss(
        "ours-compiled",
        "torch.compile(ours)",
        compiled(ours),
        takes="any",
        linear="any",
        chunks=True,
        before="steady",
        compiles=True,
    ),
    Loss(
        "reference",
        "ours, in plain PyTorch",
        reference,
        takes="any",
        linear="any",
        chunks=True,
        gradients=(12, 8),
        quick=False,
    ),
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
    Loss("unfused", "F.linear, weighted_bce_with_logits", alone, takes="", linear="any"),
    Loss("masked", "masked multiply", masked, linear="any", gradients=(3, 3)),
    Loss("bce", "F.bce_with_logits", bce, linear="any", gradients=(4, 3)),
    Loss("bce-float", "F.bce_with_logits, float target", bce, given="ready", gradients=(3, 2)),
    Loss(
        "bce-plain",
        "F.bce_with_logits, no pos_weight",
        partial(bce, weighted=False),
        gradients=(4, 3),
        weighted=False,
    ),
    Loss(
        "compile",
        "torch.compile(F.bce_with_logits)",
        compiled(bce),
        linear="any",
        compiles=True,
    ),
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
    Loss(
        "scatter",
        "zeros().scatter_, F.bce_with_logits",
        scatter,
        takes="sparse",
        linear="sparse",
        gradients=(4, 4),
    ),
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
YARDSTICKS = {COPY: "copy_ of the logits", PRODUCTS: "the products alone"}
NAMES = YARDSTICKS | {loss.key: loss.name for loss in LOSSES}


def fitting(setting: Setting, pass_: str, device: str) -> list[Loss]:
    """Those that make sense for a setting."""
    kind = "sparse" if setting.is_sparse else "dense"
    return [
        loss
        for loss in LOSSES
        if (loss.linear if setting.features else loss.takes) in (kind, "any")
        and loss.only in ("", pass_)
        and loss.device in ("", device)
        and not (loss.key == "bce-float" and setting.target == "float")
        and not (loss.key == "released" and setting.gradient_bytes < KEPT)
    ]


def given(loss: Loss, setting: Setting) -> str:
    """Which field of a sample it gets for a target: a dense one where it takes no sparse labels."""
    return "ready" if setting.is_sparse and loss.takes == "dense" else loss.given


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


def step(function: LossFunction, target: Any, scale: float, *leaves: Tensor) -> Tensor:
    """Forward and backward, to the leaves' grad."""
    loss = function(*leaves, target)
    loss.backward(None if scale == 1 else torch.full_like(loss, scale))
    return loss.detach()
