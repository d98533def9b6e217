"""The table of all ways to compute a loss that the benchmark and its tests know."""

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import makers, names
from .device import reason
from .losses import LOSSES
from .makers import Maker, compiled, ours, usual
from .names import BCE, COPY, FOCAL, FORWARD, OURS, PRODUCTS, STEP
from .samples import Sample
from .settings import Setting

SCALE = 65536.0  # the loss scale that torch.amp.GradScaler starts with
KEPT = 2**20  # weighted_bce keeps the memory of gradients of so many bytes or more


@dataclass(frozen=True)
class Baseline:
    """A way to compute the loss, that of weighted_bce too; or work that bounds the time of all."""

    key: str  # on the command line
    title: str  # its name in tables; {usual} is replaced by the name of the usual way
    make: Maker = ours
    takes: str = "dense"  # the target: "dense", "sparse" or "any"; "": it needs a linear layer
    linear: str = ""  # the target with a linear layer; "": it does not compute one
    is_own: bool = False
    is_loss: bool = True  # if not, `make` gives a function of a sample that computes no loss
    losses: Sequence[str] = names.LOSSES  # the losses that it computes
    ready: bool = False  # its target is `ready` of a sample
    prepare: str = ""  # how its sample is prepared, see Runner.prepare
    matrices: int = 4  # how many matrices as large as the logits a step holds at its peak
    weighted: bool = True  # if not, it has no pos_weight, and so computes another function
    needs: str = ""  # a package that it needs
    only: str = ""  # the only pass; "": both
    has_optimizer: bool = False  # whether FusedSGD updates the weight at the end of a step
    device: str = ""  # the only device, "cpu" or "cuda"; "": both
    quick: bool = True  # whether a quick run has it too
    graph: bool = False  # whether a CUDA graph can have it: it does not wait or change its input
    loss_scale: float = 1.0
    scale_before: float = 0.0  # the loss scale of the untimed step before; 0: the same

    def matrices_of(self, loss: str) -> int:
        known = {"reference": LOSSES[loss].in_torch, "scatter": LOSSES[loss].matrices}
        return known.get(self.key, self.matrices)

    @property
    def is_optional(self) -> bool:
        return self.is_loss and self.key != OURS and bool(self.takes or self.linear)

    def is_wanted(self, options: Namespace) -> bool:
        if options.against is None:
            is_asked_for = self.quick or not options.quick
        else:
            is_asked_for = self.key in options.against or not self.is_optional
        return is_asked_for and any(loss in self.losses for loss in options.losses)

    def name(self, loss: str) -> str:
        return self.title.format(usual=LOSSES[loss].usual_name)

    def fits(self, setting: Setting, pass_: str, device: str) -> bool:
        """Tells whether this baseline makes sense for a setting, a pass and a device."""
        takes = self.linear if setting.features else self.takes
        return (
            takes in ("sparse" if setting.is_sparse else "dense", "any")
            and setting.loss in self.losses
            and self.only in ("", pass_)
            and self.device in ("", device)
            # Within a call of many steps a loss scale cannot change.
            and not (self.scale_before and setting.steps > 1)
            and not (self.key == "bce-float" and setting.target == "float")
            and not (self.key == "released" and setting.gradient_bytes < KEPT)
        )

    def scale(self, setting: Setting) -> float:
        """Returns the loss scale: without one, the gradient of a mean of millions is 0 in float16.

        It is the largest power of two that does not overflow in the baselines that multiply it by
        up to 1 + pos_weight in float16.
        """
        if self.loss_scale != 1 or setting.dtype != "float16":
            return self.loss_scale
        return float(2.0 ** math.floor(math.log2(2**15 / (1 + setting.pos_weight))))

    def work(self, pass_: str, setting: Setting, device: str) -> Callable[[Sample], Any]:
        """Returns a function that runs a step or a forward pass and returns the loss."""
        function, scale = self.make(setting, device), self.scale(setting)
        # What takes no sparse labels gets a dense target of a linear layer.
        is_ready = self.ready or (setting.is_sparse and self.takes == "dense")

        def forward(sample: Sample) -> Tensor:
            return function(*sample.leaves, sample.ready if is_ready else sample.target)

        def step(sample: Sample) -> Tensor:
            loss = forward(sample)
            loss.backward(None if scale == 1 else torch.full_like(loss, scale))
            if self.has_optimizer:
                makers.fused_sgd(sample.leaves[-1]).step()
            return loss.detach()

        if not self.is_loss:
            return function
        return torch.no_grad()(forward) if pass_ == FORWARD else step


