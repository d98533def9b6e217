"""The losses of packages that may be missing. Others of their name stand for them here."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("psutil")

from bench import __main__, baselines

from .test_bench import SHORT

# What the functions of these packages are documented to compute, as far as the benchmark asks.
TORCHVISION = """
import torch
from torch.nn.functional import logsigmoid

def sigmoid_focal_loss(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
    sign, share = 2 * targets - 1, alpha * targets + (1 - alpha) * (1 - targets)
    losses = -share * torch.sigmoid(-sign * inputs) ** gamma * logsigmoid(sign * inputs)
    return losses.mean() if reduction == "mean" else losses
"""
TIMM = """
from torch.nn.functional import binary_cross_entropy_with_logits as bce

class BinaryCrossEntropy:
    def __init__(self, smoothing=0.1, pos_weight=None):
        self.smoothing, self.pos_weight = smoothing, pos_weight

    def __call__(self, x, target):
        smooth = self.smoothing / 2 + (1 - self.smoothing) * target
        return bce(x, smooth, pos_weight=self.pos_weight)
"""
VISION, TIMMS = "torchvision sigmoid_focal_loss", "timm BinaryCrossEntropy"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that stand for those that may be installed, in this test alone."""
    monkeypatch.setattr(baselines, "why_not", baselines.why_not.__wrapped__)
    for package, module, text in (("torchvision", "ops", TORCHVISION), ("timm", "loss", TIMM)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / f"{module}.py").write_text(text)
        for name in (package, f"{package}.{module}"):
            monkeypatch.setitem(sys.modules, name, None)  # so that it is restored in the end
            del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(("loss", "has_timm"), [("bce", True), ("focal", False)])
def test_losses_of_other_packages(loss: str, has_timm: bool, capsys: Any) -> None:
    """Each computes what ours does: a wrong one would be exit code 1."""
    given = ("--loss", loss, "--dtypes", "float32,float64", "--against", "torchvision,timm")
    assert __main__.main([*SHORT, *given]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"\n{VISION} ") == 2
    assert printed.count(f"\n{TIMMS} ") == 2 * has_timm
    assert "failed" not in printed


def test_a_package_that_does_not_import_is_named(packages: Path, capsys: Any) -> None:
    """One that is not there is left out in silence."""
    (packages / "timm" / "__init__.py").write_text("raise RuntimeError('of another torch')")
    shutil.rmtree(packages / "torchvision")
    assert __main__.main([*SHORT, "--against", "timm,torchvision,bce"]) == 0
    printed = capsys.readouterr().out
    assert f"{TIMMS} is left out: timm cannot be imported: of another torch" in printed
    assert "torchvision" not in printed.partition("Time of weighted_bce")[0]
