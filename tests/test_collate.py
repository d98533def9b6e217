"""Batches of a DataLoader with sparse labels, made in its workers too."""

from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from weighted_bce import SparseLabels, collate

from .sparse_values import assert_labels

ROWS = [[i % 7, (3 * i + 1) % 11, i % 7] if i % 4 else [] for i in range(37)]


def scipy_row(row: list[int], kind: Callable[..., Any]) -> Any:
    """A row with an explicit zero, which is no positive."""
    labels = [*sorted(set(row)), 11]
    ones = np.array([1.0] * (len(labels) - 1) + [0.0])
    matrix: Any = scipy.sparse.coo_array((ones, ([0] * len(labels), labels)), shape=(1, 12))
    return kind(matrix)


KINDS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tensor": lambda row: torch.tensor(row, dtype=torch.int32),
    "array": np.array,
    "set": set,
    "scipy matrix": partial(scipy_row, kind=scipy.sparse.csr_matrix),
    "scipy array": partial(scipy_row, kind=scipy.sparse.csr_array),
    "scipy vector": lambda row: scipy_row(row, lambda matrix: matrix.reshape(12)),
    "SparseLabels": lambda row: SparseLabels.from_lists([row]),
}


class Sample(NamedTuple):
    name: str
    x: Tensor
    y: Any


class First(NamedTuple):
    """The field "labels" holds the positives wherever it is."""

    labels: Any
    x: Tensor
    ids: list[int]


@dataclass(frozen=True)
class Record:
    x: Tensor
    labels: Any
    number: int = 0
    rows: int = field(init=False, default=0)


FORMS: dict[str, Callable[[int, Any], Any]] = {
    "alone": lambda i, y: y,
    "tuple": lambda i, y: (x_of(i), {"i": i}, y),
    "list": lambda i, y: [x_of(i), {"i": i}, y],
    "named": lambda i, y: Sample(str(i), x_of(i), y),
    "first": lambda i, y: First(y, x_of(i), [i, i]),
    "dict": lambda i, y: {"labels": y, "x": x_of(i), "i": i},
    "mapping": lambda i, y: MappingProxyType({"x": x_of(i), "labels": y}),
    "user dict": lambda i, y: UserDict(x=x_of(i), labels=y),
    "dataclass": lambda i, y: Record(x_of(i), y, number=i),
    "tags": lambda i, y: OrderedDict(labels=i, tags=y),
}


def x_of(i: int) -> Tensor:
    return torch.full((3,), float(i))


class Samples(Dataset[Any]):
    def __init__(self, kind: str, form: str) -> None:
        self.kind, self.form = kind, form

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, i: int) -> Any:
        return FORMS[self.form](i, KINDS[self.kind](ROWS[i]))


def expected(form: str, numbers: list[int], labels: Any) -> Any:
    """The batch of some samples, without the values of the labels."""
    x = torch.tensor([[float(i)] * 3 for i in numbers])
    n = torch.tensor(numbers)
    return {
        "alone": labels,
        "tuple": (x, {"i": n}, labels),
        "list": [x, {"i": n}, labels],
        "named": Sample([str(i) for i in numbers], x, labels),  # type: ignore[arg-type]
        "first": First(labels, x, [n, n]),  # type: ignore[list-item]
        "dict": {"labels": labels, "x": x, "i": n},
        "mapping": MappingProxyType({"x": x, "labels": labels}),
        "user dict": UserDict(x=x, labels=labels),
        "dataclass": Record(x, labels, number=n),  # type: ignore[arg-type]
        "tags": OrderedDict(labels=n, tags=labels),
    }[form]


def labels_of(form: str, batch: Any) -> Any:
    if form in ("tuple", "list", "named"):
        return batch[-1]
    if form in ("dataclass", "first"):
        return batch.labels
    return batch if form == "alone" else batch["tags" if form == "tags" else "labels"]


def read(form: str, kind: str, **options: Any) -> None:
    """Reads all samples, twice, by a loader with these options."""
    function = partial(collate, labels="tags") if form == "tags" else collate
    loader = DataLoader(Samples(kind, form), batch_size=10, collate_fn=function, **options)
    for _ in range(2):
        for first, batch in zip(range(0, 40, 10), loader, strict=True):
            rows = ROWS[first : first + 10]
            labels = labels_of(form, batch)
            assert_labels(labels, rows)
            assert_same(batch, expected(form, list(range(first, first + len(rows))), labels))


def assert_same(actual: Any, wanted: Any) -> None:
    """Compares types, the order of keys and values."""
    assert type(actual) is type(wanted)
    if isinstance(wanted, Tensor):
        assert torch.equal(actual, wanted)
    elif isinstance(wanted, Record):
        assert_same(vars(actual), vars(wanted))
    elif hasattr(wanted, "keys"):
        assert list(actual) == list(wanted)
        assert_same(list(actual.values()), list(wanted.values()))
    elif isinstance(wanted, (tuple, list)) and not isinstance(wanted, SparseLabels):
        for a, w in zip(actual, wanted, strict=True):
            assert_same(a, w)
    else:
        assert actual is wanted or actual == wanted


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_workers(kind: str, form: str) -> None:
    read(form, kind)


