"""All groups of measurements, one after the other."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
from rich.console import Console

from . import captions, contenders, graphs, report, summary
from .device import Device, Refusal, find
from .group import Group, Result
from .losses import COMPILED, INPLACE, MASKED, OURS, SCATTER, SPARSE, TORCH, Setting, losses
from .peak import peak_bytes
from .samples import Samples
from .timing import measure

# That a comparison needs at most, all contenders and the checks.
BYTES_PER_ELEMENT = 80
SPARSE_BYTES_PER_ELEMENT = 40

ROWS = 1024
ELEMENTS = (*(2**n for n in range(20, 31, 2)), 2**31)
QUICK_ELEMENTS = (2**20, 2**24, 2**28)

_TRAINING = {False: captions.TRAINING, True: captions.CUDA_TRAINING}
_FORWARD = {False: captions.FORWARD, True: captions.CUDA_FORWARD}


def run(options: argparse.Namespace) -> None:
    device = find(options.device)
    console, notes = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=120 if device.is_gpu else 100)
    settings = _settings(options, device)
    largest = max(settings, key=lambda setting: setting.elements)
    sparse = _sparse_of(largest)
    if not device.is_gpu:
        _check_memory(largest, BYTES_PER_ELEMENT)
        _check_memory(sparse, SPARSE_BYTES_PER_ELEMENT)
    known = report.facts(device)
    report.show_head(console, known, options.rounds, device.is_gpu)
    timed: list[dict[str, Any]] = []
    reliable = True
    for group, caption in _groups(settings, sparse, options.compile, device, notes):
        measured = measure(group, options.rounds, device)
        report.show_times(console, group.title, measured, caption, device.is_gpu)
        reliable = reliable and not any(map(_unreliable, measured.results))
        timed.append(report.group_json(group, measured))
        _save(options, known, timed, [])  # a long run may be stopped
    memory: list[report.Peak] = []
    if device.is_gpu:
        report.show(console, "Summary", summary.columns(timed), summary.CAPTION)
    else:
        names = OURS, INPLACE, MASKED, TORCH, *[COMPILED] * options.compile
        memory = _memory(settings[0], names, console, notes)
        memory += _memory(sparse, (OURS, SCATTER), console, notes)
    _save(options, known, timed, memory)
    if not reliable:
        raise Refusal("ours failed or there are contenders that disagree with it, see above", 1)


def _unreliable(result: Result) -> bool:
    failed = result.contender == OURS and result.failed is not None and result.fits
    return failed or result.disagrees


def _save(
    options: argparse.Namespace,
    known: dict[str, str],
    timed: list[dict[str, Any]],
    memory: list[report.Peak],
) -> None:
    if options.json is not None:
        rows = [peak._asdict() for peak in memory]
        report.save_json(options.json, known, options.rounds, timed, rows)


def _settings(options: argparse.Namespace, device: Device) -> list[Setting]:
    """All sizes, of the kind that was asked for; without --quick also of other dtypes."""
    kinds = [(options.dtype, "bool")]
    if not options.quick:
        others = (d for d in ("float32", "bfloat16", "float16") if d != options.dtype)
        kinds += [(other, "bool") for other in others]
        if not device.is_gpu:
            kinds += [(options.dtype, target) for target in ("float32", "int64")]
    return [
        Setting(*shape, *kind, options.density, options.pos_weight)
        for kind in kinds
        for shape in _shapes(options, device)
    ]


def _shapes(options: argparse.Namespace, device: Device) -> list[tuple[int, int]]:
    """--elements in whole rows. By default the CPU has one size, --rows x --labels."""
    if options.elements is None and (options.rows is not None or not device.is_gpu):
        return [(options.rows or ROWS, options.labels)]
    found = []
    for elements in options.elements or (QUICK_ELEMENTS if options.quick else ELEMENTS):
        labels = min(options.labels, elements)
        found.append((elements // labels, labels))
    return found


def _check_memory(setting: Setting, bytes_per_element: int) -> None:
    needed, available = bytes_per_element * setting.elements, psutil.virtual_memory().available
    if needed > available:
        raise Refusal(
            f"--rows {setting.rows} --labels {setting.labels} needs up to {needed / 2**30:.1f} GiB "
            f"of memory, {available / 2**30:.1f} GiB are free",
            2,
        )


def _sparse_of(setting: Setting) -> Setting:
    """Sparse labels, 5 in each row; eight times the labels and half the rows."""
    labels = 8 * setting.labels + 1
    return setting._replace(
        rows=max(1, setting.rows // 2), labels=labels, target=SPARSE, density=5 / labels
    )


def _groups(
    settings: list[Setting], sparse: Setting, compiled: bool, device: Device, notes: Console
) -> Iterator[tuple[Group, str]]:
    """Each takes memory when it is measured, after the last one is gone."""
    gpu = device.is_gpu
    for setting in settings:
        described = report.describe(setting)
        if gpu:
            described = f"{report.power(setting.elements)} elements: {described}"
        _note(notes, f"{described}; torch.compile takes a while" if compiled else described)
        functions = losses(setting, compiled, device.name)
        samples = Samples(setting, device)
        sets = captions.inputs(samples.count)
        for kind, what, make, caption in (
            ("training", "Training step", contenders.training, _TRAINING[gpu].format(sets)),
            ("forward", "Forward alone", contenders.forward, _FORWARD[gpu]),
        ):
            found = make(functions, samples)
            yield Group(f"{what}: {described}", setting, found, kind), caption
            if gpu and setting.elements <= graphs.MOST_ELEMENTS:
                found = graphs.replayed(found, samples)
                title = f"{what}, CUDA graphs: {described}"
                yield Group(title, setting, found, kind, True), captions.GRAPHS.format(sets)
    described = report.describe(sparse)
    _note(notes, described)
    samples = Samples(sparse, device)
    found = contenders.sparse(losses(sparse, False, device.name), samples)
    yield Group(f"Training step: {described}", sparse, found, SPARSE), captions.SPARSE
    yield from _small_groups(settings[0].pos_weight, device)


def _small_groups(pos_weight: float, device: Device) -> Iterator[tuple[Group, str]]:
    for weight in (pos_weight, None):
        named = "no pos_weight" if weight is None else f"pos_weight {weight:g}"
        shape = contenders.SMALL
        setting = Setting(*shape, "float32", "float32", 0.1, 1.0 if weight is None else weight)
        title = f"Small training step: {shape[0]} x {shape[1]} float32 logits, {named}"
        found = contenders.small(Samples(setting, device), weight)
        yield Group(title, setting, found), captions.SMALL


def _memory(
    setting: Setting, names: Iterable[str], console: Console, notes: Console
) -> list[report.Peak]:
    """Of a step on the CPU, in processes of their own."""
    found = []
    for name in names:
        _note(notes, f"peak memory of {name}")
        peak = peak_bytes(name, setting)
        gradients = None if peak is None else peak / setting.gradient_bytes
        found.append(report.Peak(name, peak, gradients))
    title = f"Peak memory of a training step: {report.describe(setting)}"
    report.show_peaks(console, title, found, captions.MEMORY.format(setting.gradient_bytes / 2**20))
    return found


def _note(notes: Console, text: str) -> None:
    """Progress, for those who watch; a bar that moves would disturb the timing."""
    if notes.is_terminal:
        notes.print(f"measuring {text}", style="dim", highlight=False)
