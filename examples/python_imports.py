"""The names that Python files of this environment use, and the modules that they import."""

import ast
import multiprocessing
import os
import random
import signal
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.progress import Progress

from tools.command import FILES, READ_SECONDS

from .facts import Facts, hashed

# A longer file is a generated table, which takes seconds to parse and says little.
MAX_BYTES = 400_000


def facts_of_source(source: bytes | str, package: tuple[str, ...] = ()) -> Facts:
    """The names that a source uses and the modules that it imports.

    It lives in `package`, which tells what relative imports mean.
    """
    names: set[str] = set()
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                names.add(name)
            case ast.Import(names=aliases):
                modules.update(alias.name for alias in aliases)
            case ast.ImportFrom(module=module, level=level):
                base = package[: max(0, len(package) - level + 1)] if level else ()
                modules.add(".".join((*base, *filter(None, [module]))))
    return Facts(hashed(names), sorted(modules - {""}))


def _facts_of_file(where: tuple[str, str]) -> Facts | None:
    """The facts of root/path, or None for a file that cannot be read or parsed."""
    root, path = where
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are not our business
            return facts_of_source(Path(root, path).read_bytes(), Path(path).parent.parts)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def python_files(roots: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(root, path below it) of every .py file that is not too long, in a fixed order."""
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            # The stdlib holds the base interpreter's site-packages, which a venv does not see.
            subfolders[:] = sorted(set(subfolders) - {"site-packages", "__pycache__"})
            paths = (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))
            for path in paths:
                # Links may lead nowhere.
                if os.path.isfile(path) and os.path.getsize(path) <= MAX_BYTES:
                    yield root, os.path.relpath(path, root)


def facts_of_environment(files: int | None, seed: int, progress: Progress) -> list[Facts | None]:
    """Parses so many files of the running interpreter's environment, chosen by `seed`.

    With None these are FILES, or as many as are parsed within READ_SECONDS.
    """
    paths = sysconfig.get_paths()
    roots = dict.fromkeys(paths[key] for key in ("stdlib", "purelib", "platlib"))
    every = list(python_files(roots))
    chosen = random.Random(seed).sample(every, min(files or FILES, len(every)))
    end = time.monotonic() + READ_SECONDS
    # Forked workers need not import torch again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    facts: list[Facts | None] = []
    # Ctrl-C is for this process, which ends the workers.
    ignore_interrupts = (signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with context.Pool(workers, *ignore_interrupts) as pool, progress:
        parsed = pool.imap(_facts_of_file, chosen, chunksize=16)
        for one in progress.track(parsed, len(chosen), description="reading Python files"):
            facts.append(one)
            if files is None and time.monotonic() > end:
                break
    return facts
