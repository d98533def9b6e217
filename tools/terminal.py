"""What the programs print: text, tables and progress bars.

A table that is too wide for a terminal goes on below, where its first column is repeated. In a pipe
or a file it is whole, whatever COLUMNS says. Nothing is cut, and brackets are text.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

GAP = "  "  # between two columns
HEAD = 8  # the columns that a head may have in any case
LEGEND = 80  # the most columns of a text that explains a table
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


Column = list[list[str]]  # the lines of each cell, all equally wide


def _blocks(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yields parts of a table, with as many of its columns as fit into the width (0: all)."""
    first, *others = (_column(cells, k > 0) for k, cells in enumerate(zip(*rows, strict=True)))
    block = [first]
    for column in others:
        needed = sum(len(GAP) + _width(one) for one in block) + _width(column)
        if width and needed > width and len(block) > 1:
            yield _joined(block)
            block = [first]
        block.append(column)
    yield _joined(block)


def _column(cells: Sequence[str], is_right: bool) -> Column:
    """Returns a column with a rule below its head, which has lines as short as the cells."""
    head, *others = (cell.split("\n") for cell in cells)
    width = max((len(text) for cell in others for text in cell), default=0)
    if is_right:
        how = {"break_long_words": False, "break_on_hyphens": False}
        head = [line for part in head for line in textwrap.wrap(part, max(width, HEAD), **how)]
    width = max(width, *map(len, head), 0)
    lines = (head, ["─" * width], *others)
    return [[line.rjust(width) if is_right else line.ljust(width) for line in one] for one in lines]


def _width(column: Column) -> int:
    return len(column[1][0])  # of its rule


def _joined(block: Sequence[Column]) -> str:
    made: list[str] = []
    for number, cells in enumerate(zip(*block, strict=True)):
        height = max(map(len, cells))
        padded = []
        for cell, column in zip(cells, block, strict=True):
            empty = [" " * _width(column)] * (height - len(cell))
            padded.append(cell + empty if number else empty + cell)  # heads stand on the rule
        made += (GAP.join(line).rstrip() for line in zip(*padded, strict=True))
    return "\n".join(made)


def _filled(line: str, width: int) -> str:
    indent = GAP if line.startswith("- ") else ""
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
