"""What Accelerate and Transformers do to the fields of a batch: right labels, or a clear error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from weighted_bce import SparseLabels, pos_weight_from_labels, weighted_bce_with_logits

operations = pytest.importorskip("accelerate.utils.operations")
ROWS = [[1, 2], [], [3], [0, 4]]
NUM_LABELS = 5
LABELS = SparseLabels.from_lists(ROWS)
OTHERS = SparseLabels.from_lists([[4], [2, 3]])


def moved(batch: Any) -> Any:
    return operations.send_to_device(batch, torch.device("cpu"), non_blocking=True)


def described(batch: Any) -> Any:
    """What other processes get before the values arrive."""
    return operations.initialize_tensors(operations.get_data_structure(batch))


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: (t, t), lambda t: {"labels": t}])
def test_moves_keep_labels(wrap: Callable[[Any], Any]) -> None:
    batch = wrap(LABELS)
    for move in (moved, operations.convert_to_fp32, described):
        result = move(batch)
        assert type(result) is type(batch)
        while not isinstance(result, SparseLabels):
            result = result["labels"] if isinstance(result, dict) else result[1]
        assert [t.shape for t in result] == [t.shape for t in LABELS]
        assert move is described or torch.equal(result.col_indices, LABELS.col_indices)
    assert operations.find_device(batch) == torch.device("cpu")


def test_features_measure_a_batch() -> None:
    """Both libraries take the first tensor, so labels come after the features."""
    utilities = pytest.importorskip("transformers.trainer_pt_utils")
    for batch in ((torch.ones(4, 2), LABELS), {"x": torch.ones(4, 2), "labels": LABELS}):
        assert operations.find_batch_size(batch) == utilities.find_batch_size(batch) == 4


def joined_by_transformers() -> SparseLabels:
    utilities = pytest.importorskip("transformers.trainer_pt_utils")
    return utilities.nested_concat(LABELS, OTHERS)  # type: ignore[no-any-return]


def joined_by_accelerate() -> SparseLabels:
    return operations.concatenate([LABELS, OTHERS])  # type: ignore[no-any-return]


def cut_by_accelerate() -> SparseLabels:
    return operations.slice_tensors(LABELS, slice(1, 3))  # type: ignore[no-any-return]


USES: dict[str, Callable[[SparseLabels], Any]] = {
    "to_dense": lambda labels: labels.to_dense(NUM_LABELS),
    "select": lambda labels: labels.select(torch.tensor([0])),
    "pos_weight": lambda labels: pos_weight_from_labels(labels, NUM_LABELS),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("make", [joined_by_transformers, joined_by_accelerate, cut_by_accelerate])
def test_malformed_labels_are_named(make: Callable[[], SparseLabels], use: str) -> None:
    labels = make()
    assert type(labels) is SparseLabels
    with pytest.raises(ValueError, match="crow_indices must "):
        USES[use](labels)


@pytest.mark.parametrize(
    ("make", "rows"),
    [(joined_by_transformers, 6), (joined_by_accelerate, 6), (cut_by_accelerate, 2)],
)
def test_the_loss_has_another_number_of_rows(make: Callable[[], SparseLabels], rows: int) -> None:
    """Whatever the values are, on any device: the fields have one element more, or less."""
    logits = torch.zeros(rows, NUM_LABELS)
    with pytest.raises(ValueError, match=f"target must have {rows} rows to match input, got"):
        weighted_bce_with_logits(logits, make())
    meta = SparseLabels(t.to("meta") for t in make())
    with pytest.raises(ValueError, match=f"target must have {rows} rows to match input, got"):
        weighted_bce_with_logits(logits.to("meta"), meta)


def test_arrays_of_transformers_are_named() -> None:
    """Its compute_metrics gets arrays."""
    utilities = pytest.importorskip("transformers.trainer_pt_utils")
    labels = utilities.nested_numpify(LABELS)
    with pytest.raises(TypeError, match=r"crow_indices must be a torch\.Tensor, got ndarray"):
        labels.to_dense(NUM_LABELS)
    labels = SparseLabels(torch.from_numpy(t) for t in labels)
    assert torch.equal(labels.to_dense(NUM_LABELS), LABELS.to_dense(NUM_LABELS))
