"""A whole run: all groups, one after the other, and what is made of them."""

import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.gpu.device import is_lost

from . import report
from .baselines import BASELINES, BY_KEY, Baseline, fitting, lack
from .compare import changes, common
from .device import Device, Refusal, find
from .memory import with_most_rows
from .names import BCE, OURS, PASSES
from .records import Records, Row, facts, load
from .runner import MOST_ELEMENTS_OF_GRAPH, Group, group, replayed
from .samples import Samples
from .settings import Grid, Setting, few, grids
from .timing import Limits, measure

WIDTH = 132  # of what is not printed to a terminal


class Task(NamedTuple):
    """A setting and its passes."""

    setting: Setting
    passes: tuple[str, ...]


class Run:
    """What a run has measured so far; `finish` may come at any time."""

    def __init__(self, options: Namespace) -> None:
        self.options, self.device = options, find(options.device)
        self.before = None if options.check is None else _earlier(options.check)
        self.console = _new_console()
        command = shlex.join(["python", "-m", "bench", *options.arguments])
        self.records = Records(facts(self.device, command), [])
        self.reliable = True
        self._finished = False

    def all_groups(self) -> None:
        torch_threads = torch.get_num_threads()
        tasks = [task for task in tasks_of(self.options, self.device) if self._fits(task.setting)]
        for baseline in BASELINES:
            why = lack(baseline.needs)
            if why and baseline.key in (self.options.against or BY_KEY):
                text = f"{baseline.name(BCE)}: skipped, {why}"
                self.console.print(text, highlight=False, markup=False)
        report.show_head(self.console, self.records.facts, self.options.rounds)
        try:
            with _progress(self.console) as progress:
                bar = progress.add_task("", total=sum(len(task.passes) for task in tasks))
                for task in tasks:
                    torch.set_num_threads(task.setting.threads)
                    for one, samples in _groups(task, self.options, self.device):

                        def tick(text: str, title: str = str(one.setting)) -> None:
                            description = f"{title}: {text}" if text else title
                            progress.update(bar, description=description, refresh=True)

                        self._measure(one, samples, tick)
                        progress.update(bar, advance=not one.graphs, refresh=True)
                        if is_lost():
                            self.reliable = False
                            self.console.print("The device has failed: nothing more is measured.")
                            return
        finally:
            torch.set_num_threads(torch_threads)

    def _fits(self, setting: Setting) -> bool:
        """Whether the CPU has memory for ours; raises Refusal where that shape was asked for."""
        needed = Samples(setting, self.device).bytes + 2 * setting.gradient_bytes
        available = psutil.virtual_memory().available
        if self.device.is_gpu or needed <= available:
            return True
        text = (
            f"{'x'.join(map(str, setting.sizes))} needs {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are free"
        )
        if self.options.shapes is not None:
            raise Refusal(f"--shapes {text}", 2)
        self.console.print(f"skipped: {text}", highlight=False)
        return False

    def _measure(self, one: Group, samples: Samples, tick: Callable[[str], object]) -> None:
        limits = Limits(self.options.rounds, self.options.seconds)
        rows, taken = measure(one, samples, limits, tick)
        self.reliable = self.reliable and not any(map(_is_unreliable, rows))
        self.records.rows.extend(rows)
        if self.options.out is not None:
            self.records.save(self.options.out)
        report.show_group(self.console, str(one), rows, taken)

    def finish(self) -> None:
        """Shows the summary and draws the pictures of what there is."""
        if self._finished or not self.records.rows:
            return
        self._finished = True
        self.console = _new_console()  # an interrupt may find the other one within a table
        report.show_summary(self.console, self.records.groups())
        if self.options.out is not None:
            from .pictures import draw  # takes a second to import

            draw(self.options.out)
            self.console.print(f"Results and pictures: {self.options.out}", highlight=False)

    def compare(self) -> None:
        """Shows what has changed since an earlier run; raises Refusal where something is worse."""
        path, tolerance, before = self.options.check, self.options.tolerance, self.before
        assert before is not None
        shared = common(self.records, before)
        if not shared:
            raise Refusal(f"--check {path} has nothing that this run has measured", 2)
        found = changes(self.records, before, tolerance)
        report.show_changes(self.console, found, tolerance)
        worse = len({change.row.identity for change in found if change.is_worse})
        if worse:
            raise Refusal(f"{worse} of {shared} rows are worse than in {path}", 1)
        text = f"None of {shared} rows is worse than in {path}, by more than {tolerance:.0%}."
        self.console.print(text, highlight=False)


def run(options: Namespace, started: Callable[[Run], object] = lambda _: None) -> None:
    """Raises Refusal where there are no numbers to rely on. `started` is given the run."""
    one = Run(options)
    started(one)
    one.all_groups()
    one.finish()
    if not one.reliable:
        raise Refusal("ours failed, or there are baselines that compute something else", 1)
    if options.check is not None:
        one.compare()


def _new_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


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


def _is_unreliable(row: Row) -> bool:
    failed = row.key == OURS and row.failed is not None and row.fits
    return failed or row.disagrees


def tasks_of(options: Namespace, device: Device) -> Iterator[Task]:
    """No setting comes twice."""
    seen: set[tuple[Setting, str]] = set()
    for grid in _grids(options):
        for setting in grid.settings(options.pos_weight, options.seed, options.loss):
            if not setting.rows:
                setting = with_most_rows(setting, device)
            passes = [p for p in grid.passes if p in (options.passes or grid.passes)]
            new = tuple(p for p in passes if (setting, p) not in seen)
            seen.update((setting, p) for p in new)
            if new:
                yield Task(setting, new)


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


def _groups(task: Task, options: Namespace, device: Device) -> Iterator[tuple[Group, Samples]]:
    """Each takes memory when it is measured, after the last one is gone."""
    setting, samples = task.setting, Samples(task.setting, device)
    for pass_ in task.passes:
        chosen = fitting(setting, pass_, device.name)
        one = group(pass_, [b for b in chosen if _is_wanted(b, options)], samples)
        yield one, samples
        if device.is_gpu and setting.elements <= MOST_ELEMENTS_OF_GRAPH and not setting.features:
            yield replayed(one), samples


def _is_wanted(baseline: Baseline, options: Namespace) -> bool:
    if lack(baseline.needs):
        return False
    if options.against is not None:
        return baseline.key in options.against or not baseline.is_optional
    return baseline.quick or not options.quick
