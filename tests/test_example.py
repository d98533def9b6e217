"""The example of several losses reads its data right, counts right, and runs from end to end."""

import gzip
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
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from examples import comparison, data, losses, python_imports, report, sparse_labels
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
    np.testing.assert_allclose(made.features.sum(1), 1, rtol=1e-6)
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


def test_counts_are_sklearns_averages() -> None:
    scores, target = torch.randn(30, 9).numpy(), torch.rand(30, 9).numpy() < 0.2
    target[3] = False
    predicted = scores > 1
    scores[5, 3:] = scores[5, 3]  # a tie
    counts = [
        comparison.counted(scores[i:j], predicted[i:j], csr_matrix(target[i:j]))
        for i, j in ((0, 11), (11, 30))
    ]
    micro = precision_recall_fscore_support(target, predicted, average="micro")[:3]
    some = target.any(1)
    ranking = average_precision_score(target[some], scores[some], average="samples")
    per_row = predicted.sum() / 30, target.sum() / 30, (~predicted.any(1)).mean()
    assert comparison.quality(30, counts) == pytest.approx((*micro, ranking, *per_row))

    nothing = np.zeros((2, 3), bool)
    counts = [comparison.counted(nothing * 1.0, nothing, csr_matrix(nothing))]
    assert comparison.quality(2, counts) == (0, 0, 0, 0, 0, 0, 1)


def test_training_repeats_itself_and_ours_is_the_masked_multiply(data_file: Path) -> None:
    train, test = dataset_of_file(data_file).split(0)
    by_name = {loss.name: loss for loss in losses.LOSSES}

    def quality(name: str) -> tuple[float, ...]:
        model = comparison.fit(train, by_name[name], 10, 0, Progress(disable=True))
        return comparison.evaluate(model, test, by_name[name], train.positives_per_row)

    ours = quality("ours, weight 7")
    assert quality("ours, weight 7") == ours
    assert quality("masked multiply, 7") == pytest.approx(ours, abs=0.02)
    assert ours[1] > 0.5  # recall


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_of_ours_is_one_gradient() -> None:
    rows, labels = 1024, 4096
    peak = losses.peak_bytes(losses.LOSSES[-1], rows, labels, 6.0)
    if peak is None:
        pytest.skip("the high-water mark cannot be reset here")
    assert 0.9 * 4 * rows * labels < peak < 1.6 * 4 * rows * labels


def made_up(kind: str, weight: float, predicted: float, empty: float) -> report.Result:
    quality = (0.5, 0.5, 0.5, 0.5, predicted, 4.0, empty)
    return report.Result(kind, kind, weight, *quality, 1.0, None)


@pytest.mark.parametrize(
    ("empty", "heavy", "verdicts"),
    [(1.0, 90.0, ("Yes", "Yes")), (0.7, 9.0, ("Mostly", "No")), (0.1, 9.0, ("No", "No"))],
)
def test_answers_follow_from_the_results(
    empty: float, heavy: float, verdicts: tuple[str, str]
) -> None:
    results = [made_up("plain", 1.0, 1 - empty, empty), made_up("ours", 300.0, heavy, 0.0)]
    for sentence, verdict in zip(report.answers(results, 100), verdicts, strict=True):
        assert f"? {verdict}: " in sentence


def test_end_to_end(
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "peak_bytes", lambda *_: 2**20)  # saves seven processes
    monkeypatch.delattr(SparseLabels, "to_dense")  # no dense target is made
    out = tmp_path / "new" / "out"
    arguments = ["--data", str(data_file), "--epochs", "2", "--out", str(out)]
    assert sparse_labels.main(arguments) == 0
    printed = capsys.readouterr().out
    for words in ("80 rows, 12 labels", "ours, weight 300", "collapse to zeros?", "to ones?"):
        assert words in printed
    assert (out / "sparse_labels.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "sparse_labels.svg").read_text()
    saved = json.loads((out / "sparse_labels.json").read_text())
    assert [row["loss"] for row in saved["losses"]] == [loss.name for loss in losses.LOSSES]
