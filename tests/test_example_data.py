"""The examples read their data right, and split them."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from rich.progress import Progress

from examples import data, debian_packages, python_imports, sparse_labels
from examples.data import dataset_of_file
from examples.facts import BUCKETS, Facts, hashed
from tools.program import Refusal

from . import svmlight
from .svmlight import FEATURES, LABELS, ROWS


def test_names_are_features_and_import_lines_are_not() -> None:
    source = "import os.path as p, sys\nfrom json import loads\n\ndef f(a):\n    return p.join(a)\n"
    names = sorted(zlib.crc32(name) % BUCKETS for name in (b"p", b"join", b"a"))
    assert python_imports.facts_of_source(source) == Facts(names, ["json", "os.path", "sys"])
    relative = "from . import x\nfrom .near import x\nfrom ..far import x\nfrom ... import x"
    modules = python_imports.facts_of_source(relative, ("top", "sub")).names
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


def test_rare_names_are_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Facts([i, i + 1], ["often"] + ["rare"] * (i == 0)) for i in range(12)]
    facts += [Facts([], ["often"]), Facts([1], ["rare"]), None]
    monkeypatch.setattr(data, "MIN_COUNT", 13)
    made = data.dataset_of_facts(facts, "made up")
    assert (made.labels.shape, made.features.shape) == ((12, 1), (12, BUCKETS))
    np.testing.assert_allclose(made.features.power(2).sum(1), 1, rtol=1e-6)
    monkeypatch.setattr(data, "MIN_COUNT", 50)
    with pytest.raises(Refusal, match="only 0 rows have a word and a label"):
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
    with pytest.raises(Refusal, match="only 0 rows have a word and a label"):
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


COMPRESSED = gzip.compress(svmlight.text().encode(), mtime=0).decode("latin1")
CUT_GZIP, BAD_GZIP = COMPRESSED[:60], COMPRESSED[:30] + "\0" * 99


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
        ("1 1:nan\n" * 12, "features that are not finite"),
        ("1e300 1:1\n" * 12, "more than 2,147,483,648 labels"),
        (f"12 4 {10**20}\n" + "5 1:1\n" * 12, "more than 2,147,483,648 labels"),
        (f"12 {10**20} 5\n" + "1 1:1\n" * 12, "is not svmlight multilabel data"),
        ("\xff\xfe\0 1:1\n", "is not svmlight multilabel data"),
        (CUT_GZIP, "is not svmlight multilabel data"),
        (BAD_GZIP, "is not svmlight multilabel data"),
        (None, "No such file"),
    ],
)
def test_malformed_files_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = tmp_path / ("bad[gz].gz" if text in (CUT_GZIP, BAD_GZIP) else "bad[cuda].txt")
    if text is not None:
        path.write_text(text, encoding="latin1")
    assert sparse_labels.main(["--data", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert path.name in error
    assert error.count("\n") == 1


def test_rows_are_split_by_the_seed_and_trained_on_once_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(svmlight.text())
    read = dataset_of_file(path)
    train, test = read.split(1)
    assert (train.labels.shape[0], test.labels.shape[0]) == (64, 16)
    assert train.labels.nnz + test.labels.nnz == read.labels.nnz
    assert (read.split(1)[1].labels != test.labels).nnz == 0
    batches = list(read.batches(3, seed=0, size=32))
    assert [len(rows) for rows in batches] == [32, 32, 16] * 3
    assert np.bincount(np.concatenate(batches)).tolist() == [3] * ROWS
    assert np.concatenate(batches[:3]).tolist() != np.concatenate(batches[3:6]).tolist()


PACKAGES = """\
Package: solver-2
Source: solver-2 (2.1-3)
Depends: libc6 (>= 2.34), python3:any | python3.11, libc6 (<< 3)
Description: Solver of the Solver family
Section: math
Tag: field::mathematics, role::program,
 use::analysing

Package: solver-doc
Source: solver-1
Description: manual, été
Tag: role::documentation

Package: untagged
Description: nobody says what the field Tag: means here

Package: solver-2
Depends: libc7
Description: newer
Tag: role::program
"""


def test_paragraphs_of_packages() -> None:
    texts = PACKAGES.split("\n\n")
    first, second = debian_packages.facts_of_paragraphs("\n\n".join(texts[:3]))
    words = ["solver", "of", "the", "family", "needs libc6", "needs python3", "needs python3.11"]
    tags = ["field::mathematics", "role::program", "use::analysing"]
    assert first == Facts(hashed(words), tags, "solver")
    assert second == Facts(hashed(["manual", "été"]), ["role::documentation"], "solver")
    newer, _ = debian_packages.facts_of_paragraphs(PACKAGES)
    assert newer == Facts(hashed(["newer", "needs libc7"]), ["role::program"], "solver")
    names = ["gcc-12", "python3.11 (3.11.2-6)", "0ad", "2048"]
    assert [debian_packages.source(name) for name in names] == ["gcc", "python", "0ad", "2048"]


def of_apt_cache(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(debian_packages, "COMMAND", ("sh", "-c", script))


def test_packages_of_one_source_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paragraphs = (
        f"Package: p{i}x\nSource: s{i // 4}x\nDescription: d{i}\nTag: a::b, c::d\n"
        for i in range(400)
    )
    (tmp_path / "list").write_text("\n".join(paragraphs))
    of_apt_cache(monkeypatch, f"cat '{tmp_path}/list'")
    read = data.read("debian", None, 0, Progress(disable=True))
    assert read.describe().startswith("tags of 400 Debian packages: 400 rows, 2 labels, 2.0 pos")
    assert np.bincount(read.groups).tolist() == [4] * 100
    train, test = read.split(0)
    assert (train.labels.shape[0], test.labels.shape[0]) == (320, 80)
    assert set(train.groups).isdisjoint(test.groups)
    again, validation = train.split(0)
    assert (again.labels.shape[0], validation.labels.shape[0]) == (256, 64)
    assert set(again.groups).isdisjoint(validation.groups)
    assert set(read.split(1)[1].groups) != set(test.groups)
    few = data.read("debian", 40, 1, Progress(disable=True))
    assert few.labels.shape == (40, 2)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Package: a'", "lists no package with tags; run apt-get update first"),
        ("echo no lists >&2; exit 3", "failed: no lists"),
    ],
)
def test_what_apt_cache_cannot_give(
    monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    of_apt_cache(monkeypatch, script)
    with pytest.raises(Refusal, match=words):
        debian_packages.facts_of_packages()


def test_machines_without_apt_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["--data", "debian", "--out", str(tmp_path)]
    assert sparse_labels.main(arguments) == 2
    said = capsys.readouterr().err
    words = "--data debian needs the command apt-cache, of Debian and Ubuntu"
    assert said == f"{sparse_labels.PROGRAM}: {words}\n"