own = partial(Baseline, takes="any", is_own=True, matrices=1)  # a variant of weighted_bce
own_step = partial(own, only=STEP)
scaled = partial(own_step, device="cuda", loss_scale=SCALE, graph=True)
bound = partial(Baseline, is_loss=False, matrices=0, graph=True)  # no loss is faster
of_bce, of_focal = (partial(Baseline, losses=losses) for losses in ((BCE,), (BCE, FOCAL)))
other = partial(Baseline, linear="any", graph=True)
earlier = partial(Baseline, takes="")  # only earlier results have it
in_place = partial(ours, inplace_backward=True)
plain = partial(usual, weighted=False)
mask = compiled(makers.masked, fullgraph=False)
RELEASED = "weighted_bce, after empty_cache()"
IN_PLACE = "weighted_bce, inplace_backward"
COMPILED = "weighted_bce, torch.compile"
IN_TORCH, VISION = "weighted_bce, plain PyTorch", "torchvision sigmoid_focal_loss"

BASELINES = (
    bound(COPY, "copy_ of the logits", makers.copy, "any"),
    bound(PRODUCTS, "matrix products alone", makers.products, "", "any", prepare="outputs"),
    own(OURS, "weighted_bce", linear="any", graph=True),
    own_step("released", RELEASED, takes="dense", prepare="released", device="cpu"),
    scaled("scaled", "weighted_bce, loss scale 65536"),
    scaled("scaled-changing", "weighted_bce, changing loss scale", scale_before=SCALE / 2),
    own_step("inplace", IN_PLACE, in_place, prepare="overwritable", matrices=0),
    own_step(
        "fused-step",
        "weighted_bce, fused_step",
        makers.fused_step,
        takes="",
        linear="any",
        has_optimizer=True,
    ),
    own("ours-compiled", COMPILED, compiled(ours), linear="any", graph=True),
    own("reference", IN_TORCH, makers.reference, linear="any", quick=False),
    earlier("no-positives", "weighted_bce, no positives", is_own=True),
    own("dense", "weighted_bce, bool target", takes="sparse", ready=True, graph=True),
    Baseline("unfused", "F.linear, then weighted_bce", makers.unfused, "", "any", matrices=1),
    of_bce("masked", "masked multiply", makers.masked, linear="any"),
    *(other(key, "{usual}", usual, losses=(key,), matrices=LOSSES[key].matrices) for key in LOSSES),
    of_bce("bce-float", "{usual}, float target", usual, ready=True, graph=True),
    of_bce("bce-plain", "{usual}, no pos_weight", plain, weighted=False, graph=True),
    other("compile", "torch.compile({usual})", compiled(usual), matrices=1),
    earlier("compile-plain", "torch.compile(F..., no pos_weight)"),
    of_bce("compile-masked", "torch.compile(masked multiply)", mask, quick=False),
    Baseline("scatter", "zeros().scatter_, then {usual}", makers.scatter, "sparse", "sparse"),
    of_focal("torchvision", VISION, makers.torchvision, needs="torchvision", matrices=8),
    of_bce("timm", "timm BinaryCrossEntropy", makers.timm, needs="timm"),
)
BY_KEY = {baseline.key: baseline for baseline in BASELINES}


@cache
def why_not(package: str) -> str | None:
    """Says why a package cannot be imported: "" if it is not installed, None if it can be."""
    if find_spec(package) is None:
        return ""
    try:
        import_module(package)
    except Exception as error:  # such as a torchvision for another torch
        return f"{package} cannot be imported: {reason(error)}"
    return None
