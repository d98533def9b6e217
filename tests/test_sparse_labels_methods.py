"""What SparseLabels can do, and that torch takes them for a tuple."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from weighted_bce import SparseLabels, _csr

from .draws import drawn
from .scripts import run_python
from .sparse_values import ROWS, assert_labels, dense_of
from .test_sparse_labels import rows_of_labels


def test_to(device: str) -> None:
    labels = SparseLabels.from_lists(ROWS).to(device)
    for changed, dtype in (
        (labels.to(torch.int32), torch.int32),
        (labels.to(dtype=torch.int32, copy=True), torch.int32),
        (labels.to(torch.int32).to(torch.int64), torch.int64),
        (labels.to("cpu", non_blocking=False), torch.int64),
        (labels.to(device, torch.int32, non_blocking=True), torch.int32),
    ):
        assert_labels(changed, ROWS, dtype)
    assert labels.to(device).col_indices is labels.col_indices
    assert labels.to(device, copy=True).col_indices is not labels.col_indices
    assert labels.to("meta").col_indices.device.type == "meta"
    for dtype in (torch.float32, torch.int16, torch.bool):
        with pytest.raises(TypeError, match=r"^dtype must be int32 or int64, got "):
            labels.to(dtype)
    for name, crow, col in (("col", 1, 2**31), ("col", 1, 2**40), ("crow", 2**31, 1)):
        words = rf"^{name}_indices must be below 2\*\*31 for int32, got {max(crow, col)}$"
        with pytest.raises(ValueError, match=words):
            SparseLabels(torch.tensor([0, crow]), torch.tensor([col])).to(torch.int32)
    assert SparseLabels.from_lists([[2**31 - 1]]).to(torch.int32).col_indices.item() == 2**31 - 1


def test_where_values_cannot_be_read() -> None:
    labels = SparseLabels.from_lists(ROWS)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = SparseLabels(*map(mode.from_tensor, labels))
        assert fake.to(torch.int32).crow_indices.dtype == torch.int32
        assert fake.to_dense(40).shape == (len(ROWS), 40)
    twice = SparseLabels(*(torch.stack([t, t]) for t in labels))
    dense = torch.vmap(lambda y: y.to(torch.int32).to_dense(40))(twice)
    assert torch.equal(dense, torch.stack([dense_of(ROWS)] * 2))
    traced = make_fx(lambda y: y.to(torch.int32).to_dense(40))(labels)
    assert torch.equal(traced(labels), dense_of(ROWS))


def test_too_many_for_int32() -> None:
    many = torch.empty(2**31, dtype=torch.int32, device="meta")
    for count, dtype in ((2**31, torch.int64), (2**31 - 1, torch.int32)):
        crow, col = _csr.csr(torch.empty(3, device="meta"), many[:count])
        assert (crow.dtype, col.dtype, crow.shape) == (dtype, dtype, (4,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pin_memory_for_cuda() -> None:
    pinned = SparseLabels.from_lists(ROWS).pin_memory()
    assert all(t.is_pinned() for t in pinned)
    assert_labels(pinned.to("cuda", non_blocking=True), ROWS)


def test_to_dense(device: str) -> None:
    for dtype in (torch.int32, torch.int64):
        labels = SparseLabels.from_lists(ROWS).to(device, dtype)
        for of in (torch.bool, torch.float32, torch.int8):
            dense = labels.to_dense(40, of)
            assert (dense.dtype, dense.device.type) == (of, device)
            assert torch.equal(dense.cpu(), dense_of(ROWS).to(of))
    labels = SparseLabels.from_lists(ROWS)
    words = r"^labels\.col_indices must be below 39, the number of labels, got 39 in row 2$"
    with pytest.raises(ValueError, match=words):
        labels.to_dense(39)
    with pytest.raises(ValueError, match=r"^labels\.col_indices must be >= 0, got -1 in row 0$"):
        SparseLabels(torch.tensor([0, 1]), torch.tensor([-1])).to_dense(5)
    compiled = torch.compile(SparseLabels.to_dense, fullgraph=True, backend="eager")
    assert torch.equal(compiled(labels, 40), dense_of(ROWS))
    apart = SparseLabels(*(torch.stack([t, t], 1)[:, 0] for t in labels))
    assert not apart.crow_indices.is_contiguous()
    torch.set_warn_always(True)  # torch warns of this only once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(apart.to_dense(40), dense_of(ROWS))
    finally:
        torch.set_warn_always(False)


@drawn(few=30, many=200)
@given(rows=rows_of_labels.filter(bool), data=st.data())
def test_select(device: str, rows: list[list[int]], data: st.DataObject) -> None:
    n = len(rows)
    dtype = data.draw(st.sampled_from((torch.int32, torch.int64)))
    labels = SparseLabels.from_lists(rows).to(device, dtype)
    numbers = data.draw(st.lists(st.integers(-n, n - 1)))
    chosen = [rows[i] for i in numbers]
    for of in (torch.int32, torch.int64):
        assert_labels(labels.select(torch.tensor(numbers, dtype=of)), chosen, dtype)
        assert_labels(labels.select(torch.tensor(numbers, dtype=of).to(device)), chosen, dtype)
    assert_labels(labels.select(numbers), chosen, dtype)
    assert_labels(labels.select(np.array(numbers, int)[::-1]), chosen[::-1], dtype)
    for number in numbers[:1]:
        for one in (number, np.int16(number)):
            assert_labels(labels.select(one), [rows[number]], dtype)
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    masked = [row for row, taken in zip(rows, mask, strict=True) if taken]
    for of in (torch.tensor(mask), mask, np.array(mask)):
        assert_labels(labels.select(of), masked, dtype)
    ends = st.one_of(st.none(), st.integers(-n - 2, n + 2))
    part = slice(data.draw(ends), data.draw(ends), data.draw(st.sampled_from((None, 1, 2, -1, -3))))
    for of in (part, range(n)[part]):
        assert_labels(labels.select(of), rows[part], dtype)


def test_repr() -> None:
    labels = SparseLabels.from_lists(ROWS)
    assert repr(labels) == "SparseLabels(rows=5, positives=7, dtype=int64, device=cpu)"
    assert repr(labels.to("meta").to(torch.int32)).endswith("dtype=int32, device=meta)")
    assert repr(SparseLabels(1, [2])) == "SparseLabels(crow_indices=1, col_indices=[2])"  # type: ignore[arg-type]
    assert repr(SparseLabels(torch.tensor(3), torch.tensor(4))).startswith("SparseLabels(crow")


def test_a_tuple_for_torch_and_python() -> None:
    labels = SparseLabels.from_lists(ROWS)
    for other in (
        pickle.loads(pickle.dumps(labels)),
        copy.deepcopy(labels),
        copy.copy(labels),
        labels._replace(),
        pytree.tree_map(torch.clone, labels),
        pytree.tree_unflatten(*pytree.tree_flatten(labels)),
    ):
        assert_labels(other, ROWS)
    assert pytree.tree_map(id, labels) == (id(labels.crow_indices), id(labels.col_indices))
    _, spec = pytree.tree_flatten(([labels], {"a": labels}))
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    crow, col = labels
    assert crow is labels.crow_indices
    assert col is labels.col_indices


def test_one_iterable_of_both_fields() -> None:
    """Trainers rebuild a batch in one of these ways."""

    def rebuilt(labels: SparseLabels) -> list[SparseLabels]:
        kind = type(labels)
        return [
            kind(t + 0 for t in labels),
            kind([t + 0 for t in labels]),
            kind(labels),
            kind(*(t + 0 for t in labels)),
            kind(col_indices=labels.col_indices, crow_indices=labels.crow_indices),
            kind._make(t + 0 for t in labels),
            labels._replace(col_indices=labels.col_indices + 0),
            pytree.tree_map(lambda t: t + 0, labels),
        ]

    labels = SparseLabels.from_lists(ROWS)
    for made in rebuilt(labels):
        assert_labels(made, ROWS)
    if (
        torch.__version__ >= "2.13"
    ):  # torch.compile of 2.11 does not call the constructor of a named tuple
        for made in torch.compile(rebuilt, fullgraph=True, backend="eager")(labels):
            assert_labels(made, ROWS)
    twice = SparseLabels(torch.stack([t, t]) for t in labels)  # type: ignore[call-arg, arg-type]
    for made in torch.vmap(rebuilt)(twice):
        assert_labels(SparseLabels(*(t[1] for t in made)), ROWS)
    arrays = SparseLabels(t.numpy() for t in labels)  # type: ignore[call-arg, arg-type]
    assert type(arrays.col_indices) is np.ndarray


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ([[1], [2]], r"2 of list, list; lists of labels go to SparseLabels.from_lists"),
        ([[1], [2, 3], [4]], r"3 of list, list, list; lists of labels go to "),
        ([], r"none; "),
        (range(2), r"2 of int, int; "),
        ((torch.tensor([i]) for i in range(3)), r"3 of Tensor, Tensor, Tensor; "),
        (torch.zeros(2, 3), r"one Tensor$"),
        (7, r"one int$"),
        (None, r"one NoneType$"),
    ],
)
def test_one_argument_that_is_not_both_fields(given: Any, got: str) -> None:
    words = r"^SparseLabels must be given crow_indices and col_indices, or one .* of both, got "
    with pytest.raises(TypeError, match=words + got):
        SparseLabels(given)
    for wrong in ((), (1, 2, 3)):
        with pytest.raises(TypeError, match=r"^SparseLabels\.__new__\(\) "):
            SparseLabels(*wrong)


def test_indices_of_the_tuple() -> None:
    """0 and 1 are the tensors, as torch itself asks for them; all that would be rows raises."""
    labels = SparseLabels.from_lists(ROWS)
    assert len(labels) == 2
    assert bool(labels)
    assert labels[0] is labels.crow_indices
    assert labels[1] is labels.col_indices
    wrong = (slice(2), [0], torch.tensor(0), torch.tensor([True]), np.int64(0), True, "0", (0, 1))
    words = r"^SparseLabels must not be indexed for rows, got {}: use select or split$"
    for index in wrong:
        with pytest.raises(TypeError, match=words.format(type(index).__name__)):
            labels[index]
    with pytest.raises(TypeError, match=r"must not be added, which joins tuples: use Spa.*\.cat$"):
        labels + labels
    for number in (2, -1, -2):
        with pytest.raises(IndexError, match=words.format(number)):
            labels[number]
    x = torch.ones(2)  # torch's parser reads the element 0
    assert x != labels
    for call in (x.add, x.view, x.sum, torch.zeros, torch.sum):
        with pytest.raises((TypeError, RuntimeError)):
            call(labels)


def test_equality() -> None:
    labels, same = SparseLabels.from_lists(ROWS), SparseLabels.from_lists(ROWS)
    other, shorter = SparseLabels.from_lists([*ROWS[:4], [1]]), labels.select(slice(4))
    for equal in (
        labels,
        same,
        labels.to(torch.int32),
        tuple(same),
        pickle.loads(pickle.dumps(same)),
    ):
        assert labels == equal
        assert equal == labels
        assert (labels != equal) is False
    for unequal in (other, shorter, labels.to("meta"), tuple(other), (1, 2), (), None, 0, "0"):
        assert labels != unequal
        assert unequal != labels
        assert (labels == unequal) is False
    assert hash(labels) == hash(same) == hash(labels.to(torch.int32))
    assert {labels: 1}[same] == 1
    assert [other, labels].index(same) == 1
    arrays = [SparseLabels(*(t.numpy() for t in made)) for made in (labels, same, other)]
    assert arrays[0] == arrays[1]
    assert arrays[0] != arrays[2]
    assert SparseLabels(1, [2]) == (1, [2])  # type: ignore[arg-type]
    assert hash(SparseLabels(1, 2)) == hash((1, 2))  # type: ignore[arg-type]


EXPORTED = """
import sys, torch, weighted_bce
labels = weighted_bce.SparseLabels.from_lists([[1], [0, 2], []])
for path in sys.argv[1:]:
    print(torch.export.load(path).module()(torch.arange(6.0), labels).tolist())
"""


def test_export(tmp_path: Path) -> None:
    """A saved program takes them as input, in another process too."""

    class Counts(torch.nn.Module):
        def forward(self, x: Tensor, labels: SparseLabels) -> Tensor:
            return x.index_add(0, labels.col_indices, torch.ones_like(labels.col_indices).float())

    args = torch.zeros(6), SparseLabels.from_lists([[5], [4, 5], []])
    paths = [str(tmp_path / name) for name in ("strict.pt2", "not_strict.pt2")]
    for path, strict in zip(paths, (True, False), strict=True):
        torch.export.save(torch.export.export(Counts(), args, strict=strict), path)
        loaded = torch.export.load(path).module()
        assert loaded(*args).tolist() == [0, 0, 0, 0, 1, 2]
    assert run_python(EXPORTED, *paths)[0] == "[1.0, 2.0, 3.0, 3.0, 4.0, 5.0]\n" * 2


def test_compile() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def rebuilt(labels: SparseLabels) -> tuple[int, SparseLabels]:
        return labels.num_rows, SparseLabels(labels.crow_indices + 0, labels.col_indices)

    rows, labels = rebuilt(SparseLabels.from_lists(ROWS))
    assert rows == 5
    assert_labels(labels, ROWS)
