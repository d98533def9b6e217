"""What the command lines of the examples share: options, tables, and how a program ends."""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tools.command import add_reference, checked, positive, seed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from weighted_bce.losses import Loss


# The losses by their names on the command line, and their classes in weighted_bce.
LOSSES = {
    "bce": "BCE",
    "focal": "Focal",
    "asymmetric": "Asymmetric",
    "hill": "Hill",
    "poly1": "Poly1",
    "squared-hinge": "SquaredHinge",
}
# The data that are built in.
IMPORTS, DEBIAN = "imports", "debian"
FORMATS = (
    "a file in the extreme classification repository's format (a first line 'rows features "
    "labels'), or svmlight multilabel; may be .gz or .bz2. Or 'imports', the default: which "
    "modules the Python files of this environment import. Or 'debian': which tags the packages "
    "have that apt-cache lists"
)
above_0 = checked(float, lambda number: 0 < number < math.inf, "a number above 0")
Group = argparse._ActionsContainer  # a parser, or a group of its options


def add(group: Group, name: str, help: str, default: Any = None, **more: Any) -> None:
    """Adds an option, which takes a whole number above 0 unless `more` says otherwise."""
    if default is not None and "default" not in help:
        help += " (default: %(default)s)"
    settings: dict[str, Any] = {} if "choices" in more else {"type": positive, "metavar": "N"}
    group.add_argument(name, help=help, default=default, **settings | more)


def add_shared(group: Group, source: Group, length: Group, epochs: int) -> None:
    """Adds the options of every example that trains on data."""
    add(source, "--data", FORMATS, IMPORTS, type=str, metavar="FILE")
    add(length, "--epochs", "how often each row is trained on", epochs)
    add(group, "--seed", "of every choice", 0, type=seed)
    add_reference(group)


def loss_named(name: str) -> "Loss":
    """The loss with its default parameters."""
    # Imported late, as torch takes seconds.
    import weighted_bce

    loss: Loss = getattr(weighted_bce, LOSSES[name])()
    return loss


class UserError(Exception):
    """An error that the user can mend; its message is one line."""


def insist(holds: object, problem: str) -> None:
    if not holds:
        raise UserError(problem)


def run(name: str, work: Callable[[], None]) -> int:
    """The exit code: 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
    try:
        work()
        return 0
    except UserError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        names = f"{error.filename}: " if error.filename else ""
        message, code = f"error: {names}{error.strerror or error}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"{name}: {message}".replace("\n", " "), file=sys.stderr)
    return code


def consoles() -> "tuple[Console, Console]":
    """The console of results, wide enough for a table in a file too, and that of progress."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=100), Console(stderr=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], **more: Any) -> "Table":
    """A table that names its rows in the first column, and has numbers in the others."""
    from rich import box
    from rich.table import Table

    # Without lines between the columns the table fits into a terminal of 80 columns.
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), **more)
    for k, header in enumerate(headers):
        made.add_column(header, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def mebibytes(number: int | None) -> str:
    return "n/a" if number is None else f"{number / 2**20:,.1f}"
