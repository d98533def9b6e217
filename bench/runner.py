"""A baseline at work on samples: a call, which is timed, and what comes before it."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from weighted_bce import empty_cache

from .baselines import Baseline
from .device import Cuda
from .names import FORWARD, STEP
from .records import Row
from .samples import MOST_CHECKED, Sample, Samples, chunk_of
from .settings import Setting

# A call is as many steps as make so many elements, so that the clock is no part of it.
ELEMENTS, MOST_STEPS = 2**17, 500


def steps_of(setting: Setting) -> int:
    return max(1, min(MOST_STEPS, ELEMENTS // setting.elements))


class Runner:
    """A baseline on samples. `prepare`, which is not timed, gives the sample of a `run`."""

    def __init__(self, baseline: Baseline, pass_: str, samples: Samples) -> None:
        setting, device = samples.setting, samples.device
        self.baseline, self.pass_, self.samples = baseline, pass_, samples
        self.key, self.row = baseline.key, Row(setting, pass_, False, baseline.key)
        self.step = self.step_before = baseline.work(pass_, setting, device.name)
        # A second step would find no logits, or the loss scale of the first.
        is_single = baseline.prepare == "overwritable" or baseline.scale_before
        self.steps = 1 if is_single else steps_of(setting)
        if baseline.scale_before:
            before = replace(baseline, loss_scale=baseline.scale_before)
            self.step_before = before.work(pass_, setting, device.name)

    def prepare(self) -> Sample:
        """A sample, after what a training loop leaves or a measurement needs."""
        samples, way = self.samples, self.baseline.prepare
        if way == "overwritable":  # a copy, made before others that drive it out of the cache
            sample = samples.take()
            for one in (sample, *(other for other in samples.all() if other is not sample)):
                one.outputs[0].copy_(one.values[0])
            return sample._replace(leaves=(sample.outputs[0].detach().requires_grad_(),))
        if way == "outputs":
            sample = samples.take()
            x, weight = sample.values
            outputs = x.new_empty(len(x), len(weight)), *map(torch.empty_like, (x, weight))
            sample = sample._replace(outputs=outputs[: 1 if self.pass_ == FORWARD else 3])
            self.step(sample)
            return sample
        # As in a loop of such steps: the last one left its gradient's memory and its loss scale,
        # and a GPU is still busy with it while the timed one is queued.
        self.step_before(samples.take())
        if way == "released":  # the page faults of fresh memory count
            empty_cache()
        return samples.take()

    def run(self, sample: Sample) -> Tensor | None:
        """A call: the steps; returns the last one's loss."""
        for _ in range(self.steps - 1):
            self.step(sample)
            sample.drop_gradients()
        loss: Tensor | None = self.step(sample)
        return loss

    @property
    def moved_bytes(self) -> int:
        """What any such step has to read and write; 0 for linear layers."""
        setting, is_step = self.samples.setting, self.pass_ == STEP
        if setting.features:
            return 0
        if not self.baseline.is_loss:
            return 2 * setting.gradient_bytes
        ready = setting.elements if setting.is_sparse else setting.gradient_bytes
        target = {"target": setting.target_bytes, "ready": ready, "nothing": 0}
        return (1 + is_step) * setting.gradient_bytes + target[self.baseline.given]

    @property
    def memory(self) -> int:
        """Bytes in use at the peak of a step, which follows others, and of its check.

        The check holds three gradients in float64 and the intermediate results of a chunk.
        """
        setting, matrices = self.samples.setting, self.baseline.matrices
        if setting.features:  # ours holds a chunk of the logits at a time
            matrices = 0 if self.baseline.is_own else matrices + 1
        makes_gradient = self.pass_ == STEP and (self.baseline.is_loss or setting.features > 0)
        gradient = makes_gradient * setting.gradient_bytes
        chunk = chunk_of(self.samples.device.name)
        check = 24 * min(setting.elements, MOST_CHECKED) + 96 * min(setting.elements, chunk)
        return self.samples.bytes + matrices * setting.logits_bytes + gradient + check


class GraphRunner(Runner):
    """One CUDA graph holds a step on each sample; it is captured at first use.

    It leaves out the gaps between the launches of small kernels. There are few hundred samples at
    most: capturing more steps would take seconds.
    """

    def __init__(self, eager: Runner) -> None:
        vars(self).update(vars(eager))  # its step is made once: some are slow to compile
        self.steps = self.samples.count
        self.row = Row(self.samples.setting, self.pass_, True, self.key)
        self._replay: Callable[[], None] | None = None
        self._results: list[tuple[Tensor | None, Tensor | None]] = []

    def _work(self, samples: list[Sample]) -> None:
        """The gradients are kept, so that each has its own memory in the graph."""
        self._results = [(self.step(sample), sample.leaves[0].grad) for sample in samples]

    def prepare(self) -> Sample:
        """A replay comes first: a step more, after which ours knows the loss scale."""
        device = self.samples.device
        if self._replay is None:
            assert isinstance(device, Cuda)
            self._replay = device.graph(self.samples.all, self._work)
        self._replay()
        return self.samples.take()

    def run(self, sample: Sample) -> Tensor | None:
        assert self._replay is not None
        self._replay()
        loss, sample.leaves[0].grad = self._results[0]
        return loss


def runners_of(pass_: str, baselines: Iterable[Baseline], samples: Samples) -> list[Runner]:
    """The baselines at work; where a call is many steps, a loss scale cannot change within it."""
    chosen = [b for b in baselines if steps_of(samples.setting) == 1 or not b.scale_before]
    return [Runner(b, pass_, samples) for b in chosen]


def as_graphs(runners: Iterable[Runner]) -> list[Runner]:
    """Those that can be captured, as CUDA graphs."""
    return [GraphRunner(runner) for runner in runners if runner.baseline.graph]
