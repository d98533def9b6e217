"""All groups of measurements, one after the other."""

import argparse
from collections.abc import Iterator
from typing import Any

import psutil
from rich.console import Console

from . import contenders, report
from .losses import COMPILED, INPLACE, MASKED, OURS, TORCH, Setting, losses
from .peak import peak_bytes
from .timing import Group, measure

BYTES_PER_ELEMENT = 80  # that a comparison needs at most, all contenders and float64 checks

TRAINING = (
    "From the logits to logits.grad. ours: the gradient takes the memory of the last step's, as in "
    "any training loop; memory released: weighted_bce.empty_cache() comes before each step, so "
    "that the page faults of fresh memory count; inplace_backward: the gradient replaces the "
    "logits, of which an untimed copy is made. F.bce_with_logits is "
    "F.binary_cross_entropy_with_logits(pos_weight=...). It and the masked multiply make a float "
    "target in each call, but for 'float target'. Ratios: medians of those within a round. GB/s: "
    "of the bytes that must be read and written."
)
FORWARD = "Under no_grad, from the logits to the loss."
SMALL = "The target is float32."
MEMORY = (
    "Rise of the resident set's high-water mark in a step, inputs not counted, in a fresh process "
    "for each. One gradient is {:.1f} MiB."
)


class Refusal(Exception):
    """Why there are no numbers to rely on, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(options: argparse.Namespace) -> None:
    console, notes = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=100)
    settings = _settings(options)
    _check_memory(settings[0])
    known = report.facts()
    report.show_head(console, known, options.rounds)
    timed: list[dict[str, Any]] = []
    disagree = False
    for group, caption in _groups(settings, options.compile, notes):
        measured = measure(group, options.rounds)
        report.show_times(console, group.title, measured, caption)
        disagree = disagree or any(result.disagrees for result in measured.results)
        timed.append(report.group_json(group, measured))
    memory = _memory(settings[0], options.compile, notes)
    size = settings[0].gradient_bytes / 2**20
    title = f"Peak memory of a training step: {report.describe(settings[0])}"
    report.show_peaks(console, title, memory, MEMORY.format(size))
    if options.json is not None:
        rows = [peak._asdict() for peak in memory]
        report.save_json(options.json, known, options.rounds, timed, rows)
    if disagree:
        raise Refusal("there are contenders that disagree with ours, see above", 1)


def _settings(options: argparse.Namespace) -> list[Setting]:
    """The one that was asked for; without --quick also the other dtypes."""
    shape = options.rows, options.labels
    kinds = [(options.dtype, "bool")]
    if not options.quick:
        others = (d for d in ("float32", "bfloat16", "float16") if d != options.dtype)
        kinds += [(other, "bool") for other in others]
        kinds += [(options.dtype, target) for target in ("float32", "int64")]
    return [Setting(*shape, *kind, options.density, options.pos_weight) for kind in kinds]


def _check_memory(setting: Setting) -> None:
    needed, available = BYTES_PER_ELEMENT * setting.elements, psutil.virtual_memory().available
    if needed > available:
        raise Refusal(
            f"--rows {setting.rows} --labels {setting.labels} needs up to {needed / 2**30:.1f} GiB "
            f"of memory, {available / 2**30:.1f} GiB are free",
            2,
        )


def _groups(settings: list[Setting], compiled: bool, notes: Console) -> Iterator[tuple[Group, str]]:
    """Each is made when its turn comes, so that only one holds memory."""
    for setting in settings:
        described = report.describe(setting)
        _note(notes, f"{described}; torch.compile takes a while" if compiled else described)
        functions = losses(setting, compiled)
        found = contenders.training(setting, functions)
        yield Group(f"Training step: {described}", setting, found), TRAINING
        found = contenders.forward(setting, functions)
        yield Group(f"Forward alone: {described}", setting, found), FORWARD
    pos_weight = settings[0].pos_weight
    for weight in (pos_weight, None):
        named = "no pos_weight" if weight is None else f"pos_weight {weight:g}"
        shape = contenders.SMALL
        setting = Setting(*shape, "float32", "float32", 0.1, 1.0 if weight is None else weight)
        title = f"Small training step: {shape[0]} x {shape[1]} float32 logits, {named}"
        yield Group(title, setting, contenders.small(weight)), SMALL


def _memory(setting: Setting, compiled: bool, notes: Console) -> list[report.Peak]:
    found = []
    for name in (OURS, INPLACE, MASKED, TORCH, *[COMPILED] * compiled):
        _note(notes, f"peak memory of {name}")
        peak = peak_bytes(name, setting)
        gradients = None if peak is None else peak / setting.gradient_bytes
        found.append(report.Peak(name, peak, gradients))
    return found


def _note(notes: Console, text: str) -> None:
    """Progress, for those who watch; a bar that moves would disturb the timing."""
    if notes.is_terminal:
        notes.print(f"measuring {text}", style="dim", highlight=False)