@pytest.mark.parametrize(
    ("start", "persistent", "kind", "form"),
    [
        ("fork", True, "list", "tuple"),
        ("fork", False, "tensor", "named"),
        ("fork", False, "SparseLabels", "dataclass"),
        ("spawn", True, "array", "alone"),
        ("spawn", False, "scipy array", "tags"),
        pytest.param("forkserver", False, "list", "named", marks=pytest.mark.exhaustive),
        pytest.param("forkserver", False, "list", "dict", marks=pytest.mark.exhaustive),
    ],
)
def test_workers(start: str, persistent: bool, kind: str, form: str) -> None:
    processes: Any = dict(num_workers=2, persistent_workers=persistent)
    pinned = torch.cuda.is_available()
    read(form, kind, **processes, multiprocessing_context=start, pin_memory=pinned)


def set_default_device(worker: int = 0) -> None:
    torch.set_default_device("meta")


@pytest.mark.parametrize("kind", KINDS)
def test_another_default_device(kind: str) -> None:
    """Labels and all other elements are made on the CPU."""
    samples = [{"x": np.full(2, i), "i": i, "labels": KINDS[kind](ROWS[i])} for i in range(4)]
    with torch.device("meta"):
        batch = collate(samples)
    assert_labels(batch["labels"], ROWS[:4])
    assert batch["x"].tolist() == [[i, i] for i in range(4)]
    assert batch["i"].tolist() == [*range(4)]
    assert torch.empty(0).is_cpu


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_another_default_device_in_workers(start: str) -> None:
    options: Any = dict(worker_init_fn=set_default_device, multiprocessing_context=start)
    read("tags", "list", num_workers=1, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_for_cuda() -> None:
    loader = DataLoader(Samples("list", "tuple"), 10, collate_fn=collate, pin_memory=True)
    for *_, labels in loader:
        assert type(labels) is SparseLabels
        assert all(t.is_pinned() for t in labels)


def test_alone_in_a_tuple() -> None:
    (labels,) = collate([([1, 2],), ([],)])
    assert_labels(labels, [[1, 2], []])


def test_a_list_is_a_sample_if_it_ends_with_a_list() -> None:
    x, labels = collate([[0.5, [3, 1]], [1.5, []]])
    assert x.tolist() == [0.5, 1.5]
    assert_labels(labels, [[3, 1], []])
    assert_labels(collate([[], [torch.tensor(3), np.int64(1)], [2]]), [[], [1, 3], [2]])


X = torch.zeros(2)
TWO = SparseLabels.from_lists([[1], [2]])
COUNTS = scipy.sparse.csr_array([[0, 2, 1]])
Record_ = Record(X, [1])
NAME = r"; name another one by functools.partial\(collate, labels=...\)"
NO_BATCHES: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "not be empty, got none"),
    ([TWO], ValueError, "hold one row each, got 2 in sample 0"),
    ([(X, [1]), (X, TWO)], ValueError, "hold one row each, got 2 in sample 1"),
    (
        [(X, scipy.sparse.eye_array(2))],
        ValueError,
        r"hold one row each, got .*\(2, 2\) in sample 0",
    ),
    ([[1], COUNTS], ValueError, "hold 0 and 1 only, got 2 in sample 1"),
    ([()], ValueError, f"have an element 'labels', got none in sample 0{NAME}"),
    ([{}], ValueError, f"have an element 'labels', got none in sample 0{NAME}"),
    (
        [{"x": X, "tags": [1]}],
        ValueError,
        f"have an element 'labels', got the elements x, tags in sample 0{NAME}",
    ),
    ([(X, [1]), (X, X, [1])], ValueError, "all have 2 elements .* first, got 3 .* in sample 1"),
    ([[X, [1]], []], ValueError, "all have 2 elements like the first, got none in sample 1"),
    (
        [{"x": X, "labels": [1]}, {"labels": [1]}],
        ValueError,
        "all have the elements x, labels like the first, got the elements labels in sample 1",
    ),
    ([(X, [1]), [1]], TypeError, "all be of type tuple like .*, got list in sample 1"),
    ([Record_, {"x": X, "labels": [1]}], TypeError, "all be of type Record .*, got dict in .* 1"),
    ([(X, 1), (X, 2)], TypeError, "hold a list of labels each, got int in sample 0"),
    ([(1, 2), (3,)], ValueError, "all have 2 elements like the first, got 1 elements in .* 1"),
    ([{"labels": 3}], TypeError, "hold a list of labels each, got int in sample 0"),
    ([{"labels": torch.tensor(3)}], TypeError, "hold a list of .*, got Tensor in sample 0"),
    ([(X, "ab")], TypeError, "hold a list of labels each, got str in sample 0"),
    ([5], TypeError, "hold a list of labels each, got int in sample 0"),
    ([(X, [1]), (X, [1.5])], TypeError, "hold integers, got float in row 1"),
    ([(X, torch.ones(3))], TypeError, "hold integers, got float32 in row 0"),
    ([(X, [1]), (X, [-1])], ValueError, "hold labels >= 0, got -1 in row 1"),
    ([[1], (X, [1])], TypeError, "hold integers, got .*Tensor in row 1"),
]


@pytest.mark.parametrize(("samples", "error", "words"), NO_BATCHES)
def test_what_is_no_batch(samples: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^samples must {words}$"):
        collate(samples)


@pytest.mark.parametrize("samples", [[[1]], [(X, [1])], [Sample("", X, [1])], [Record_], [{}]])
def test_a_missing_name(samples: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^samples must have an element 'tags', got .* sample 0"):
        collate(samples, labels="tags")
