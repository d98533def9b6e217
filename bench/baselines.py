"""The ways to compute a loss: the one table of them, for the benchmark and for its tests."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import makers
from .losses import LOSSES
from .makers import Maker, compiled, ours, usual
from .names import BCE, COPY, FORWARD, OURS, PRODUCTS, STEP
from .samples import Sample
from .settings import Setting

SCALE = 65536.0  # the loss scale that torch.amp.GradScaler starts with
KEPT = 2**20  # bytes of a gradient from which on ours keeps its memory


@dataclass(frozen=True)
class Baseline:
    """One way to compute the loss, ours among them; or work that bounds the time of all."""

    key: str  # on the command line
    title: str  # {usual} and {ours} stand for the names of the loss's functions
    make: Maker = usual
    takes: str = "dense"  # the target: "dense", "sparse", "any" of both, "": no logits alone
    linear: str = ""  # the same of a linear layer and its loss; "": not of these
    is_own: bool = False
    is_loss: bool = True  # False: what is made takes a sample and computes no loss
    loss: str = ""  # the only one that it computes; "": all
    given: str = "target"  # which field of a sample it gets for one
    prepare: str = ""  # what else its sample needs, see Runner.prepare
    matrices: int = 4  # as large as the logits, that a step makes and holds at its peak
    weighted: bool = True  # with pos_weight; else it computes another function, with pos_weight 1
    positives: bool = True  # False: none, which is another function too
    compiles: bool = False
    only: str = ""  # the pass; "": both
    device: str = ""  # "cpu" or "cuda"; "": both
    quick: bool = True  # also in a quick run
    graph: bool = False  # it can be captured: it neither waits for a GPU nor changes its input
    loss_scale: float = 1.0
    scale_before: float = 0.0  # the loss scale of the untimed step before; 0: the same

    @property
    def is_optional(self) -> bool:
        return self.is_loss and self.key != OURS

    def is_wanted(self, against: Sequence[str] | None, quick: bool) -> bool:
        if against is not None:
            return self.key in against or not self.is_optional
        return self.quick or not quick

    def name(self, loss: str) -> str:
        known = LOSSES[loss]
        return self.title.format(usual=known.usual_name, ours=known.ours_name)

    def fits(self, setting: Setting, pass_: str, device: str) -> bool:
        """Whether it makes sense there."""
        takes = self.linear if setting.features else self.takes
        return (
            takes in ("sparse" if setting.is_sparse else "dense", "any")
            and self.loss in ("", setting.loss)
            and self.only in ("", pass_)
            and self.device in ("", device)
            and not (self.key == "bce-float" and setting.target == "float")
            and not (self.key == "released" and setting.gradient_bytes < KEPT)
        )

    def field(self, setting: Setting) -> str:
        """Which field of a sample it gets: a dense target where it takes no sparse labels."""
        return "ready" if setting.is_sparse and self.takes == "dense" else self.given

    def scale(self, setting: Setting) -> float:
        """The loss scale: the gradient of a mean of millions is below the smallest float16.

        It is as large as the others take, which multiply it by up to 1 + pos_weight in float16.
        """
        if self.loss_scale != 1 or setting.dtype != "float16":
            return self.loss_scale
        return float(2.0 ** math.floor(math.log2(2**15 / (1 + setting.pos_weight))))

    def work(self, pass_: str, setting: Setting, device: str) -> Callable[[Sample], Any]:
        """A step or a forward pass, which returns the loss."""
        function, field = self.make(setting, device), self.field(setting)
        scale = self.scale(setting)

        def forward(sample: Sample) -> Tensor:
            with torch.no_grad():
                return function(*sample.leaves, getattr(sample, field))

        def step(sample: Sample) -> Tensor:
            loss = function(*sample.leaves, getattr(sample, field))
            loss.backward(None if scale == 1 else torch.full_like(loss, scale))
            return loss.detach()

        if not self.is_loss:
            return function
        return forward if pass_ == FORWARD else step


own = partial(Baseline, make=ours, takes="any", is_own=True, matrices=1)  # a variant of ours
everywhere = partial(own, linear="any")
of_step = partial(own, only=STEP)
of_sparse = partial(own, takes="sparse", graph=True)
scaled = partial(of_step, device="cuda", loss_scale=SCALE, graph=True)
floor = partial(Baseline, is_loss=False, matrices=0, graph=True)  # a bound of all times
of_bce = partial(Baseline, loss=BCE)
compiles = partial(Baseline, compiles=True, matrices=1, graph=True)
in_place = partial(ours, inplace_backward=True)
plain = partial(usual, weighted=False)
mask = compiled(makers.masked, fullgraph=False)

BASELINES = (
    floor(COPY, "copy_ of the logits", makers.copy, "any"),
    floor(PRODUCTS, "the products alone", makers.products, "", "any", prepare="outputs"),
    everywhere(OURS, "ours", graph=True),
    of_step("released", "ours, memory released", takes="dense", prepare="released", device="cpu"),
    scaled("scaled", "ours, loss scale 65536"),
    scaled("scaled-changing", "ours, loss scale that changes", scale_before=SCALE / 2),
    of_step("inplace", "ours, inplace_backward", make=in_place, prepare="overwritable", matrices=0),
    of_step("fused-step", "ours, fused_step", make=makers.fused_step, takes="", linear="any"),
    everywhere(
        "ours-compiled", "torch.compile(ours)", make=compiled(ours), compiles=True, graph=True
    ),
    everywhere(
        "reference", "ours, in plain PyTorch", make=makers.reference, matrices=12, quick=False
    ),
    of_sparse("no-positives", "ours, no positives", given="nothing", positives=False),
    of_sparse("dense", "ours, bool target", given="ready"),
    Baseline("unfused", "F.linear, {ours}", makers.unfused, "", "any", matrices=1),
    of_bce("masked", "masked multiply", makers.masked, linear="any"),
    *(
        Baseline(key, "{usual}", linear="any", loss=key, matrices=loss.matrices, graph=True)
        for key, loss in LOSSES.items()
    ),
    of_bce("bce-float", "{usual}, float target", given="ready", graph=True),
    of_bce("bce-plain", "{usual}, no pos_weight", plain, weighted=False, graph=True),
    compiles("compile", "torch.compile({usual})", compiled(usual), linear="any"),
    compiles(
        "compile-plain",
        "torch.compile(F..., no pos_weight)",
        compiled(plain),
        loss=BCE,
        weighted=False,
        quick=False,
    ),
    of_bce("compile-masked", "torch.compile(masked multiply)", mask, compiles=True, quick=False),
    Baseline("scatter", "zeros().scatter_, {usual}", makers.scatter, "sparse", "sparse"),
)
BY_KEY = {baseline.key: baseline for baseline in BASELINES}


def fitting(setting: Setting, pass_: str, device: str) -> list[Baseline]:
    """Those that make sense there, in the order of the table."""
    return [baseline for baseline in BASELINES if baseline.fits(setting, pass_, device)]
