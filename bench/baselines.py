"""The ways to compute a loss: the one table of them, for the benchmark and for its tests."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
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
    prepare: str = "take"  # how its sample is prepared, see Runner.prepare
    matrices: int = 4  # as large as the logits, that a step makes and holds at its peak
    weighted: bool = True  # with pos_weight; else it computes another function, with pos_weight 1
    positives: bool = True  # False: none, which is another function too
    needs: str = ""  # a package that may be missing
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
        function, field, scale = (
            self.make(setting, device),
            self.field(setting),
            self.scale(setting),
        )

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


def own(key: str, title: str, make: Maker = ours, **more: Any) -> Baseline:
    """A variant of ours, that takes any target and follows an untimed step of its kind."""
    usually = {"takes": "any", "prepare": "steady", "is_own": True, "matrices": 1}
    return Baseline(key, title, make, **{**usually, **more})


SCALED: dict[str, Any] = {"only": STEP, "device": "cuda", "loss_scale": SCALE}
COMPILED: dict[str, Any] = {"compiles": True, "matrices": 1, "graph": True}
SLOW: dict[str, Any] = {"prepare": "take", "matrices": 12, "quick": False}
FULL: dict[str, Any] = {"quick": False, "loss": BCE}
floor = partial(Baseline, prepare="steady", is_loss=False, matrices=0)
inplace, plain = partial(ours, inplace_backward=True), partial(usual, weighted=False)
compiled_mask = compiled(makers.masked, fullgraph=False)

BASELINES = (
    floor(COPY, "copy_ of the logits", makers.copy, "any", graph=True),
    floor(PRODUCTS, "the products alone", makers.products, "", "any", prepare="outputs"),
    own(OURS, "ours", linear="any", graph=True),
    own(
        "released",
        "ours, memory released",
        takes="dense",
        prepare="released",
        only=STEP,
        device="cpu",
    ),
    own("scaled", "ours, loss scale 65536", graph=True, **SCALED),
    own("scaled-changing", "ours, loss scale that changes", scale_before=SCALE / 2, **SCALED),
    own(
        "inplace", "ours, inplace_backward", inplace, prepare="overwritable", only=STEP, matrices=0
    ),
    own("fused-step", "ours, fused_step", makers.fused_step, takes="", linear="any", only=STEP),
    own("ours-compiled", "torch.compile(ours)", compiled(ours), linear="any", **COMPILED),
    own("reference", "ours, in plain PyTorch", makers.reference, linear="any", **SLOW),
    own(
        "no-positives",
        "ours, no positives",
        takes="sparse",
        given="nothing",
        positives=False,
        graph=True,
    ),
    own("dense", "ours, bool target", takes="sparse", given="ready", graph=True),
    Baseline("unfused", "F.linear, {ours}", makers.unfused, "", "any", matrices=1),
    Baseline("masked", "masked multiply", makers.masked, linear="any", loss=BCE),
    *(
        Baseline(key, "{usual}", linear="any", loss=key, matrices=loss.matrices, graph=True)
        for key, loss in LOSSES.items()
    ),
    Baseline("bce-float", "{usual}, float target", given="ready", loss=BCE, graph=True),
    Baseline("bce-plain", "{usual}, no pos_weight", plain, weighted=False, loss=BCE, graph=True),
    Baseline("compile", "torch.compile({usual})", compiled(usual), linear="any", **COMPILED),
    Baseline(
        "compile-plain",
        "torch.compile(F..., no pos_weight)",
        compiled(plain),
        weighted=False,
        **FULL,
        **COMPILED,
    ),
    Baseline(
        "compile-masked", "torch.compile(masked multiply)", compiled_mask, compiles=True, **FULL
    ),
    Baseline("scatter", "zeros().scatter_, {usual}", makers.scatter, "sparse", "sparse"),
    Baseline(
        "torchvision",
        "torchvision sigmoid_focal_loss",
        makers.torchvision,
        matrices=8,
        needs="torchvision",
    ),
    Baseline("timm", "timm BinaryCrossEntropy", makers.timm, loss=BCE, needs="timm"),
)
BY_KEY = {baseline.key: baseline for baseline in BASELINES}


def fitting(setting: Setting, pass_: str, device: str) -> list[Baseline]:
    """Those that make sense there, in the order of the table."""
    return [baseline for baseline in BASELINES if baseline.fits(setting, pass_, device)]


@cache
def lack(package: str) -> str:
    """Why a package cannot be used; "" where it can, or none is needed."""
    try:
        import_module(package or "torch")
    except ModuleNotFoundError:
        return f"{package} is not installed"
    except Exception as error:  # such as a torchvision for another torch
        return f"{package} does not import: {error}"
    return ""
