"""A whole run: all groups, one after the other, and what is made of them."""

import argparse
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import graphs, report
from .compare import COMPARED, changes, common
from .contenders import Group, group
from .device import Device, Refusal, find
from .losses import BY_KEY, LOSSES, NAMES, Loss, fitting, lack
from .memory import with_most_rows
from .names import OURS, PASSES, STEP
from .peak import peak
from .records import WHAT, Records, facts, load, rows_of
from .samples import Samples
from .settings import Grid, Setting, few, grids
from .timing import Limits, Result, measure

PEAKS = range(2**20, 2**27)  # elements: fewer say nothing, more take long; linear layers: all
WIDTH = 132  # of what is not printed to a terminal


class Task(NamedTuple):
    """A setting and its passes."""

    setting: Setting
    passes: tuple[str, ...]


class Run:
    """What a run has found so far; `finish` may come at any time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, find(options.device)
        self.before = None if options.check is None else _earlier(options.check)
        self.console = _new_console()
        command = shlex.join(["python", "-m", "bench", *options.arguments])
        self.records = Records(facts(self.device, command), [])
        self.reliable = True
        self._finished = False

    def all_groups(self) -> None:
        torch_threads = torch.get_num_threads()
        tasks = [t for t in _tasks(self.options, self.device) if self._fits(t.setting)]
        for loss in LOSSES:
            why = lack(loss.needs)
            if why and loss.key in (self.options.against or BY_KEY):
                self.console.print(f"{loss.name}: skipped, {why}", highlight=False, markup=False)
        report.show_head(self.console, self.records.facts, self.options.rounds)
        try:
            with _progress() as progress:
                bar = progress.add_task("", total=sum(len(task.passes) for task in tasks))
                for task in tasks:
                    torch.set_num_threads(task.setting.threads)
                    for one, samples in _groups(task, self.options, self.device):
                        self._measure(one, samples, _Ticker(progress, bar))
                        progress.update(bar, advance=not one.graphs, refresh=True)
                        if not self.device.works():
                            self.reliable = False
                            self.console.print("The device has failed: nothing more is measured.")
                            return
        finally:
            torch.set_num_threads(torch_threads)

    def _fits(self, setting: Setting) -> bool:
        """In the memory of the CPU, ours at least; raises Refusal where its shape was asked for."""
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

    def _measure(self, one: Group, samples: Samples, ticker: "_Ticker") -> None:
        limits = Limits(self.options.rounds, self.options.seconds)
        ticker.title(str(one.setting))
        measured = measure(one, samples, limits, ticker)
        results = measured.results
        wanted = one.setting.features or one.setting.elements in PEAKS
        if not self.device.is_gpu and one.pass_ == STEP and wanted:
            results = [_with_peak(result, one, ticker) for result in results]
        self.reliable = self.reliable and not any(map(_is_unreliable, results))
        rows = rows_of(one, results)
        self.records.rows.extend(rows)
        if self.options.out is not None:
            self.records.save(self.options.out)
        with ticker.paused():
            report.show_group(self.console, str(one), rows, measured.taken)

    def finish(self) -> None:
        """The summary and the pictures, of what there is."""
        if self._finished or not self.records.rows:
            return
        self._finished = True
        self.console = _new_console()  # an interrupt may find the other one within a table
        report.show_summary(self.console, self.records.groups())
        if self.options.out is not None:
            from .pictures import draw  # takes a second to import

            draw(self.records, self.options.out)
            self.console.print(f"Results and pictures: {self.options.out}", highlight=False)

    def compare(self) -> None:
        """With an earlier run; raises Refusal where something is worse."""
        path, tolerance, before = self.options.check, self.options.tolerance, self.before
        assert before is not None
        shared = common(self.records, before)
        if not shared:
            raise Refusal(f"--check {path} has nothing that this run has measured", 2)
        found = changes(self.records, before, tolerance)
        columns = {
            "": [report.short_name(change.row) for change in found],
            "contender": [NAMES[change.row["contender"]] for change in found],
            "what": [change.field.replace("_", " ") for change in found],
            "before": [f"{change.before:.3g}" for change in found],
            "now": [f"{change.now:.3g}" for change in found],
            "is": ["worse" if change.is_worse else "better" for change in found],
        }
        if found:
            report.show(self.console, f"Changed by more than {tolerance:.0%}", columns)
        worse = len({id(change.row) for change in found if change.is_worse})
        if worse:
            raise Refusal(f"{worse} of {shared} rows are worse than in {path}", 1)
        text = f"None of {shared} rows is worse than in {path}, by more than {tolerance:.0%}."
        self.console.print(text, highlight=False)


def run(options: argparse.Namespace, started: Callable[[Run], object] = lambda _: None) -> None:
    """Raises Refusal where there are no numbers to rely on. `started` is given the run."""
    one = Run(options)
    started(one)
    one.all_groups()
    one.finish()
    if not one.reliable:
        raise Refusal("ours failed, or there are contenders that compute something else", 1)
    if options.check is not None:
        one.compare()


def _new_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _earlier(path: Path) -> Records:
    """Before anything is written, perhaps over it."""
    try:
        found = load(path)
        if all(field in row for row in found.rows for field in (*WHAT, *COMPARED)):
            return found
    except (ValueError, TypeError, LookupError):
        pass
    raise Refusal(f"--check {path} holds no results of this benchmark", 2)


def _is_unreliable(result: Result) -> bool:
    failed = result.contender == OURS and result.failed is not None and result.fits
    return failed or result.disagrees


def _with_peak(result: Result, one: Group, ticker: "_Ticker") -> Result:
    if result.failed is not None or result.contender not in BY_KEY:
        return result
    ticker(f"memory of {NAMES[result.contender]}")
    return result.with_peak(peak(result.contender, one.setting), one.setting)


def _tasks(options: argparse.Namespace, device: Device) -> Iterator[Task]:
    """No setting twice."""
    seen: set[tuple[Setting, str]] = set()
    for grid in _grids(options):
        for setting in grid.settings(options.pos_weight, options.seed):
            if not setting.rows:
                setting = with_most_rows(setting, device)
            passes = [p for p in grid.passes if p in (options.passes or grid.passes)]
            new = tuple(p for p in passes if (setting, p) not in seen)
            seen.update((setting, p) for p in new)
            if new:
                yield Task(setting, new)


def _grids(options: argparse.Namespace) -> list[Grid]:
    """What was asked for, or the grids of a quick or a full run."""
    axes = {
        "shapes": options.shapes,
        "dtypes": options.dtypes,
        "targets": options.targets,
        "densities": options.density,
        "threads": options.threads,
    }
    given = {name: values for name, values in axes.items() if values is not None}
    usual = grids(options.device, options.quick)
    if not given:
        return usual
    shapes = given.pop("shapes", usual[0].shapes)
    layers = [shape for shape in shapes if len(shape) == 3]
    losses = [shape for shape in shapes if len(shape) == 2]
    alone = [Grid(losses, **given)] if losses else []
    return [*alone, *(few(shape, passes=PASSES)._replace(**given) for shape in layers)]


def _groups(
    task: Task, options: argparse.Namespace, device: Device
) -> Iterator[tuple[Group, Samples]]:
    """Each takes memory when it is measured, after the last one is gone."""
    samples = Samples(task.setting, device)
    for pass_ in task.passes:
        chosen = [
            loss
            for loss in fitting(task.setting, pass_, device.name)
            if not lack(loss.needs) and _is_wanted(loss, options)
        ]
        one = group(pass_, chosen, samples)
        yield one, samples
        small = task.setting.elements <= graphs.MOST_ELEMENTS and not task.setting.features
        if device.is_gpu and small:
            yield graphs.replayed(one, samples), samples


def _is_wanted(loss: Loss, options: argparse.Namespace) -> bool:
    if loss.key == OURS:
        return True
    if options.against is not None:
        return loss.key in options.against
    return loss.quick or not options.quick


def _progress() -> Progress:
    """Of the groups. It moves between timings, not in them: nothing refreshes it but what ticks."""
    notes = Console(stderr=True)
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}", style="dim"),
    )
    return Progress(
        *columns,
        console=notes,
        auto_refresh=False,
        transient=True,
        disable=not notes.is_terminal,
    )


class _Ticker:
    """Shows what is being measured."""

    def __init__(self, progress: Progress, bar: object) -> None:
        self._progress, self._bar = progress, bar
        self._title, self._rounds = "", 0

    def title(self, text: str) -> None:
        self._title, self._rounds = text, 0
        self("")

    def __call__(self, text: str) -> None:
        if not text:
            text = f"round {self._rounds}" if self._rounds else ""
            self._rounds += 1
        description = f"{self._title}: {text}" if text else self._title
        self._progress.update(self._bar, description=description, refresh=True)  # type: ignore[arg-type]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without the bar, while something is printed."""
        self._progress.stop()
        yield
        if not self._progress.disable:
            self._progress.start()
