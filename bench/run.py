"""A whole run: all groups, one after the other, and what is made of them."""

import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.gpu.device import is_lost

from . import report
from .baselines import BASELINES, BY_KEY, Baseline, fitting, lack
from .compare import changes
from .device import Device, Refusal, find
from .names import BCE, OURS, PASSES, STEP
from .records import Records, facts, load
from .runner import MOST_ELEMENTS_OF_GRAPH, Group, Runner, group, replayed
from .samples import Samples
from .settings import Grid, Setting, few, grids
from .timing import measure

WIDTH = 132  # of what is not printed to a terminal
# The share of free memory that the largest size may need: making samples takes more for a moment,
# and allocators round.
SHARE = 0.9


class Run:
    """What a run has measured so far."""

    def __init__(self, options: Namespace) -> None:
        self.options, self.device = options, find(options.device)
        self.before = None if options.check is None else _earlier(options.check)
        self.console = Console()
        if not self.console.is_terminal:
            self.console = Console(width=WIDTH)
        command = shlex.join(["python", "-m", "bench", *options.arguments])
        self.records = Records(facts(self.device, command), [])
        self.reliable = True

    def all_groups(self) -> None:
        torch_threads, tasks = torch.get_num_threads(), tasks_of(self.options, self.device)
        for baseline in BASELINES:
            why = lack(baseline.needs)
            if why and baseline.key in (self.options.against or BY_KEY):
                text = f"{baseline.name(BCE)}: skipped, {why}"
                self.console.print(text, highlight=False, markup=False)
        report.show_head(self.console, self.records.facts, self.options.rounds)
        try:
            with _progress(self.console) as progress:
                bar = progress.add_task("", total=sum(map(len, tasks.values())))
                for one in _groups(tasks, self.options, self.device):

                    def tick(text: str, title: str = str(one)) -> None:
                        progress.update(bar, description=f"{title} {text}", refresh=True)

                    self._measure(one, tick)
                    progress.update(bar, advance=not one.graphs, refresh=True)
                    if is_lost():
                        self.reliable = False
                        self.console.print("The device has failed: nothing more is measured.")
                        return
        finally:
            torch.set_num_threads(torch_threads)

    def _measure(self, one: Group, tick: Callable[[str], object]) -> None:
        torch.set_num_threads(one.samples.setting.threads)
        taken = measure(one, self.options.rounds, self.options.seconds, tick)
        rows = [runner.row for runner in one.runners]
        failed = (row.key == OURS and row.failed is not None and row.fits for row in rows)
        self.reliable = self.reliable and not any(failed) and not any(r.disagrees for r in rows)
        self.records.rows.extend(rows)
        if self.options.out is not None:
            self.records.save(self.options.out)
        report.show_group(self.console, str(one), rows, taken)

    def finish(self) -> None:
        """Shows the summary and draws the pictures of what there is."""
        if not self.records.rows:
            return
        report.show_summary(self.console, self.records.groups())
        if self.options.out is not None:
            from .pictures import draw  # takes a second to import

            draw(self.options.out)
            self.console.print(f"Results and pictures: {self.options.out}", highlight=False)

    def compare(self) -> None:
        """Shows what has changed since an earlier run; raises Refusal where something is worse."""
        path, tolerance, before = self.options.check, self.options.tolerance, self.before
        assert before is not None
        shared, found = changes(self.records, before, tolerance)
        if not shared:
            raise Refusal(f"--check {path} has nothing that this run has measured", 2)
        report.show_changes(self.console, found, tolerance)
        worse = len({change.row.identity for change in found if change.is_worse})
        if worse:
            raise Refusal(f"{worse} of {shared} rows are worse than in {path}", 1)
        text = f"None of {shared} rows is worse than in {path}, by more than {tolerance:.0%}."
        self.console.print(text, highlight=False)


def run(options: Namespace) -> None:
    """Raises Refusal where there are no numbers to rely on, and shows those that there are."""
    one = Run(options)
    try:
        one.all_groups()
    finally:
        one.finish()
    if not one.reliable:
        raise Refusal("ours failed, or there are baselines that compute something else", 1)
    if all(row.seconds is None for row in one.records.rows):
        raise Refusal("nothing that was asked for fits in memory", 2)
    if options.check is not None:
        one.compare()


def _progress(console: Console) -> Progress:
    """A bar of the groups. It moves between timings, not in them: nothing else refreshes it."""
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}", style="dim"),
    )
    disable = not console.is_terminal
    return Progress(*columns, console=console, auto_refresh=False, transient=True, disable=disable)


def _earlier(path: Path) -> Records:
    """An earlier run, read before anything is written, perhaps over it."""
    try:
        return load(path)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise Refusal(f"--check {path} holds no results of this benchmark", 2) from None


def tasks_of(options: Namespace, device: Device) -> dict[Setting, list[str]]:
    """The passes of each setting, none of which comes twice."""
    tasks: dict[Setting, list[str]] = {}
    for grid in _grids(options):
        for setting in grid.settings(options.pos_weight, options.seed, options.loss):
            if not setting.rows:
                setting = with_most_rows(setting, device)
            passes = tasks.setdefault(setting, [])
            wanted = [p for p in grid.passes if p in (options.passes or grid.passes)]
            passes += [p for p in wanted if p not in passes]
    return {setting: passes for setting, passes in tasks.items() if passes}


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
    layers = [shape for shape in shapes if len(shape) == 3]
    losses = [shape for shape in shapes if len(shape) == 2]
    alone = [Grid(losses, **given)] if losses else []
    return [*alone, *(few(shape, passes=PASSES)._replace(**given) for shape in layers)]


def _groups(tasks: dict[Setting, list[str]], options: Namespace, device: Device) -> Iterator[Group]:
    """Each takes memory when it is measured, after the last one is gone."""
    for setting, passes in tasks.items():
        samples = Samples(setting, device)
        for pass_ in passes:
            chosen = fitting(setting, pass_, device.name)
            one = group(pass_, [b for b in chosen if _is_wanted(b, options)], samples)
            yield one
            small = setting.elements <= MOST_ELEMENTS_OF_GRAPH and not setting.features
            if device.is_gpu and small:
                yield replayed(one)


def _is_wanted(baseline: Baseline, options: Namespace) -> bool:
    if lack(baseline.needs):
        return False
    if options.against is not None:
        return baseline.key in options.against or not baseline.is_optional
    return baseline.quick or not options.quick
