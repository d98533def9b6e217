"""Sparse multi-label data: the Python files of this environment, or a svmlight file.

A row is a file, its features are the names that it uses, its labels the modules that it imports.
"""

import ast
import bz2
import gzip
import math
import multiprocessing
import os
import random
import signal
import sys
import sysconfig
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from rich.progress import Progress
from scipy.sparse import csr_matrix
from sklearn.datasets import load_svmlight_file
from sklearn.preprocessing import normalize

BUCKETS = 32768
MIN_COUNT = 5
# A longer file is a generated table, which takes seconds to parse and says little.
MAX_BYTES = 400_000


class DataError(ValueError):
    """Data that cannot be used; the message is meant for the user."""


class Dataset(NamedTuple):
    """Features and labels of the same rows, both sparse."""

    source: str
    features: csr_matrix  # [rows, features] float32
    labels: csr_matrix  # [rows, labels] bool, the positives alone

    @property
    def positives_per_row(self) -> float:
        return float(self.labels.nnz / self.labels.shape[0])

    def describe(self) -> str:
        rows, labels = self.labels.shape
        return (
            f"{self.source}: {rows:,} rows, {labels:,} labels, {self.positives_per_row:.1f} "
            f"positives per row ({self.positives_per_row / labels:.2%} dense)"
        )

    def split(self, seed: int) -> tuple["Dataset", "Dataset"]:
        """Four fifths to train on and one fifth held out, drawn at random."""
        order = np.random.default_rng(seed).permutation(self.labels.shape[0])
        held_out = max(1, len(order) // 5)
        train, test = order[held_out:], order[:held_out]
        return (
            Dataset(self.source, self.features[train], self.labels[train]),
            Dataset(self.source, self.features[test], self.labels[test]),
        )


class Facts(NamedTuple):
    """What one file contributes."""

    buckets: list[int]
    modules: list[str]


def facts_of_source(source: bytes | str, package: tuple[str, ...] = ()) -> Facts:
    """The hashed names that a module uses and the modules that it imports.

    `package` is where the source lives, against which relative imports are resolved.
    """
    names: set[str] = set()
    modules: set[str] = set()
    stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
            continue
        if isinstance(node, ast.ImportFrom):
            modules.add(_imported_from(node, package))
            continue
        if isinstance(node, ast.Name):
            names.add(node.id)
            continue
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        # Fields by hand: ast.walk takes twice the time.
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, ast.AST):
                stack.append(value)
            elif isinstance(value, list):
                stack.extend(item for item in value if isinstance(item, ast.AST))
    buckets = {zlib.crc32(name.encode("utf-8", "replace")) % BUCKETS for name in names}
    return Facts(sorted(buckets), sorted(modules - {""}))


def _imported_from(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    if not node.level:
        return node.module or ""
    base = package[: max(0, len(package) - node.level + 1)]
    return ".".join((*base, *filter(None, [node.module])))


def _facts_of_file(where: tuple[str, str]) -> Facts | None:
    """The facts of root/path, or None for a file that cannot be read or parsed."""
    root, path = where
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are not our business
            return facts_of_source(Path(root, path).read_bytes(), Path(path).parent.parts)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _roots() -> list[str]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(paths[key] for key in ("stdlib", "purelib", "platlib")))


