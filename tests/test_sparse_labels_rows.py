"""SparseLabels are cut along rows and joined again, in one process and over several."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from weighted_bce import SparseLabels, weighted_bce_with_logits

from .processes import Processes
from .sparse_values import GOOD, ROWS, WRONG_VALUES, assert_labels, sparse_labels

DTYPES = (torch.int32, torch.int64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cat(device: str, dtype: torch.dtype) -> None:
    parts = [[], ROWS, [[]], [[7]], ROWS[::-1]]
    labels = [SparseLabels.from_lists(part).to(device, dtype) for part in parts]
    assert_labels(SparseLabels.cat(labels), [row for part in parts for row in part], dtype)
    assert_labels(SparseLabels.cat(iter(labels[:2])), ROWS, dtype)
    assert SparseLabels.cat(labels).col_indices.device.type == device
    mixed = [labels[1], labels[1].to(torch.int32 if dtype == torch.int64 else torch.int64)]
    assert_labels(SparseLabels.cat(mixed), ROWS + ROWS)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ([], ValueError, r"labels must hold at least one SparseLabels, got none"),
        (GOOD, TypeError, r"labels must hold SparseLabels, got Tensor at 0"),
        ([GOOD, [[1]]], TypeError, r"labels must hold SparseLabels, got list at 1"),
        (
            [GOOD, GOOD.to("meta")],
            ValueError,
            r"labels\[1\] must be on cpu like labels\[0\], got me",
        ),
        (
            [GOOD, GOOD._replace(col_indices=[1])],
            TypeError,
            r"labels\[1\].col_indices must be a to",
        ),
    ],
)
def test_what_cannot_be_joined(wrong: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{words}"):
        SparseLabels.cat(wrong)


@pytest.mark.parametrize("rows", [*range(8), 40])
def test_split_and_chunk_as_torch_does(device: str, rows: int) -> None:
    """Their sizes are those of torch.split and torch.chunk."""
    lists = [[i, 2 * i + 1][: i % 3] for i in range(rows)]
    numbers = torch.arange(rows)
    for dtype in DTYPES:
        labels = SparseLabels.from_lists(lists).to(device, dtype)
        ways: list[tuple[Any, Any]] = []
        for n in range(1, 10):
            ways += [(labels.split(n), numbers.split(n)), (labels.chunk(n), numbers.chunk(n))]
        for sizes in ([rows], [0, rows], (rows // 2, rows - rows // 2, 0)):
            ways.append((labels.split(sizes), numbers.split(sizes)))
        for got, wanted in ways:
            assert type(got) is tuple
            for part, of in zip(got, wanted, strict=True):
                assert_labels(part, [lists[i] for i in of.tolist()], dtype)
            assert SparseLabels.cat(got) == labels
    assert len(SparseLabels.from_lists([]).split([])) == 0


def test_wrong_sizes() -> None:
    labels = SparseLabels.from_lists(ROWS)
    for method, size, error, words in (
        ("split", 0, ValueError, r"split_size_or_sections must be at least 1, got 0"),
        ("split", -1, ValueError, r"split_size_or_sections must be at least 1, got -1"),
        ("split", [6, -1], ValueError, r"split_size_or_sections must be at least 0, got -1"),
        ("split", [2, 2], ValueError, r"split_size_or_sections must add up to 5 rows, got 4"),
        ("split", 1.5, TypeError, r"split_size_or_sections must be an integer, got float"),
        ("split", [True, 4], TypeError, r"split_size_or_sections must be an integer, got bool"),
        ("chunk", 0, ValueError, r"chunks must be at least 1, got 0"),
        ("chunk", [1, 4], TypeError, r"chunks must be an integer, got list"),
    ):
        with pytest.raises(error, match=f"^{words}$"):
            getattr(labels, method)(size)


METHODS: dict[str, Callable[[SparseLabels], object]] = {
    "select": lambda labels: labels.select(slice(None)),
    "select some": lambda labels: labels.select([2, 0, 1]),
    "to_dense": lambda labels: labels.to_dense(5),
    "to_lists": lambda labels: labels.to_lists(),
    "to_scipy": lambda labels: labels.to_scipy(5),
    "cat": lambda labels: SparseLabels.cat([GOOD.to(labels.col_indices.dtype), labels]),
    "split": lambda labels: labels.split(1),
    "chunk": lambda labels: labels.chunk(2),
    "all_gather": lambda labels: labels.all_gather(),
    "loss": lambda labels: weighted_bce_with_logits(torch.zeros(3, 5), labels),
}


@pytest.mark.parametrize("fault", WRONG_VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_malformed_indices_are_named(method: str, fault: str) -> None:
    crow, col, words, _ = WRONG_VALUES[fault]
    if "to_scipy" in method:
        pytest.importorskip("scipy")
    takes_any_label = method not in ("to_dense", "to_scipy", "loss")
    for dtype in DTYPES:
        labels = sparse_labels(crow, col, dtype)
        if takes_any_label and fault in ("beyond", "far beyond"):
            METHODS[method](labels)
            continue
        name = {"cat": "labels[1]", "loss": "target"}.get(method, "labels")
        field, _, what = words.partition(" ")
        if "select" in method and "must not fall" in what:
            what = "must ascend from 0 to 5, got "
        with pytest.raises(ValueError, match="^" + re.escape(f"{name}.{field} {what}")):
            METHODS[method](labels)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"loss"}))
def test_fields_that_do_not_fit_each_other_are_named(method: str) -> None:
    none, number = torch.zeros(0, dtype=torch.int64), torch.tensor(0)
    for crow, error, words in (
        (none, ValueError, "have rows + 1 elements, got none"),
        (number, ValueError, "be one-dimensional, got shape ()"),
        ([0, 0], TypeError, "be a torch.Tensor, got list"),
    ):
        with pytest.raises(error, match=re.escape(f".crow_indices must {words}") + "$"):
            METHODS[method](SparseLabels(crow, none))


def test_fields_of_several_batches_joined_are_malformed() -> None:
    """Trainers join tensors so, which is no batch of all the rows."""
    joined = SparseLabels(*(torch.cat([t, t]) for t in GOOD))
    arrays = SparseLabels(*(t.numpy() for t in GOOD))
    for method, check in METHODS.items():
        if method != "loss":  # which finds another number of rows
            with pytest.raises(ValueError, match=r"crow_indices must end with 10, .*, got 5$"):
                check(joined)
            if method != "cat":
                with pytest.raises(TypeError, match=r"crow_indices must be a .*, got ndarray$"):
                    check(arrays)


def test_select_looks_at_the_chosen_rows_only() -> None:
    """A batch of a large data set must not cost a look at all of it."""
    unsorted = sparse_labels([0, 2, 4, 6], [1, 3, 2, 0, 1, 4])
    assert_labels(unsorted.select([2, 0]), [[1, 4], [1, 3]])
    with pytest.raises(ValueError, match=r"^labels.col_indices must ascend .*, got 0 in row 1$"):
        unsorted.select([2, 1])
    beyond = sparse_labels([0, 2**30, 2, 5], [1, 3, 0, 2, 4])
    words = rf"^labels.crow_indices must ascend .*, got {2**30} after 0 in row 0$"
    with pytest.raises(ValueError, match=words):
        beyond.select(0)


def of_rank(rank: int, dtype: torch.dtype = torch.int64) -> tuple[list[list[int]], SparseLabels]:
    """Another number of rows and of positives in each process, and in one none."""
    rows = [[], [[5, 1], [], [rank]], [[2]] * 4][rank % 3]
    return rows, SparseLabels.from_lists(rows).to(dtype)


def check_all_gather(processes: int) -> None:
    rank = dist.get_rank()
    everything = [row for i in range(processes) for row in of_rank(i)[0]]
    for dtype in DTYPES:
        assert_labels(of_rank(rank, dtype)[1].all_gather(), everything, dtype)
    mixed = of_rank(rank, torch.int32 if rank else torch.int64)[1]
    assert_labels(mixed.all_gather(), everything)
    nothing = SparseLabels.from_lists([])
    assert_labels(nothing.all_gather(), [])
    assert_labels(SparseLabels.from_lists([[]]).all_gather(), [[]] * processes)
    with torch.device("meta"):
        assert_labels(of_rank(rank)[1].all_gather(), everything)


def check_groups(processes: int) -> None:
    rank = dist.get_rank()
    own, labels = of_rank(rank)
    for i in range(processes):
        group = dist.new_group([i])
        if i == rank:
            assert_labels(labels.all_gather(group), own)
        else:
            with pytest.raises(ValueError, match=r"^group must contain this process"):
                labels.all_gather(group)
    last = processes - 1
    group = dist.new_group([0, last])
    if rank in (0, last):
        assert_labels(labels.all_gather(group=group), of_rank(0)[0] + of_rank(last)[0])


def check_faults(processes: int) -> None:
    """All raise, so that no process waits for one that has."""
    faults = {
        "ascend": sparse_labels([0, 2], [3, 1]),
        "be one-dimensional": SparseLabels(torch.zeros(1, 1, dtype=torch.int64), GOOD[1]),
        "be int32 or int64": SparseLabels(GOOD[0].double(), GOOD[1]),
        "be a torch.Tensor": SparseLabels(GOOD[0], [1]),
    }
    for words, wrong in faults.items():
        labels = wrong if dist.get_rank() == 1 else GOOD
        if dist.get_rank() != 1:
            words = r"be right on all ranks, got wrong ones on rank 1$"
        with pytest.raises((TypeError, ValueError), match=rf"^labels\S* must {words}"):
            labels.all_gather()
    assert_labels(GOOD.all_gather(), [[1, 3], [], [0, 2, 4]] * processes)


@pytest.mark.skipif(not dist.is_available(), reason="no torch.distributed")
@pytest.mark.parametrize("check", [check_all_gather, check_groups, check_faults])
@pytest.mark.parametrize("processes", [2, 3], indirect=True)
def test_sharded_over_ranks(processes: Processes, check: Callable[[int], None]) -> None:
    processes(check)


def test_all_gather_in_one_process() -> None:
    assert GOOD.all_gather() is GOOD


def test_select_takes_a_read_only_array() -> None:
    rows = np.array([2, 0])
    rows.flags.writeable = False
    assert_labels(GOOD.select(rows), [[0, 2, 4], [1, 3]])
