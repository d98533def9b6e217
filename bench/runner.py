"""Runs a baseline on samples: a call, which is timed, and what comes before it."""

import traceback
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tools.gpu.device import is_lost
from tools.program import out_of_memory
from weighted_bce import empty_cache

from .baselines import Baseline
from .device import reason
from .names import FORWARD, OURS, STEP
from .records import Row
from .samples import CHUNK, MOST_CHECKED, Sample, Samples

Tell = Callable[[Row], object]


class Disagreement(Exception):
    """Says that a baseline does not compute what it should."""


class Runner:
    """A baseline on samples. `prepare`, which is not timed, gives the sample of a `run`."""

    def __init__(
        self, baseline: Baseline, pass_: str, samples: Samples, tell: Tell = lambda row: None
    ) -> None:
        setting, device = samples.setting, samples.device
        self.baseline, self.pass_, self.samples, self.tell = baseline, pass_, samples, tell
        self.key, self.row = baseline.key, Row(setting, pass_, False, baseline.key)
        self.step = self.step_before = baseline.work(pass_, setting, device.name)
        # A second step would find no logits, or the loss scale of the first.
        is_single = baseline.prepare == "overwritable" or baseline.scale_before
        self.steps = self.repeats = 1 if is_single else setting.steps
        if baseline.scale_before:
            before = replace(baseline, loss_scale=baseline.scale_before)
            self.step_before = before.work(pass_, setting, device.name)

    def as_graph(self) -> "Runner":
        """Returns this runner as a CUDA graph. Its step is made once: some are slow to compile."""
        made = copy(self)
        made.row = Row(self.samples.setting, self.pass_, True, self.key)
        made.step = made.step_before = Graph(self.step, self.samples)
        made.steps, made.repeats = self.samples.count, 1
        return made

    def prepare(self) -> Sample:
        """Returns a sample, after doing what a training loop or a measurement needs before it."""
        samples, way = self.samples, self.baseline.prepare
        if way == "overwritable":  # a copy, made before others that drive it out of the cache
            sample = samples.take()
            for one in (sample, *(other for other in samples.all if other is not sample)):
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
        """Runs the steps of a call; returns the loss of the last one."""
        for _ in range(self.repeats - 1):
            self.step(sample)
            sample.drop_gradients()
        return self.step(sample)

    def seconds(self) -> float:
        """Returns the time of a step."""
        sample = self.prepare()
        return self.samples.device.seconds(partial(self.run, sample)) / self.steps

    def peak(self) -> tuple[int, int]:
        """Returns the rise of a GPU's memory in a step, and how many bytes of it are gradients."""
        sample = self.prepare()
        return self.samples.device.rise_of_peak(partial(self.run, sample)), sample.gradients_bytes

    def attempt(self, work: Callable[..., Any], *given: Any) -> Any:
        """Returns the result of the work; or None, and writes into the row why it failed.

        An allocation also fails on a device where nothing works any more.
        """
        row = self.row
        self.tell(row)
        try:
            return work(*given)
        except Exception as error:
            row.failed = reason(error)
            row.disagrees = isinstance(error, Disagreement)
            row.fits = not (out_of_memory(error) and not is_lost())
            known = isinstance(error, Disagreement | OverflowError)
            if row.key == OURS and row.fits and not known:
                traceback.print_exc()
        self.samples.device.release()  # after the error is gone, which holds what it interrupted
        return None

    @property
    def moved_bytes(self) -> int:
        """The bytes that any such step has to read and write; 0 for linear layers."""
        setting, is_step = self.samples.setting, self.pass_ == STEP
        if setting.features:
            return 0
        if not self.baseline.is_loss:
            return 2 * setting.logits_bytes
        target = setting.ready_bytes if self.baseline.ready else setting.target_bytes
        return (1 + is_step) * setting.logits_bytes + target

    @property
    def memory(self) -> int:
        """Bytes in use at the peak of a step, which follows others, and of its check.

        The check holds three gradients in float64 and the intermediate results of a chunk.
        """
        setting = self.samples.setting
        matrices = self.baseline.matrices_of(setting.loss)
        if setting.features:  # weighted_bce holds a chunk of the logits at a time
            matrices = 0 if self.baseline.is_own else matrices + 1
        makes_gradient = self.pass_ == STEP and (self.baseline.is_loss or setting.features > 0)
        step = matrices * setting.logits_bytes + makes_gradient * setting.gradient_bytes
        check = 24 * min(setting.elements, MOST_CHECKED) + 256 * min(setting.elements, CHUNK)
        return self.samples.count * setting.sample_bytes + step + check


class Graph:
    """A step on each sample, as one CUDA graph that is captured at first use.

    It leaves out the gaps between the launches of small kernels. There are a few hundred samples at
    most, since capturing more steps would take seconds.
    """

    def __init__(self, step: Callable[[Sample], Any], samples: Samples) -> None:
        self._step, self._samples = step, samples
        self._replay: Callable[[], None] | None = None
        self._results: list[tuple[Tensor | None, Tensor | None]] = []

    def _work(self, samples: list[Sample]) -> None:
        """The gradients are kept, so that each has its own memory in the graph."""
        self._results = [(self._step(sample), sample.leaves[0].grad) for sample in samples]

    def __call__(self, sample: Sample) -> Tensor | None:
        """Replays all steps; the sample gets the gradient, which is equal for all."""
        if self._replay is None:
            self._replay = self._samples.device.graph(self._samples.without_gradients, self._work)
        self._replay()
        loss, sample.leaves[0].grad = self._results[0]
        return loss