def python_files(roots: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(root, path below it) of every .py file that is not too long, in a fixed order."""
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            # The stdlib holds the base interpreter's site-packages, which a venv does not see.
            subfolders[:] = sorted(
                name for name in subfolders if name not in ("site-packages", "__pycache__")
            )
            for name in sorted(names):
                path = os.path.join(folder, name)
                if name.endswith(".py") and _is_short(path):
                    yield root, os.path.relpath(path, root)


def _is_short(path: str) -> bool:
    try:
        return os.path.getsize(path) <= MAX_BYTES
    except OSError:
        return False


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends the workers


def imports_of_environment(
    files: int, seed: int, progress: Progress, seconds: float = math.inf
) -> Dataset:
    """Parses up to `files` files of the running interpreter's environment, chosen by `seed`.

    After so many seconds it goes on with those that it has.
    """
    found = list(python_files(_roots()))
    chosen = random.Random(seed).sample(found, min(files, len(found)))
    end = time.monotonic() + seconds
    # Forked workers need not import torch again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: list[Facts] = []
    read = 0
    with context.Pool(workers, _ignore_interrupts) as pool, progress:
        task = progress.add_task("reading Python files", total=len(chosen))
        for one in pool.imap(_facts_of_file, chosen, chunksize=16):
            progress.advance(task)
            read += 1
            if one is not None:
                facts.append(one)
            if time.monotonic() > end:
                break
    return dataset_of_facts(facts, f"imports of {read:,} Python files")


def dataset_of_facts(facts: Iterable[Facts], source: str, min_count: int = MIN_COUNT) -> Dataset:
    """Rows of the files that use a name and import a module seen `min_count` times or more."""
    facts = list(facts)
    counts = Counter(module for one in facts for module in one.modules)
    columns = {m: i for i, m in enumerate(sorted(m for m, n in counts.items() if n >= min_count))}
    labels = [[columns[m] for m in one.modules if m in columns] for one in facts]
    kept = [i for i, one in enumerate(facts) if one.buckets and labels[i]]
    if len(kept) < 10:
        raise DataError(
            f"only {len(kept)} files import a module that occurs {min_count} times; use more files"
        )
    features = _csr([facts[i].buckets for i in kept], BUCKETS, np.float32)
    # Sums of rows that add up to 1 are means of embeddings.
    return Dataset(
        source, normalize(features, norm="l1"), _csr([labels[i] for i in kept], len(columns), bool)
    )


def _csr(rows: list[list[int]], columns: int, dtype: type) -> csr_matrix:
    starts = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((i for row in rows for i in row), np.int64, starts[-1])
    return csr_matrix((np.ones(len(indices), dtype), indices, starts), (len(rows), columns))


def dataset_of_file(path: Path, rows: int | None = None) -> Dataset:
    """Reads svmlight multilabel data, plain, .gz or .bz2, with or without a header line.

    The header of the extreme classification repository holds three numbers: rows, features,
    labels. Only the first `rows` rows are kept where that is given.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            size = _header(file)
            features, positives = load_svmlight_file(
                file,
                n_features=size[1] if size else None,
                dtype=np.float32,
                multilabel=True,
                zero_based=True if size else "auto",
            )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{path} is not svmlight multilabel data: {error}") from None
    if size and size[0] != len(positives):
        raise DataError(f"{path} announces {size[0]} rows and has {len(positives)}")
    features, positives = features[:rows], positives[:rows]
    if len(positives) < 10:
        raise DataError(f"{path} has {len(positives)} rows; 10 are needed to train and to test")
    labels = _labels_of(positives, size[2] if size else None, path)
    return Dataset(path.name, normalize(features), labels)


def _header(file: IO[bytes]) -> tuple[int, int, int] | None:
    """The three numbers of a header line, which is consumed, or None where there is none."""
    words = file.readline(200).split()
    if len(words) == 3 and all(word.isdigit() for word in words):
        rows, features, labels = map(int, words)
        return rows, features, labels
    file.seek(0)
    return None


def _labels_of(positives: list[tuple[float, ...]], columns: int | None, path: Path) -> csr_matrix:
    values = np.array([label for row in positives for label in row])
    if len(values) == 0:
        raise DataError(f"{path} has no labels")
    if (values < 0).any() or (values != values.round()).any():
        raise DataError(f"{path} has labels that are not whole numbers >= 0")
    columns = int(values.max()) + 1 if columns is None else columns
    if values.max() >= columns:
        raise DataError(f"{path} announces {columns} labels and has the label {values.max():.0f}")
    return _csr([sorted({int(label) for label in row}) for row in positives], columns, bool)
