"""What the programs print: text, tables and progress bars.

A table that is too wide for a terminal goes on below, where its first column is repeated. In a pipe
or a file it is whole, whatever COLUMNS says. Nothing is cut, and brackets are text.
"""

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

HEAD = 8  # the columns that a head may have in any case
LEGEND = 80  # the most columns of a text that explains a table
WIDE = 10_000  # columns, more than any table has
PLAIN = str.maketrans({"µ": "u", "±": "+-", "─": "-"})  # where only ASCII can be printed


def console_of(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def say(console: "Console", text: str, style: str = "", most: int = 0) -> None:
    """Prints a text, whose lines are broken between words where a terminal is too narrow.

    In a pipe the lines stay whole, unless `most` limits their width.
    """
    width = min(filter(None, (console.width if console.is_terminal else 0, most)), default=0)
    lines = (_filled(line, width) if width else line for line in text.split("\n"))
    _put(console, "\n".join(lines), style)


def show(
    console: "Console",
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    legend: str = "",
) -> None:
    """Prints a table under its title, and below it a text that explains it."""
    if title:
        say(console, title, "bold")
    spelled = [[_spelled(console, cell) for cell in row] for row in (headers, *rows)]
    width = console.width if console.is_terminal else 0
    _put(console, "\n\n".join(_blocks(spelled, width)))
    if legend:
        say(console, legend, "dim", LEGEND)


def _blocks(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yields parts of a table, with as many of its columns as fit into the width (0: all)."""
    first, *others = zip(*rows, strict=True)
    block = [first]
    for column in others:
        lines = _table([*block, column]).splitlines()
        if width and len(block) > 1 and max(map(len, lines)) > width:
            yield _table(block)
            block = [first]
        block.append(column)
    yield _table(block)


def _table(columns: Sequence[Sequence[str]]) -> str:
    """Returns a table in which nothing is cut. Heads are broken so as to be as short as cells."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for k, (head, *cells) in enumerate(columns):
        widest = max((len(line) for cell in cells for line in cell.splitlines()), default=0)
        if k > 0:
            head = "\n".join(_filled(line, max(widest, HEAD)) for line in head.splitlines())
        table.add_column(Text(head), justify="right" if k > 0 else "left", no_wrap=True)
    for row in list(zip(*columns, strict=True))[1:]:
        table.add_row(*map(Text, row))
    wide = Console(file=io.StringIO(), width=WIDE, color_system=None)
    with wide.capture() as capture:
        wide.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _filled(line: str, width: int) -> str:
    indent = "  " if line.startswith("- ") else ""
    how = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return textwrap.fill(line, width, **how)  # type: ignore[arg-type]


def _put(console: "Console", text: str, style: str = "") -> None:
    """Prints a text as it is: without markup, and without cutting its lines."""
    from rich.text import Text

    console.print(Text(_spelled(console, text), style), soft_wrap=True)


def _spelled(console: "Console", text: str) -> str:
    """Returns the text without the special characters that the console cannot print."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN)
    return text


def progress_on(console: "Console", **options: bool) -> "Progress":
    """Makes a progress bar, shown on terminals only, with options of rich.progress.Progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    text = TextColumn("{task.description:32}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), Remaining())
    return Progress(*columns, console=console, disable=not console.is_terminal, **options)
