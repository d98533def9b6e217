"""Contenders as CUDA graphs, which leave out the gaps between the launches of small kernels."""

from collections.abc import Callable

from torch import Tensor

from .contenders import Contender, Group
from .device import Cuda
from .names import COPY, OURS
from .samples import Sample, Samples

# Larger steps keep the GPU busy for longer than it takes to queue them.
MOST_ELEMENTS = 2**26

# The others wait for the GPU within a step, or write over their input.
CAPTURED = frozenset(
    {COPY, OURS, "scaled", "bce", "bce-float", "bce-plain", "compile", "compile-plain"}
    | {"ours-compiled", "no-positives", "dense"}
)


def replayed(group: Group, samples: Samples) -> Group:
    """Those that can be captured; one call of each is a step on every sample."""
    assert isinstance(samples.device, Cuda)
    replays = [Replay(c, samples, samples.device) for c in group.contenders if c.key in CAPTURED]
    return group._replace(contenders=[replay.contender() for replay in replays], graphs=True)


class Replay:
    """One CUDA graph holds a step of a contender on each sample; it is captured at first use.

    There are few hundred samples at most: capturing more steps would take seconds.
    """

    def __init__(self, contender: Contender, samples: Samples, device: Cuda) -> None:
        self._contender, self._samples, self._device = contender, samples, device
        self._replay: Callable[[], None] | None = None
        self._results: list[tuple[Tensor | None, Tensor | None]] = []

    def contender(self) -> Contender:
        steps = self._samples.count
        return self._contender._replace(before=self._before, step=self._step, steps=steps)

    def _work(self, samples: list[Sample]) -> None:
        """The gradients are kept, so that each has its own memory in the graph."""
        losses = [self._contender.one_step(sample) for sample in samples]
        grads = [sample.logits.grad for sample in samples]
        self._results = list(zip(losses, grads, strict=True))

    def _before(self) -> Sample:
        """A replay, not timed: a step more, after which ours knows the loss scale."""
        if self._replay is None:
            self._replay = self._device.graph(self._samples.all, self._work)
        self._replay()
        return self._samples.take()

    def _step(self, sample: Sample) -> Tensor | None:
        assert self._replay is not None
        self._replay()
        loss, sample.logits.grad = self._results[0]
        return loss
