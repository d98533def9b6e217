"""What the command lines of the examples share."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from tools.command import add_reference, checked, positive, seed

if TYPE_CHECKING:
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


def mebibytes(number: int | None) -> str:
    return "n/a" if number is None else f"{number / 2**20:,.1f}"
