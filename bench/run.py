"""Runs all groups, one after the other, and writes and shows the results."""

import shlex
from argparse import Namespace
from itertools import product, takewhile

import torch
from rich.console import Console

from tools.gpu.device import is_lost
from tools.program import Refusal
from tools.terminal import console_of, progress_on, say

from . import baselines, report
from .baselines import Baseline
from .device import Device, find
from .names import OURS, PASSES, STEP
from .records import Records, Row, changes, facts, load
from .runner import Runner
from .samples import Samples
from .settings import Grid, Setting, few, grids
from .timing import measure

# The share of free memory that the largest size may need: making samples takes more for a moment,
# and allocators round.
SHARE = 0.9
# Larger steps keep a GPU busy for longer than it takes to queue them: no graphs of these.
MOST_ELEMENTS_OF_GRAPH = 2**26


def run(options: Namespace) -> None:
    """Measures and shows everything; raises Refusal if there are no numbers to rely on."""
    device, console = find(options.device), console_of()
    before = load(options.check) if options.check else None  # first: --out may write over it
    command = shlex.join(["python", "-m", "bench", *options.arguments])
    records, torch_threads = Records(facts(device, command), []), torch.get_num_threads()
    say(console, report.shown_facts(records.facts))
    busy = f", with --busy {options.busy}" if options.busy else ""
    say(console, f"Times are medians of up to {options.rounds} rounds{busy}.")
    try:
        _measure(options, device, records, console)
    finally:
        torch.set_num_threads(torch_threads)
        if records.rows:
            report.show_summary(console, records.groups())
        if records.rows and options.out is not None:
            from .pictures import draw  # takes a second to import

            draw(options.out)
            say(console, f"Results and pictures are in {options.out}")
    if any(row.disagrees or (row.key == OURS and row.failed and row.fits) for row in records.rows):
        raise Refusal("weighted_bce failed, or a baseline computes something else", 1)
    if all(row.seconds is None for row in records.rows):
        raise Refusal("nothing that was asked for fits in memory")
    if before is not None:
        _compare(options, before, records, console)


def _measure(options: Namespace, device: Device, records: Records, console: Console) -> None:
    """Adds the rows of all groups. A bar, on a terminal, says what is measured.

    The bar moves when a baseline begins its untimed step, not in between, which would disturb the
    timing. Samples take memory only when those of the last setting are gone.
    """
    tasks, usable = tasks_of(options, device), _usable(options, console)
    with progress_on(console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=sum(map(len, tasks.values())))

        def tell(row: Row) -> None:
            text = f"{report.short_name(row)}: {row.name}"
            progress.update(bar, description=text, refresh=True)

        for setting, passes in tasks.items():
            torch.set_num_threads(setting.threads)
            samples = Samples(setting, device)
            for pass_ in passes:
                fitting = [one for one in usable if one.fits(setting, pass_, device.name)]
                groups = [[Runner(baseline, pass_, samples, tell) for baseline in fitting]]
                is_short = not setting.features and setting.elements <= MOST_ELEMENTS_OF_GRAPH
                if device.is_gpu and is_short:
                    groups.append([one.as_graph() for one in groups[0] if one.baseline.graph])
                for runners in groups:
                    rows = [runner.row for runner in runners]
                    say(console, f"\n{rows[0].title}", "bold")
                    measure(runners, options.rounds, options.seconds)
                    records.rows.extend(rows)
                    if options.out is not None:
                        records.save(options.out)
                    report.show_group(console, rows)
                    if is_lost():
                        raise Refusal("the device has failed: nothing more is measured", 1)
                progress.advance(bar)


def _usable(options: Namespace, console: Console) -> list[Baseline]:
    """Returns the baselines that are asked for and whose packages can be imported."""
    usable = []
    for baseline in filter(lambda one: one.is_wanted(options), baselines.BASELINES):
        why_not = baselines.why_not(baseline.needs) if baseline.needs else None
        if why_not is None:
            usable.append(baseline)
        elif why_not:
            name = baseline.name(options.losses[0])
            say(console, f"{name} is left out: {why_not}")
    return usable


def _compare(options: Namespace, before: Records, now: Records, console: Console) -> None:
    """Shows what has changed since an earlier run; raises Refusal where something is worse."""
    path, tolerance = options.check, options.tolerance
    shared, changed = changes(now, before, tolerance)
    if not shared:
        raise Refusal(f"--check {path} has no measurement in common with this run")
    report.show_changes(console, changed, tolerance)
    worse = len({change.row.identity for change in changed if change.is_worse})
    if worse:
        raise Refusal(f"{worse} of {shared} rows are worse than in {path}", 1)
    say(console, f"None of {shared} rows is worse than in {path} by more than {tolerance:.0%}.")


def tasks_of(options: Namespace, device: Device) -> dict[Setting, list[str]]:
    """Returns the passes of each setting, without repetitions."""
    tasks: dict[Setting, list[str]] = {}
    equal = {name: vars(options)[name] for name in ("pos_weight", "seed", "busy")}
    for loss, grid in product(options.losses, _grids(options)):
        wanted = [p for p in grid.passes if p in (options.passes or grid.passes)]
        for setting in grid.settings(loss=loss, **equal) if wanted else ():
            if not setting.rows:
                setting = with_most_rows(setting, device)
            passes = tasks.setdefault(setting, [])
            passes += [p for p in wanted if p not in passes]
    return tasks


def with_most_rows(setting: Setting, device: Device) -> Setting:
    """Returns the setting with as many rows, a power of two, as weighted_bce has memory for."""
    free, ours = SHARE * device.free_bytes(), baselines.BY_KEY[OURS]
    sizes = [setting._replace(rows=2**n) for n in range(48)]
    fitting = takewhile(lambda s: Runner(ours, STEP, Samples(s, device)).memory <= free, sizes)
    return [sizes[0], *fitting][-1]


def _grids(options: Namespace) -> list[Grid]:
    """Returns the grids that were asked for, or those of a quick or a full run."""
    axes = ("shapes", "dtypes", "targets", "densities", "threads")
    given = {name: vars(options)[name] for name in axes if vars(options)[name] is not None}
    usual = grids(options.device, options.quick)
    if not given:
        return usual
    shapes = given.pop("shapes", usual[0].shapes)
    losses = [shape for shape in shapes if len(shape) == 2]
    layers = [few(shape, passes=PASSES) for shape in shapes if len(shape) == 3]
    return [grid._replace(**given) for grid in ([Grid(losses)] if losses else []) + layers]
