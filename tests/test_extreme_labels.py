"""The example of very many labels reads its data right, ranks right, and runs from end to end."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("psutil")

from rich.progress import Progress
from scipy.sparse import csr_matrix
from sklearn.metrics import ndcg_score

from examples import extreme_labels, extreme_training, program, training
from examples.data import WORDS, Dataset, made_up
from examples.ranking import KS, quality
from weighted_bce import SparseLabels, propensity_from_labels

from . import svmlight
from .svmlight import LABELS

SMALL = ["--dim", "16", "--buckets", "512", "--batch", "32"]
NO_PROGRESS = Progress(disable=True)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.txt"
    path.write_text(svmlight.text())
    return path


def options(*arguments: str) -> argparse.Namespace:
    return extreme_labels.parser().parse_args([*SMALL, *arguments])


def train(data: Dataset, batches: list[np.ndarray], *how: str, plain: bool = False) -> Any:
    return extreme_training.train(data, batches, options(*how), NO_PROGRESS, plain)


def made_up_data() -> tuple[Dataset, Dataset]:
    return made_up(labels=300, rows=1000, features=400, seed=1).split(0)


def batches(data: Dataset, steps: int) -> list[np.ndarray]:
    return extreme_training.batches_of(data, options("--steps", str(steps)))


def test_words_are_hashed_and_weighted_by_their_values() -> None:
    encoder = training.Encoder(buckets=4, dim=8, norm=torch.nn.LayerNorm(8))
    features = csr_matrix(np.array([[0, 0.5, 0, 3, 0, 2, 0], [0] * 7], np.float32))
    weight = encoder.embedding.weight
    bag = (0.5 + 2) * weight[1] + 3 * weight[3]
    expected = torch.stack((torch.relu(encoder.norm(bag)), torch.zeros(8)))
    torch.testing.assert_close(encoder(features), expected)


def test_made_up_rows_have_the_words_of_their_labels() -> None:
    labels, features = 50, 10_000
    data = made_up(labels, 400, features, seed=2)
    assert data.labels.shape == (400, labels)
    assert data.features.shape == (400, features)
    assert data.labels.nnz == data.labels.toarray().sum()  # no label is there twice
    counts = data.labels.sum(0).A1
    assert counts[0] > counts[5] > counts[-1]
    for label in range(5):
        rows = data.labels[:, label].nonzero()[0]
        words = set.intersection(*(set(data.features[row].indices) for row in rows))
        assert len(words) == WORDS
    again = made_up(labels, 400, features, seed=2)
    assert (again.features != data.features).nnz == (again.labels != data.labels).nnz == 0


def test_measures_are_those_of_dense_matrices() -> None:
    scores = torch.randn(40, 30).double()
    target = torch.rand(40, 30) < 0.1
    target[0] = False
    target[1, :9] = True
    labels = SparseLabels.from_dense(target)
    propensity = propensity_from_labels(labels, 30)
    gain = target / propensity.double()
    precision, ndcg, scored = quality(scores.topk(5).indices, labels, propensity)
    for i, k in enumerate(KS):
        top = scores.topk(k).indices
        assert precision[i] == pytest.approx(target.gather(1, top).double().mean().item())
        best = gain.topk(k).values.sum()
        assert scored[i] == pytest.approx((gain.gather(1, top).sum() / best).item())
        assert ndcg[i] == pytest.approx(ndcg_score(target, scores, k=k))
    none = SparseLabels.from_lists([[]] * 40)
    assert quality(scores.topk(5).indices, none, propensity) == ([0] * 3,) * 3


def test_training_ranks_better_than_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extreme_training, "EVALUATED_ROWS", 64)  # several blocks
    data, test = made_up_data()
    chosen = options()
    propensity = extreme_training.propensity(data, chosen)
    untrained = extreme_training.Model(data, chosen, plain=False)
    before = extreme_training.evaluate(untrained, test, propensity, NO_PROGRESS)
    model, cost = train(data, batches(data, 120), "--learning-rate", "0.03")
    after = extreme_training.evaluate(model, test, propensity, NO_PROGRESS)
    rows = test.labels.shape[0]
    labels = SparseLabels.from_scipy(test.labels)
    popular = quality(torch.arange(5).expand(rows, 5), labels, propensity)
    assert cost.losses[-1] < 0.7 * cost.losses[0]
    assert after.precision[0] > before.precision[0] + 0.25
    assert after.precision[0] > popular.precision[0] + 0.1
    assert after.propensity_scored[2] > before.propensity_scored[2] + 0.05


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("pos_weight", ["3", "propensity"])
def test_fused_step_and_plain_torch_train_the_same(optimizer: str, pos_weight: str) -> None:
    data, _ = made_up_data()
    how = ("--optimizer", optimizer, "--pos-weight", pos_weight, "--chunk-labels", "70")
    if optimizer == "sgd":
        how += ("--learning-rate", "0.1")
    some = batches(data, 6)
    model, cost = train(data, some, *how)
    fused, fused_cost = train(data, some, "--fused", *how)
    plain, plain_cost = train(data, some, *how, plain=True)
    torch.testing.assert_close(fused.state_dict(), model.state_dict())
    assert fused.criterion.linear.weight.grad is None
    assert fused_cost.losses == pytest.approx(cost.losses, rel=1e-5)
    assert plain_cost.losses == pytest.approx(cost.losses, rel=1e-4)
    # Adam makes steps of the same length from gradients that are nothing but rounding.
    close = {"rtol": 1e-3, "atol": 1e-4 if optimizer == "sgd" else 1e-2}
    torch.testing.assert_close(
        plain.criterion.linear.weight, model.criterion.linear.weight, **close
    )


def test_propensities_weigh_the_positives() -> None:
    data, _ = made_up_data()
    chosen = options("--pos-weight", "propensity", "--propensity", "0.6", "2.6")
    labels = SparseLabels.from_scipy(data.labels)
    expected = 1 / propensity_from_labels(labels, 300, A=0.6, B=2.6)
    torch.testing.assert_close(extreme_training.Model(data, chosen).criterion.pos_weight, expected)


@pytest.mark.parametrize("name", program.LOSSES)
def test_each_loss_trains_from_the_prior(name: str) -> None:
    """The bias starts at the label frequencies, and the loss falls."""
    data, _ = made_up_data()
    model = extreme_training.Model(data, options("--loss", name))
    target = torch.from_numpy(data.labels.toarray())
    share = target.float().mean(0).clamp(0.5 / len(target), 1 - 0.5 / len(target))
    torch.testing.assert_close(model.criterion.linear.bias.detach(), share.logit())
    assert type(model.criterion.loss).__name__.lower() == name.replace("-", "")
    _, cost = train(data, batches(data, 60), "--loss", name, "--fused", "--learning-rate", "0.03")
    assert cost.losses[-1] < 0.9 * cost.losses[0]


@pytest.mark.parametrize(
    ("arguments", "steps"), [([], 15), (["--epochs", "2"], 6), (["--steps", "20"], 20)]
)
def test_steps_or_epochs(arguments: list[str], steps: int) -> None:
    data = made_up(5, 80, 9, seed=0)
    assert len(extreme_training.batches_of(data, options(*arguments))) == steps


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_has_one_gradient_or_none() -> None:
    labels, rows, dim = 2**16, 64, 32
    data = made_up(labels, rows, 100, seed=0)
    how = ("--optimizer", "sgd", "--dim", str(dim))
    ours, fused = (
        train(data, [np.arange(rows)] * 3, *how, *extra)[1].peak_bytes
        for extra in ([], ["--fused"])
    )
    if ours is None or fused is None:
        pytest.skip("the high-water mark cannot be reset here")
    weight = 4 * labels * dim
    assert 0.9 * weight < ours < 1.8 * weight
    assert fused < 0.6 * weight


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--data FILE --epochs 2", "rows.txt: 64 rows, 12 labels, 2.0 positives per row"),
        ("--data FILE --test FILE --fused", "to train on; 80 rows held out"),
        ("--labels 500 --rows 100 --steps 7", "made-up rows: 80 rows, 500 labels, "),
    ],
)
def test_end_to_end(
    data_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    words: str,
) -> None:
    monkeypatch.delattr(SparseLabels, "to_dense")  # no dense target is made
    given = [str(data_file) if word == "FILE" else word for word in arguments.split()]
    assert extreme_labels.main([*given, *SMALL]) == 0
    printed = capsys.readouterr().out
    for said in (words, "precision", "nDCG", "propensity-scored", "median s", "chunks"):
        assert said in printed


def test_imports_are_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def few(source: str, files: int | None, *rest: object) -> Dataset:
        asked.append((source, files))
        return made_up(40, 50, 30, seed=0)._replace(source="imports")

    monkeypatch.setattr(extreme_training, "read", few)
    for arguments in ([], ["--data", "imports", "--rows", "70"]):
        assert extreme_labels.main([*arguments, "--steps", "1", *SMALL]) == 0
    assert asked == [("imports", None), ("imports", 70)]
    assert "imports: 40 rows" in capsys.readouterr().out


def test_compare_shows_both_or_says_why_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--labels", "500", "--rows", "100", "--steps", "2", "--compare", *SMALL]
    assert extreme_labels.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = [line.split()[-1] for line in lines if line.startswith(("chunks", "plain torch"))]
    assert len(losses) == 2
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-3)

    monkeypatch.setattr(extreme_training, "free_bytes", lambda device: 2**10)
    monkeypatch.delattr(SparseLabels, "to_dense")
    assert extreme_labels.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Plain torch is left out: it would take about 0.0 GiB" in printed
    assert "\nplain torch" not in printed

    assert extreme_labels.main([*arguments, "--loss", "focal"]) == 0
    printed = capsys.readouterr().out
    assert "Plain torch is left out: it has no function for the loss focal." in printed
    assert "\nplain torch" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--labels", "0"],
            "argument --labels: must be a whole number above 0 and below 2**31, got '0'",
        ),
        (["--labels", "9", "--data", "x"], "not allowed with argument"),
        (["--steps", "3", "--epochs", "2"], "not allowed with argument"),
        (["--pos-weight", "-1"], "must be a number >= 0 or 'propensity', got '-1'"),
        (["--pos-weight", "rare"], "must be a number >= 0 or 'propensity', got 'rare'"),
        (["--pos-weight", "inf"], "must be a number >= 0 or 'propensity', got 'inf'"),
        (["--learning-rate", "nan"], "must be a number above 0, got 'nan'"),
        (["--propensity", "0.5", "0"], "must be a number above 0 and up to 10, got '0'"),
        (["--optimizer", "lion"], "invalid choice: 'lion'"),
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
        (["--seed", "-1"], "must be a whole number below 2**32, got '-1'"),
        (["--test", "x"], "--test needs --data FILE"),
        (["--data", "no-such-file"], "cannot read no-such-file: No such file"),
        (["--labels", "4"], "4 labels are too few"),
        (["--labels", "9", "--rows", "1"], "1 row is not enough"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        code = extreme_labels.main(arguments)
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2
    assert words in error.splitlines()[-1]
    assert "Traceback" not in error


def test_wrong_test_files_missing_gpus_and_ctrl_c(
    data_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = data_file.with_name("other.txt")
    other.write_text(svmlight.text(LABELS + 1))
    assert extreme_labels.main(["--data", str(data_file), "--test", str(other)]) == 2
    assert capsys.readouterr().err.endswith(f"rows.txt has {LABELS}\n")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert extreme_labels.main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err == (
        f"{extreme_labels.PROGRAM}: --device cuda needs a GPU, and torch finds none\n"
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extreme_training, "load", interrupt)
    assert extreme_labels.main([]) == 130
    assert capsys.readouterr().err == f"{extreme_labels.PROGRAM}: interrupted\n"
