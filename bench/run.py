"""A whole run: all groups, one after the other, and what is made of them."""

import shlex
from argparse import Namespace
from pathlib import Path

import torch
from rich.console import Console

from tools.gpu.device import is_lost

from . import report
from .baselines import BY_KEY, fitting
from .compare import changes
from .device import Device, Refusal, find
from .names import OURS, PASSES, STEP
from .records import Records, facts, load
from .runner import Runner, as_graphs, runners_of
from .samples import Samples
from .settings import Grid, Setting, few, grids
from .timing import measure

WIDTH = 160  # of what is not printed to a terminal
# The share of free memory that the largest size may need: making samples takes more for a moment,
# and allocators round.
SHARE = 0.9
# Larger steps keep a GPU busy for longer than it takes to queue them: no graphs of these.
MOST_ELEMENTS_OF_GRAPH = 2**26


def run(options: Namespace) -> None:
    """Raises Refusal where there are no numbers to rely on, and shows those that there are."""
    device, console = find(options.device), Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    before = _earlier(options.check) if options.check else None  # --out may write over it
    command = shlex.join(["python", "-m", "bench", *options.arguments])
    records, torch_threads = Records(facts(device, command), []), torch.get_num_threads()
    report.show_head(console, records.facts, options.rounds)
    try:
        for setting, passes in tasks_of(options, device).items():
            _measure(setting, passes, device, options, records, console)
    finally:
        torch.set_num_threads(torch_threads)
        if records.rows:
            report.show_summary(console, records.groups())
        if records.rows and options.out is not None:
            from .pictures import draw  # takes a second to import

            draw(options.out)
            console.print(f"Results and pictures: {options.out}", highlight=False)
    if any(row.disagrees or (row.key == OURS and row.failed and row.fits) for row in records.rows):
        raise Refusal("ours failed, or there are baselines that compute something else", 1)
    if all(row.seconds is None for row in records.rows):
        raise Refusal("nothing that was asked for fits in memory", 2)
    if before is not None:
        _compare(options, before, records, console)


def _measure(
    setting: Setting,
    passes: list[str],
    device: Device,
    options: Namespace,
    records: Records,
    console: Console,
) -> None:
    """Adds the rows of a setting. Its samples take memory once those of the last one are gone."""
    torch.set_num_threads(setting.threads)
    samples = Samples(setting, device)
    with_graphs = device.is_gpu and not setting.features
    for pass_ in passes:
        wanted = [
            baseline
            for baseline in fitting(setting, pass_, device.name)
            if baseline.is_wanted(options.against, options.quick)
        ]
        groups = [runners_of(pass_, wanted, samples)]
        if with_graphs and setting.elements <= MOST_ELEMENTS_OF_GRAPH:
            groups.append(as_graphs(groups[0]))
        for runners in groups:
            rows = [runner.row for runner in runners]
            report.show_title(console, rows[0].title)
            measure(runners, options.rounds, options.seconds)
            records.rows.extend(rows)
            if options.out is not None:
                records.save(options.out)
            report.show_group(console, rows)
            if is_lost():
                raise Refusal("the device has failed: nothing more is measured", 1)


def _earlier(path: Path) -> Records:
    try:
        return load(path)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise Refusal(f"--check {path} holds no results of this benchmark", 2) from None


def _compare(options: Namespace, before: Records, now: Records, console: Console) -> None:
    """Shows what has changed since an earlier run; raises Refusal where something is worse."""
    path, tolerance = options.check, options.tolerance
    shared, found = changes(now, before, tolerance)
    if not shared:
        raise Refusal(f"--check {path} has nothing that this run has measured", 2)
    report.show_changes(console, found, tolerance)
    worse = len({change.row.identity for change in found if change.is_worse})
    if worse:
        raise Refusal(f"{worse} of {shared} rows are worse than in {path}", 1)
    text = f"None of {shared} rows is worse than in {path}, by more than {tolerance:.0%}."
    console.print(text, highlight=False)


def tasks_of(options: Namespace, device: Device) -> dict[Setting, list[str]]:
    """The passes of each setting, none of which comes twice."""
    tasks: dict[Setting, list[str]] = {}
    for grid in _grids(options):
        wanted = [p for p in grid.passes if p in (options.passes or grid.passes)]
        equal = {name: vars(options)[name] for name in ("pos_weight", "seed", "loss")}
        for setting in grid.settings(**equal) if wanted else ():
            if not setting.rows:
                setting = with_most_rows(setting, device)
            passes = tasks.setdefault(setting, [])
            passes += [p for p in wanted if p not in passes]
    return tasks


def with_most_rows(setting: Setting, device: Device) -> Setting:
    """The setting gets as many rows, a power of two, as ours has memory for."""
    free, rows = SHARE * device.free_bytes(), 1

    def fits(rows: int) -> bool:
        samples = Samples(setting._replace(rows=rows), device)
        return Runner(BY_KEY[OURS], STEP, samples).memory <= free

    while fits(2 * rows):
        rows *= 2
    return setting._replace(rows=rows)


def _grids(options: Namespace) -> list[Grid]:
    """What was asked for, or the grids of a quick or a full run."""
    axes = ("shapes", "dtypes", "targets", "densities", "threads")
    given = {name: vars(options)[name] for name in axes if vars(options)[name] is not None}
    usual = grids(options.device, options.quick)
    if not given:
        return usual
    shapes = given.pop("shapes", usual[0].shapes)
    losses = [shape for shape in shapes if len(shape) == 2]
    layers = [few(shape, passes=PASSES) for shape in shapes if len(shape) == 3]
    return [grid._replace(**given) for grid in ([Grid(losses)] if losses else []) + layers]
