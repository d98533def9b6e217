"""Sparse multi-label data: of this environment, of files in svmlight's format, and made up."""

import bz2
import gzip
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from rich.progress import Progress
from scipy.sparse import csr_matrix
from sklearn.datasets import load_svmlight_file
from sklearn.preprocessing import normalize

from tools.program import Refusal, insist
from weighted_bce import SparseLabels

from .debian_packages import facts_of_packages
from .facts import BUCKETS, Facts
from .program import DEBIAN, IMPORTS
from .python_imports import facts_of_environment

MOST_LABELS = 2**31  # more are not given to a layer
MIN_COUNT = 5  # names that occur less often are no labels
# Of made-up data: words that each label brings into a row, words of no label, labels of a row.
WORDS, OTHER_WORDS, LABELS = 4, 10, 5


class Dataset(NamedTuple):
    """Features and labels of the same rows, both sparse."""

    source: str
    features: csr_matrix  # [rows, features] float32
    labels: csr_matrix  # [rows, labels] bool, the positives alone
    groups: np.ndarray | None = None  # a number for each row; near duplicates have the same

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
        """Four fifths to train on and one fifth held out, drawn at random.

        With groups these are fifths of the groups, each of which stays whole.
        """
        every = np.arange(self.labels.shape[0]) if self.groups is None else np.unique(self.groups)
        order = np.random.default_rng(seed).permutation(every)
        test, train = np.split(order, [max(1, len(order) // 5)])
        if self.groups is not None:
            test, train = (np.flatnonzero(np.isin(self.groups, some)) for some in (test, train))
        return self.rows(train), self.rows(test)

    def rows(self, rows: np.ndarray | slice) -> "Dataset":
        groups = None if self.groups is None else self.groups[rows]
        return Dataset(self.source, self.features[rows], self.labels[rows], groups)

    def at(self, rows: np.ndarray | slice) -> tuple[csr_matrix, SparseLabels]:
        """The features and the labels of some rows."""
        return self.features[rows], SparseLabels.from_scipy(self.labels[rows])

    def blocks(self, size: int) -> Iterator[slice]:
        return (slice(i, i + size) for i in range(0, self.labels.shape[0], size))

    def batches(self, epochs: int, seed: int, size: int) -> Iterator[np.ndarray]:
        """Row numbers batch by batch, which depend on `seed` alone."""
        generator = np.random.default_rng(seed)
        for _ in range(epochs):
            order = generator.permutation(self.labels.shape[0])
            yield from (order[rows] for rows in self.blocks(size))


def read(source: str, rows: int | None, seed: int, progress: Progress) -> Dataset:
    """A file's data, or with "imports" or "debian" this machine's: at most so many rows."""
    if source == IMPORTS:
        files = facts_of_environment(rows, seed, progress)
        return dataset_of_facts(files, f"imports of {len(files):,} Python files")
    if source == DEBIAN:
        packages = facts_of_packages()
        chosen = random.Random(seed).sample(packages, min(rows or len(packages), len(packages)))
        return dataset_of_facts(chosen, f"tags of {len(chosen):,} Debian packages")
    return dataset_of_file(Path(source), rows)


def csr(rows: Sequence[Sequence[int]] | np.ndarray, columns: int, dtype: type) -> csr_matrix:
    """A matrix with a one for each column that a row names."""
    starts = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter(chain.from_iterable(rows), np.int64, starts[-1])
    made = csr_matrix((np.ones(len(indices), dtype), indices, starts), (len(rows), columns))
    made.sum_duplicates()
    return made


def made_up(labels: int, rows: int, features: int, seed: int) -> Dataset:
    """Rows whose words are those of their labels and some others; labels follow Zipf's law."""
    generator = np.random.default_rng(seed)
    words = generator.integers(features, size=(labels, WORDS), dtype=np.int32)
    # exp(u log(labels + 1)) has the density 1 / x.
    drawn = ((labels + 1.0) ** generator.random((rows, LABELS)) - 1).astype(np.int64)
    drawn = drawn.clip(max=labels - 1)
    others = generator.integers(features, size=(rows, OTHER_WORDS))
    used = np.concatenate((words[drawn].reshape(rows, -1), others), 1)
    features_of_rows = normalize(csr(used, features, np.float32))
    return Dataset("made-up rows", features_of_rows, csr(drawn, labels, bool))


def dataset_of_facts(facts: Sequence[Facts | None], source: str) -> Dataset:
    """Rows with a word and with a name that occurs `MIN_COUNT` times or more."""
    read = [one for one in facts if one is not None]
    counts = Counter(name for one in read for name in one.names)
    often = sorted(name for name, count in counts.items() if count >= MIN_COUNT)
    columns = {name: i for i, name in enumerate(often)}
    rows = [one._replace(names=[name for name in one.names if name in columns]) for one in read]
    rows = [one for one in rows if one.buckets and one.names]
    problem = f"only {len(rows)} rows have a word and a label that occurs {MIN_COUNT} times"
    insist(len(rows) >= 10, f"{problem}; use more files")
    features = normalize(csr([one.buckets for one in rows], BUCKETS, np.float32))
    labels = csr([[columns[name] for name in one.names] for one in rows], len(columns), bool)
    names, groups = np.unique([one.group for one in rows], return_inverse=True)
    return Dataset(source, features, labels, groups if len(names) > 1 else None)


def dataset_of_file(path: Path, rows: int | None = None) -> Dataset:
    """Reads svmlight multilabel data, plain, .gz or .bz2, with or without a header line.

    The header of the extreme classification repository holds three numbers: rows, features,
    labels. Only the first `rows` rows are kept where that is given.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            announced_rows, width, num_labels = _header(file)
            features, positives = load_svmlight_file(
                file,
                n_features=width,
                dtype=np.float32,
                multilabel=True,
                zero_based=True if width else "auto",
            )
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, OverflowError, zlib.error) as error:
        raise Refusal(f"{path} is not svmlight multilabel data: {error}") from None
    fits = announced_rows in (None, len(positives))
    insist(fits, f"{path} announces {announced_rows} rows and has {len(positives)}")
    features, positives = features[:rows], positives[:rows]
    enough = len(positives) >= 10
    insist(enough, f"{path} has {len(positives)} rows; 10 are needed to train and to test")
    values = np.array(list(chain.from_iterable(positives)))
    insist(len(values), f"{path} has no labels")
    whole = (values >= 0).all() and (values == values.round()).all()
    insist(whole, f"{path} has labels that are not whole numbers >= 0")
    most = int(values.max())
    largest = max(most, (num_labels or 1) - 1)
    insist(largest < MOST_LABELS, f"{path} has more than {MOST_LABELS:,} labels")
    finite = np.isfinite(features.data).all()
    insist(finite, f"{path} has features that are not finite")
    fits = num_labels is None or most < num_labels
    insist(fits, f"{path} announces {num_labels} labels and has the label {most}")
    return Dataset(path.name, normalize(features), csr(positives, num_labels or most + 1, bool))


def _header(file: IO[bytes]) -> Sequence[int | None]:
    """The three numbers of a header line, which is consumed, or None for each."""
    words = file.readline(200).split()
    if len(words) == 3 and all(word.isdigit() for word in words):
        return [int(word) for word in words]
    file.seek(0)
    return [None] * 3
