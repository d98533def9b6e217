"""Contenders that are compared with one another, and what is found of each."""

from typing import NamedTuple

from .contenders import Contender
from .losses import Setting


class Group(NamedTuple):
    """Contenders that are compared with one another."""

    title: str
    setting: Setting
    contenders: list[Contender]
    kind: str = ""  # "training" or "forward"
    graphs: bool = False  # whether each is a CUDA graph


class Result(NamedTuple):
    """One contender of a group. The ratios are medians of the ratios in each round."""

    contender: str
    seconds: float | None = None
    times_copy: float | None = None
    times_ours: float | None = None
    gigabytes_per_second: float | None = None
    rounds: list[float] | None = None  # seconds
    failed: str | None = None  # why there are no times
    disagrees: bool = False
    fits: bool = True  # in the device's memory
    p20: float | None = None  # seconds
    p80: float | None = None
    share_of_copy: float | None = None  # of the bandwidth of copy_
    peak_bytes: int | None = None  # beyond the inputs
    peak_gradients: float | None = None
