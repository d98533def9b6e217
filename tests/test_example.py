"""The example of several losses reads its data right, counts right, and runs from end to end."""

import gzip
import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from rich.progress import Progress
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from examples import comparison, data, losses, measures, python_imports, report, sparse_labels
from examples.data import dataset_of_file
from examples.program import UserError
from examples.python_imports import BUCKETS, Facts
from weighted_bce import SparseLabels

from . import svmlight
from .svmlight import FEATURES, LABELS, ROWS


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.txt"
    path.write_text(svmlight.text())
    return path


def test_names_are_features_and_import_lines_are_not() -> None:
    source = "import os.path as p, sys\nfrom json import loads\n\ndef f(a):\n    return p.join(a)\n"
    names = sorted(zlib.crc32(name) % BUCKETS for name in (b"p", b"join", b"a"))
    assert python_imports.facts_of_source(source) == Facts(names, ["json", "os.path", "sys"])
    relative = "from . import x\nfrom .near import x\nfrom ..far import x\nfrom ... import x"
    modules = python_imports.facts_of_source(relative, ("top", "sub")).modules
    assert modules == ["top.far", "top.sub", "top.sub.near"]


def test_unreadable_and_unparsable_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "zero.py").write_bytes(b"x = 1\0")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "good.py").write_text("import os\nos.getcwd()\n")
    names = [path for _, path in python_imports.python_files([str(tmp_path)])]
    assert names == ["broken.py", "good.py", "latin.py", "zero.py"]
    facts = [python_imports._facts_of_file((str(tmp_path), name)) for name in (*names, "none.py")]
    assert [one is not None for one in facts] == [False, True, False, False, False]


def test_rare_modules_are_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Facts([i, i + 1], ["often"] + ["rare"] * (i == 0)) for i in range(12)]
    facts += [Facts([], ["often"]), Facts([1], ["rare"]), None]
    monkeypatch.setattr(data, "MIN_COUNT", 13)
    made = data.dataset_of_facts(facts, "made up")
    assert (made.labels.shape, made.features.shape) == ((12, 1), (12, BUCKETS))
    np.testing.assert_allclose(made.features.power(2).sum(1), 1, rtol=1e-6)
    monkeypatch.setattr(data, "MIN_COUNT", 50)
    with pytest.raises(UserError, match="only 0 files import"):
        data.dataset_of_facts(facts, "made up")


