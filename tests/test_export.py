"""torch.export keeps the fused op, in programs that are saved, loaded, compiled ahead and run."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weighted_bce import SparseLabels
from weighted_bce._extension import extension

from .grids import one_at_a_time
from .test_compile import fused_ops, ops_of
from .truth import as_given
from .ways import Scored

pytestmark = pytest.mark.skipif(extension is None, reason="no extension")


OPTIONS: dict[str, dict[str, Any]] = {
    "mean": dict(pos_weight=7.0),
    "per label": dict(pos_weight=torch.full((9,), 7.0), reduction="batchmean"),
    "ignoring": dict(ignore_index=1, label_smoothing=0.1, weight=torch.rand(9)),
    "none": dict(reduction="none"),
    "linear": dict(pos_weight=7.0, is_linear=True),
    "linear, none": dict(is_linear=True, reduction="none", ignore_index=0),
}
ROWS = torch.export.Dim("rows", min=2, max=1000)
POSITIVES = torch.export.Dim("positives", min=2, max=9000)


def example(rows: int, device: str, sparse: torch.dtype | None = None) -> tuple[Tensor, Any]:
    y = torch.rand(rows, 9, device=device) < 0.3
    y[0, :2] = True
    return torch.randn(rows, 20, device=device), as_given(y, sparse)


def exported(
    module: nn.Module,
    device: str,
    dynamic: bool = True,
    strict: bool = False,
    sparse: torch.dtype | None = None,
) -> Any:
    of_target = SparseLabels({0: ROWS + 1}, {0: POSITIVES}) if sparse else {0: ROWS}  # type: ignore[arg-type]
    shapes = ({0: ROWS}, of_target) if dynamic else None
    args = example(6, device, sparse)
    return torch.export.export(module, args, dynamic_shapes=shapes, strict=strict)


@one_at_a_time(
    name=[*OPTIONS], dynamic=[True, False], strict=[False, True], sparse=[None, torch.int64]
)
def test_saved_and_loaded(
    kernel_device: str, strict: bool, dynamic: bool, name: str, sparse: Any, tmp_path: Path
) -> None:
    module = Scored(**OPTIONS[name]).to(kernel_device)
    torch.manual_seed(1)
    program = exported(module, kernel_device, dynamic, strict, sparse)
    assert fused_ops(program.graph_module) == ops_of(name, OPTIONS[name].get("reduction"))[0]
    torch.export.save(program, tmp_path / "scored.pt2")
    loaded = torch.export.load(tmp_path / "scored.pt2").module()
    for rows in (6, 17, 2) if dynamic else (6,):
        torch.manual_seed(1)  # as many positives, where their number may not change
        args = example(rows, kernel_device, sparse)
        assert torch.equal(program.module()(*args), module(*args))
        assert torch.equal(loaded(*args), module(*args))


@pytest.mark.parametrize("is_linear", [False, True])
def test_the_loaded_program_trains(kernel_device: str, tmp_path: Path, is_linear: bool) -> None:
    module = Scored(is_linear, pos_weight=7.0).to(kernel_device)
    torch.export.save(exported(module, kernel_device), tmp_path / "scored.pt2")
    loaded = torch.export.load(tmp_path / "scored.pt2").module()
    args = example(13, kernel_device)
    for each in (module, loaded):
        (each(*args) * -2.5).backward()
    gradients = {name: p.grad for name, p in loaded.named_parameters()}
    for name, parameter in module.named_parameters():
        assert torch.equal(gradients[name], parameter.grad)


def test_compiled_ahead_of_time_by_inductor(kernel_device: str, tmp_path: Path) -> None:
    """A package of AOTInductor calls the op, for any number of rows."""
    if kernel_device == "cuda" and import_module("torch.utils.cpp_extension").CUDA_HOME is None:
        pytest.skip("AOTInductor needs a CUDA toolkit")
    module = Scored(pos_weight=torch.full((9,), 7.0)).to(kernel_device)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(module, kernel_device), package_path=str(tmp_path / "scored.pt2")
        )
        package = torch._inductor.aoti_load_package(path)
        for rows in (6, 17):
            args = example(rows, kernel_device)
            torch.testing.assert_close(package(*args), module(*args))


@pytest.mark.parametrize(
    ("op", "first", "last"),
    [
        ("loss", "Tensor input", ", int reduction"),
        ("unreduced", "Tensor input", ""),
        ("grad", "Tensor grad_output, Tensor input", ", int reduction"),
    ],
)
def test_programs_of_version_0_6_fit_the_schemas(op: str, first: str, last: str) -> None:
    shared = (
        "Tensor target, Tensor? crow_indices, Tensor? weight, Tensor? pos_weight, "
        "float pos_weight_value, float label_smoothing, float? ignore_index, int? first_label"
    )
    old = torch._C.parse_schema(f"weighted_bce::{op}({first}, {shared}{last}) -> Tensor")
    new = getattr(torch.ops.weighted_bce, op).default._schema
    assert new.is_backward_compatible_with(old)
