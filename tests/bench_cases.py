"""What the tests of the benchmark share: small groups, and a GPU that is pretended."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench import timing
from bench.baselines import BASELINES, BY_KEY, Baseline
from bench.device import CPU, Cuda, Device
from bench.names import OURS, STEP
from bench.records import Row
from bench.runner import Runner
from bench.samples import Samples
from bench.settings import Setting

SETTING = Setting(8, 64, density=0.1)
LAYER = Setting(6, 300, target="sparse", density=5 / 300, features=8)
BYTES = 5 * SETTING.elements  # of the logits and the target of SETTING
SCALED = ["scaled", "scaled-changing"]
KEYS = ["copy", OURS, *SCALED, "inplace", "masked", "bce", "bce-float"]


class Pretended(Cuda):
    """A GPU of 1 TiB that is the CPU. Its cache holds two steps, its clock is the wall's."""

    name = "cpu"

    def __init__(self, free: int = 2**40) -> None:
        self.free = free
        self.clock = time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def cache_bytes(self) -> int:
        return 2 * BYTES

    def free_bytes(self) -> int:
        return self.free

    def rise_of_peak(self, work: Callable[[], object]) -> int:
        work()
        return 3 * SETTING.gradient_bytes

    def release(self) -> None:
        pass

    def graph(self, prepare: Callable[[], Any], work: Callable[[Any], object]) -> Any:
        return lambda: work(prepare())

    def facts(self) -> dict[str, str]:
        return {"GPU": "a pretended one", "driver": "0.0"}


def fitting(setting: Setting, pass_: str = STEP) -> list[str]:
    """The baselines that make sense there on a CPU, but for those of packages."""
    return [b.key for b in BASELINES if b.fits(setting, pass_, "cpu") and not b.needs]


def with_make(key: str, make: Callable[..., Any]) -> Baseline:
    """A baseline, which computes something else."""
    return replace(BY_KEY[key], make=make)


def group(
    setting: Setting = SETTING,
    keys: Sequence[str | Baseline] = KEYS,
    pass_: str = STEP,
    device: Device = CPU,
) -> list[Runner]:
    chosen = [BY_KEY[one] if isinstance(one, str) else one for one in keys]
    samples = Samples(setting, device)
    return [Runner(one, pass_, samples) for one in chosen if one.only in ("", pass_)]


def as_graphs(group: Sequence[Runner]) -> list[Runner]:
    return [one.as_graph() for one in group if one.baseline.graph]


def checked(group: Sequence[Runner]) -> dict[str, Row]:
    """The rows of all that compute a loss, compared with float64."""
    timing.check(group)
    return {one.key: one.row for one in group if one.baseline.is_loss}


def measured(group: Sequence[Runner], rounds: int = 1, *more: Any) -> dict[str, Row]:
    timing.measure(group, rounds, *more)
    return {one.key: one.row for one in group}
