"""How fast a kernel can run by the counts of its hot path: a prediction, no measurement."""

from typing import NamedTuple

from .hot_path import HotPaths

RUN = 96  # elements of which a product takes the logarithms: Product::kFactors in cuda/scalar.h
WARP = 32


class Gpu(NamedTuple):
    name: str
    processors: int
    issue: int  # instructions of warps that a processor starts in a clock
    mufu: int  # special functions of threads that a processor completes in a clock
    clock: float  # Hz
    memory: float  # bytes a second


# By NVIDIA's documents.
GPU = Gpu("H200", processors=132, issue=4, mufu=16, clock=1.98e9, memory=4.8e12)
COPY = 4.3e12  # bytes a second that a copy is taken to read and write on it, in all


class Prediction(NamedTuple):
    """Per element, and shares of what the GPU has, at the bandwidth of a copy."""

    bytes: int
    instructions: float
    issue: float
    mufu: float

    @property
    def limit(self) -> str:
        limits = {"memory": 1.0, "issue": self.issue, "MUFU": self.mufu}
        return max(limits, key=lambda name: limits[name])

    @property
    def speed(self) -> float:
        """The share of the copy's bandwidth that is reached."""
        return 1 / max(1.0, self.issue, self.mufu)


def predict(paths: HotPaths, lanes: int, logit: int, target: int, slopes: bool) -> Prediction:
    """What one element takes on the hot path.

    Args:
        paths: of the kernel.
        lanes: logits in a group.
        logit: bytes of one.
        target: bytes of one.
        slopes: whether a gradient is written.
    """
    instructions = paths.uniform.instructions / lanes
    mufu = paths.uniform.count("MUFU") / lanes
    if paths.collecting:
        instructions += (paths.collecting.instructions - paths.uniform.instructions) / RUN
        mufu += (paths.collecting.count("MUFU") - paths.uniform.count("MUFU")) / RUN
    moved = logit + target + logit * slopes
    elements = COPY / moved / GPU.processors / GPU.clock  # of a processor in a clock
    return Prediction(
        bytes=moved,
        instructions=instructions,
        issue=elements * instructions / (GPU.issue * WARP),
        mufu=elements * mufu / GPU.mufu,
    )