def test_how_many_files_of_the_environment_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        (tmp_path / f"{i}.py").write_text("import os\nos.getcwd()\n")
    files = list(python_imports.python_files([str(tmp_path)]))
    monkeypatch.setattr(python_imports, "python_files", lambda roots: files)
    monkeypatch.setattr(python_imports, "FILES", 12)

    def read(number: int | None) -> str:
        return data.read("imports", number, 0, Progress(disable=True)).source

    assert read(None) == "imports of 12 Python files"
    monkeypatch.setattr(python_imports, "READ_SECONDS", -1)
    assert read(15) == "imports of 15 Python files"  # there is no limit of time
    with pytest.raises(UserError, match="only 0 files import"):
        read(None)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_svmlight_files_with_and_without_header(tmp_path: Path, header: bool, packed: bool) -> None:
    path = tmp_path / ("rows.txt.gz" if packed else "rows.txt")
    with (gzip.open if packed else open)(path, "wt") as file:
        file.write(svmlight.text() if header else "\n".join(svmlight.lines()))
    read = dataset_of_file(path)
    assert (read.features.shape, read.labels.shape) == ((ROWS, FEATURES), (ROWS, LABELS))
    assert read.features[0].indices.tolist() == [3, 7]
    values = np.array([1.5, 0.25])
    np.testing.assert_allclose(read.features[0].data, values / np.linalg.norm(values), rtol=1e-6)
    for line, labels in zip(svmlight.lines(), read.labels, strict=True):
        expected = [int(label) for label in line.partition(" ")[0].split(",") if label]
        assert labels.indices.tolist() == expected
    assert dataset_of_file(path, rows=20).labels.shape[0] == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 rows"),
        ("hello: world\n", "is not svmlight multilabel data"),
        ("3 4 5\n0 1:1\n", "announces 3 rows and has 1"),
        ("12 4 5\n" + "5 1:1\n" * 12, "announces 5 labels and has the label 5"),
        ("0.5 1:1\n" * 12, "whole numbers"),
        ("-1 1:1\n" * 12, "whole numbers"),
        (" 1:1\n" * 12, "has no labels"),
        (None, "No such file"),
    ],
)
def test_malformed_files_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = tmp_path / "bad.txt"
    if text is not None:
        path.write_text(text)
    assert sparse_labels.main(["--data", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_rows_are_split_by_the_seed_and_trained_on_once_an_epoch(data_file: Path) -> None:
    read = dataset_of_file(data_file)
    train, test = read.split(1)
    assert (train.labels.shape[0], test.labels.shape[0]) == (64, 16)
    assert train.labels.nnz + test.labels.nnz == read.labels.nnz
    assert (read.split(1)[1].labels != test.labels).nnz == 0
    batches = list(read.batches(3, seed=0, size=32))
    assert [len(rows) for rows in batches] == [32, 32, 16] * 3
    assert np.bincount(np.concatenate(batches)).tolist() == [3] * ROWS
    assert np.concatenate(batches[:3]).tolist() != np.concatenate(batches[3:6]).tolist()


def some_scores() -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels: label 4 is never true, row 3 has none."""
    scores, target = torch.randn(30, 9).numpy().round(1), torch.rand(30, 9).numpy() < 0.3
    target[3], target[:, 4] = False, False
    return scores, target


def test_predictions_and_average_precision_are_sklearns() -> None:
    scores, target = some_scores()
    labels, some = csr_matrix(target), target.any(0)
    predicted = scores >= 1
    micro = precision_recall_fscore_support(target, predicted, average="micro")[:3]
    macro = f1_score(target[:, some], predicted[:, some], average="macro", zero_division=0)
    rows = predicted.sum() / 30, (~predicted.any(1)).mean()
    assert measures.predictions(scores, labels, 1) == pytest.approx((*micro, macro, *rows))
    assert measures.predictions(scores, labels, 99) == (0, 0, 0, 0, 0, 1)
    expected = average_precision_score(target[:, some], scores[:, some], average="macro")
    assert measures.mean_average_precision(scores, labels) == pytest.approx(expected)


def test_best_threshold_is_that_of_all() -> None:
    for _ in range(5):
        scores, target = some_scores()
        every = [f1_score(target, scores >= t, average="micro") for t in np.unique(scores)]
        best = measures.best_threshold(scores, csr_matrix(target))
        assert f1_score(target, scores >= best, average="micro") == pytest.approx(max(every))


def test_ranking_of_a_small_case() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6]])
    true = csr_matrix([[1, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 0]], dtype=bool)
    rows = data.Dataset("two rows", csr_matrix(logits.numpy()), true)

    class Same(torch.nn.Module):
        def forward(self, features: csr_matrix) -> torch.Tensor:
            return torch.from_numpy(features.toarray())

    plain, categorical = losses.LOSSES[:2]
    quality = comparison.evaluate(Same(), plain, rows, rows, 2.0)
    assert (quality.precision_at_1, quality.precision_at_5) == (0.5, pytest.approx(0.3))
    assert quality.at_half.per_row == 7
    assert quality.threshold == 5  # two of its four predictions are true, and two of four labels
    # The first labels of a row have the softmax 0.633, 0.233 and 0.086; 0.5 / 2.3 is 0.217.
    softmax = comparison.evaluate(Same(), categorical, rows, rows, 2.3)
    assert softmax.at_half.per_row == 2
    assert softmax[4:] == quality[4:]
    firsts = rows._replace(labels=csr_matrix(logits.numpy() == 6))
    chosen = comparison.evaluate(Same(), plain, firsts, rows, 2.0)
    assert (chosen.threshold, chosen.at_best.per_row, chosen.at_best.precision) == (6, 1, 0.5)


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
    with pytest.raises(UserError, match="none to test on, has a label"):
        comparison.parts(read._replace(labels=csr_matrix((ROWS, LABELS), dtype=bool)), 1)


def test_training_repeats_itself_and_ours_is_the_masked_multiply(data_file: Path) -> None:
    three = comparison.parts(dataset_of_file(data_file), 0)
    by_name = {loss.name: loss for loss in losses.LOSSES}

    def quality(name: str, prior: bool) -> report.Quality:
        model = comparison.fit(three[0], by_name[name], prior, 10, 0, Progress(disable=True))
        return comparison.evaluate(model, by_name[name], *three[1:], three[0].positives_per_row)

    for prior in (False, True):
        ours = quality("ours, weight 7", prior)
        assert quality("ours, weight 7", prior) == ours
        masked = quality("masked multiply, 7", prior)
        assert masked.at_half == pytest.approx(ours.at_half, abs=0.02)
        assert masked[2:] == pytest.approx(ours[2:], abs=0.02)
        assert ours.mean_average_precision > 0.6


def test_the_bias_starts_at_zero_or_at_the_prior(data_file: Path) -> None:
    read, (loss, *_) = dataset_of_file(data_file), losses.LOSSES
    prior = loss.first_bias(SparseLabels.from_scipy(read.labels), LABELS)
    for start, expected in ((False, torch.zeros(LABELS)), (True, prior)):
        model = comparison.fit(read, loss, start, 0, 0, Progress(disable=True))
        torch.testing.assert_close(model[1].bias.detach(), expected)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_of_ours_is_one_gradient() -> None:
    rows, labels = 1024, 4096
    peaks = losses.peak_bytes(losses.LOSSES, rows, labels, 6.0)
    if peaks is None:
        pytest.skip("the high-water mark cannot be reset here")
    for loss, peak in zip(losses.LOSSES, peaks, strict=True):
        gradients = peak / (4 * rows * labels)
        assert (0.9 < gradients < 1.2) == loss.name.startswith("ours"), loss.name


def made_up(kind: str, weight: float, prior: bool, predicted: float, empty: float) -> report.Result:
    half = measures.Predictions(0.5, 0.5, 0.5, 0.4, predicted, empty)
    best = half._replace(f1=0.6 + 0.1 * prior)
    quality = report.Quality(half, best, -1.5, 0.3 - 0.1 * prior, 0.8, 0.5)
    return report.Result(kind, kind, weight, prior, quality, 1.0, None)


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
    assert sum(line.startswith("  from the prior ") for line in lines) == 2 * len(compared)
    for loss in compared:
        assert sum(line.startswith(f"{loss.name} ") for line in lines) == 2
    assert ("collapse to zeros?" in printed) == ("plain" in kinds)
    assert ("to ones?" in printed) == ("weighted" in kinds)
    for words in ("80 rows, 12 labels", "P@5", "Does it matter where the bias starts?"):
        assert words in printed
    assert (out / "sparse_labels.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "sparse_labels.svg").read_text()
    saved = json.loads((out / "sparse_labels.json").read_text())["losses"]
    assert [row["loss"] for row in saved[::2]] == [loss.name for loss in compared]
    assert {"f1", "macro_f1"} < saved[0]["quality"]["at_best"].keys()


def test_wrong_losses_and_few_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sparse_labels.main(["--losses", "focal", "hinge"])
    assert "invalid choice: 'hinge'" in capsys.readouterr().err
    path = tmp_path / "few.txt"
    path.write_text("0,1 1:1\n" * 12)
    assert sparse_labels.main(["--data", str(path), "--out", str(tmp_path)]) == 2
    assert "2 labels are too few: the first 5 are ranked" in capsys.readouterr().err
