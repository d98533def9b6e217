"""The example of several losses counts right, and runs from end to end."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from rich.progress import Progress
from scipy.sparse import csr_matrix

from examples import comparison, losses, measures, report, sparse_labels
from examples.data import dataset_of_file
from tools.program import Refusal
from weighted_bce import SparseLabels

from . import svmlight
from .svmlight import LABELS, ROWS

PLAIN_TORCH = ("plain", "categorical", "masked")


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.txt"
    path.write_text(svmlight.text())
    return path


def test_balanced_weights_are_those_of_the_rows_to_train_on() -> None:
    target = torch.rand(50, 6) < 0.3
    labels, x = SparseLabels.from_dense(target), torch.randn(50, 6)
    count = target.sum(0)
    for name, weight in (
        ("ours, balanced", (50 - count) / count),
        ("ours, root balanced", ((50 - count) / count).sqrt()),
    ):
        (loss,) = (one for one in losses.LOSSES if one.name == name)
        fitted = loss.on(labels, 6)
        expected = F.binary_cross_entropy_with_logits(x, target.float(), pos_weight=weight)
        torch.testing.assert_close(fitted.function(x, labels), expected)
        torch.testing.assert_close(fitted.shift(), weight.log())
        assert (loss.pos_weight, loss.shift()) == (None, None)


@pytest.mark.parametrize("loss", losses.LOSSES, ids=lambda loss: loss.name)
def test_first_bias_predicts_the_frequencies(loss: losses.Loss) -> None:
    target = torch.rand(200, 12) < 0.3
    bias = loss.first_bias(SparseLabels.from_dense(target), 12)
    counts = target.sum(0)
    if loss.kind == "categorical":
        torch.testing.assert_close(bias.softmax(0), counts / counts.sum())
    else:
        torch.testing.assert_close(bias.sigmoid(), counts / 200)


def test_validation_and_test_rows_are_apart_and_few(
    data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = dataset_of_file(data_file)
    numbers = csr_matrix(np.arange(ROWS, dtype=np.float32)[:, None])
    three = comparison.parts(read._replace(features=numbers), 1)
    drawn = [part.features.toarray().ravel().tolist() for part in three]
    assert [len(rows) for rows in drawn] == [52, 12, 16]
    assert sorted(itertools.chain(*drawn)) == list(range(ROWS))
    monkeypatch.setattr(comparison, "SCORES", 10 * LABELS)
    assert [part.labels.shape[0] for part in comparison.parts(read, 1)] == [52, 10, 10]
    with pytest.raises(Refusal, match="none to test on, has a label"):
        comparison.parts(read._replace(labels=csr_matrix((ROWS, LABELS), dtype=bool)), 1)


def test_training_repeats_itself_and_ours_is_the_masked_multiply(data_file: Path) -> None:
    three = comparison.parts(dataset_of_file(data_file), 0)
    by_name = {loss.name: loss for loss in losses.LOSSES}

    def quality(name: str, prior: bool) -> report.Quality:
        length = (10, 0.02)
        model = comparison.fit(three[0], by_name[name], prior, *length, 0, Progress(disable=True))
        return comparison.evaluate(model, by_name[name], *three[1:], three[0].positives_per_row)

    for prior in (False, True):
        ours = quality("ours, weight 7", prior)
        assert quality("ours, weight 7", prior) == ours
        masked = quality("masked multiply, 7", prior)
        assert masked.at_half == pytest.approx(ours.at_half, abs=0.02)
        assert masked[2:7] == pytest.approx(ours[2:7], abs=0.02)
        assert ours.mean_average_precision > 0.6


def test_the_bias_starts_at_zero_or_at_the_prior(data_file: Path) -> None:
    read, (loss, *_) = dataset_of_file(data_file), losses.LOSSES
    prior = loss.first_bias(SparseLabels.from_scipy(read.labels), LABELS)
    for start, expected in ((False, torch.zeros(LABELS)), (True, prior)):
        model = comparison.fit(read, loss, start, 0, 0.02, 0, Progress(disable=True))
        torch.testing.assert_close(model[1].bias.detach(), expected)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_of_ours_is_one_gradient() -> None:
    rows, labels = 1024, 4096
    peaks = losses.peak_bytes(losses.LOSSES, rows, labels, 6.0)
    if peaks is None:
        pytest.skip("the high-water mark cannot be reset here")
    for loss, peak in zip(losses.LOSSES, peaks, strict=True):
        gradients = peak / (4 * rows * labels)
        assert (0.9 < gradients < 1.2) == (loss.kind not in PLAIN_TORCH), loss.name


def made_up(kind: str, weight: float, prior: bool, predicted: float, empty: float) -> report.Result:
    half = measures.Predictions(0.5, 0.5, 0.5, 0.4, predicted, empty)
    best = half._replace(f1=0.6 + 0.1 * prior)
    quality = report.Quality(half, best, -1.5, 0.3 - 0.1 * prior, 0.8, 0.5, 0.6, None, None)
    return report.Result(kind, kind, weight, prior, [quality], 1.0, None)


@pytest.mark.parametrize(
    ("empty", "heavy", "verdicts"),
    [(1.0, 90.0, ("Yes", "Yes")), (0.7, 9.0, ("Mostly", "No")), (0.1, 9.0, ("No", "No"))],
)
def test_answers_follow_from_the_results(
    empty: float, heavy: float, verdicts: tuple[str, str]
) -> None:
    results = [
        *(made_up("plain", 1.0, prior, 1 - empty, empty) for prior in (False, True)),
        *(made_up("weighted", 300.0, prior, heavy, 0.0) for prior in (False, True)),
    ]
    *two, start = report.answers(results, 4.0, 100)
    for sentence, verdict in zip(two, verdicts, strict=True):
        assert f"? {verdict}: " in sentence
    assert "rises for 2 of 2 losses (+0.100 to +0.100" in start
    assert "best, 0.700, with plain from the prior; mAP rises for 0 of 2" in start
    assert "best, 0.300, with plain." in start
    assert len(report.answers(results[:2], 4.0, 100)) == 2


def test_tables_have_the_mean_and_the_deviation_over_seeds() -> None:
    one = made_up("plain", 1.0, True, 3.0, 0.25)
    half, best, *rest = one.qualities[0]
    calibration = measures.Calibration(2.0, 0.5, (8.0,), (4.0,), (2.0,))
    first = report.Quality(half, best, *rest[:-2], calibration, None)
    another = calibration._replace(per_row=5.0, pairs=(9.0,))
    second = report.Quality(half._replace(per_row=0.0), best, *rest[:-2], another, None)
    both = one._replace(qualities=[first, second])
    assert both.quality.at_half.per_row == 1.5
    assert both.quality.calibration == (3.5, 0.5, (8.5,), (4.0,), (2.0,))
    at_half, _, probabilities = report.tables([both], 4.0, 8, 100, 4.0)
    (cells,) = at_half.rows
    # Without a prediction there is no precision.
    assert cells[:3] == ["  from the prior", "0.500", "0.500\n±.000"]
    assert cells[5:] == ["1.50\n±2.12", "25.0%\n±.0%", "", ""]
    (cells,) = probabilities.rows
    assert cells[1:4] == ["3.50\n±2.12", "0.50\n±.00", "-"]
    assert "2 seeds" in probabilities.legend
    at_half, _ = report.tables([one], 4.0, 8, 100, 4.0)  # there are no probabilities
    assert at_half.rows[0][6] == "25.0%"
    assert "seeds" not in at_half.legend


@pytest.mark.parametrize("some", [[], ["--losses", "focal", "plain"], ["--losses", "focal"]])
def test_end_to_end(
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    some: list[str],
) -> None:
    monkeypatch.setattr(comparison, "peak_bytes", lambda *_: None)  # saves a process
    monkeypatch.delattr(SparseLabels, "to_dense")  # no dense target is made
    out = tmp_path / "new" / "out"
    arguments = ["--data", str(data_file), "--epochs", "2", "--out", str(out), *some]
    assert sparse_labels.main(arguments) == 0
    printed = capsys.readouterr().out
    kinds = some[1:] or sparse_labels.COMPARED
    compared = [loss for loss in losses.LOSSES if loss.kind in kinds]
    tables, _, _ = printed.rpartition("\n\n")
    lines = tables.splitlines()
    assert max(map(len, lines)) <= 80  # they fit into a terminal
    tables_of = [2 + loss.calibrated() for loss in compared]
    assert sum(line.startswith("  from the prior ") for line in lines) == sum(tables_of)
    for loss, number in zip(compared, tables_of, strict=True):
        assert sum(line.startswith(f"{loss.name} ") for line in lines) == number
    assert ("collapse to zeros?" in printed) == ("plain" in kinds)
    assert ("to ones?" in printed) == ("weighted" in kinds)
    for words in ("80 rows, 12 labels", "P@5", "Does it matter where the bias starts?"):
        assert words in printed
    assert (out / "sparse_labels.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "sparse_labels.svg").read_text()
    saved = json.loads((out / "sparse_labels.json").read_text())["losses"]
    assert [row["loss"] for row in saved[::2]] == [loss.name for loss in compared]
    assert {"f1", "macro_f1"} < saved[0]["quality"]["at_best"].keys()
    quality = saved[0]["quality"]
    counts = ("pairs", "expected", "true")
    sums = [sum(quality["calibration"].pop(name)) for name in counts if quality["calibration"]]
    assert saved[0]["qualities"] == [quality]  # bins are kept of the mean alone
    assert sums[:1] in ([], [16 * LABELS])  # each pair of a test row and a label is in a bin


def test_several_seeds(
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "peak_bytes", lambda *_: None)

    def losses_of(*seeds: str) -> list[dict]:
        arguments = [
            "--data",
            str(data_file),
            "--epochs",
            "9",
            "--losses",
            "weighted",
            "categorical",
        ]
        assert sparse_labels.main([*arguments, "--out", str(tmp_path), *seeds]) == 0
        return json.loads((tmp_path / "sparse_labels.json").read_text())["losses"]

    both = losses_of("--seed", "3", "--seeds", "2")
    printed = capsys.readouterr().out
    assert "±" in printed
    assert max(map(len, printed.rpartition("\n\n")[0].splitlines())) <= 80
    for k, seed in enumerate("34"):
        alone = losses_of("--seed", seed)
        assert [row["qualities"] for row in alone] == [[row["qualities"][k]] for row in both]
    assert "±" not in capsys.readouterr().out
    first, second = both[-1]["qualities"]
    assert first["precision_at_1"] != second["precision_at_1"]
    mean = (first["threshold"] + second["threshold"]) / 2
    assert both[-1]["quality"]["threshold"] == pytest.approx(mean, abs=1e-4)
    assert both[0]["quality"]["undone"] is None
    # It raises each logit, and with it the sum of a row's probabilities.
    heavy = both[-1]["quality"]
    assert heavy["calibration"]["per_row"] > heavy["undone"]["calibration"]["per_row"]


def test_the_learning_rate_is_given(
    data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "peak_bytes", lambda *_: None)
    arguments = ["--data", str(data_file), "--losses", "plain", "--out", str(tmp_path)]
    recalls = []
    for rate in ("1e-6", "0.02"):
        assert sparse_labels.main([*arguments, "--epochs", "20", "--learning-rate", rate]) == 0
        saved = json.loads((tmp_path / "sparse_labels.json").read_text())
        assert saved["learning_rate"] == float(rate)
        recalls.append(saved["losses"][1]["quality"]["at_half"]["recall"])
    assert recalls[0] == 0 < recalls[1]


def test_wrong_losses_and_few_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sparse_labels.main(["--losses", "focal", "hinge"])
    assert "invalid choice: 'hinge'" in capsys.readouterr().err
    path = tmp_path / "few.txt"
    path.write_text("0,1 1:1\n" * 12)
    assert sparse_labels.main(["--data", str(path), "--out", str(tmp_path)]) == 2
    assert "2 labels are too few: the first 5 are ranked" in capsys.readouterr().err
