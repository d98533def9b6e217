"""What is measured: shapes, dtypes, targets, densities and threads, and products of them."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from examples.losses import made_up_labels
from weighted_bce import SparseLabels

from .names import DTYPES, LABELS, PASSES, SPARSE, STEP, in_rows

Target = Tensor | SparseLabels
Shape = tuple[int, int]


class Setting(NamedTuple):
    """The shape and dtypes of the logits and the target, and how rare and heavy positives are."""

    rows: int
    labels: int
    dtype: str = "float32"
    target: str = "bool"
    density: float = 0.005
    pos_weight: float = 7.0
    threads: int = 1
    seed: int = 0

    def sample(self, device: str = "cpu") -> tuple[Tensor, Target]:
        generator = torch.Generator(device).manual_seed(self.seed)
        shape = self.rows, self.labels
        logits = torch.randn(shape, generator=generator, device=device)
        logits = logits.to(getattr(torch, self.dtype)).requires_grad_()
        if self.is_sparse:
            each = self.positives_per_row
            return logits, made_up_labels(self.rows, self.labels, each, generator)
        target = torch.rand(shape, generator=generator, device=device) < self.density
        return logits, target.to(self.target_dtype)

    @property
    def target_dtype(self) -> torch.dtype:
        """Of a dense target."""
        name = self.dtype if self.target == "float" else self.target
        found: torch.dtype = getattr(torch, name)
        return found

    @property
    def is_sparse(self) -> bool:
        return self.target == SPARSE

    @property
    def positives_per_row(self) -> int:
        return round(self.density * self.labels)

    @property
    def elements(self) -> int:
        return self.rows * self.labels

    @property
    def gradient_bytes(self) -> int:
        return self.elements * int(getattr(torch, self.dtype).itemsize)

    @property
    def target_bytes(self) -> int:
        if self.is_sparse:
            return 8 * (self.rows * self.positives_per_row + self.rows + 1)
        return self.elements * int(self.target_dtype.itemsize)

    def __str__(self) -> str:
        target = f"{self.target} target with {self.density:.3g} positives"
        if self.is_sparse:
            target = f"sparse labels, {self.positives_per_row} in each row"
        return (
            f"{self.rows} x {self.labels} {self.dtype} logits, {target}, "
            f"pos_weight {self.pos_weight:g}, {self.threads} thread" + "s" * (self.threads > 1)
        )


class Grid(NamedTuple):
    """All combinations of these. No threads: all that torch takes by itself."""

    shapes: Sequence[Shape]
    dtypes: Sequence[str] = ("float32",)
    targets: Sequence[str] = ("bool",)
    densities: Sequence[float] = (0.005,)
    threads: Sequence[int] = ()
    passes: Sequence[str] = PASSES

    def settings(self, pos_weight: float, seed: int) -> Iterator[Setting]:
        threads = self.threads or (torch.get_num_threads(),)
        for shape, *kind, count in product(
            self.shapes, self.dtypes, self.targets, self.densities, threads
        ):
            yield Setting(*shape, *kind, pos_weight, count, seed)


MAIN = (1024, LABELS)
SMALL = Grid([(8, 16)], targets=("float",), densities=(0.1,), passes=(STEP,))


def _few(shape: Shape, dtype: str = "float32") -> Grid:
    """Sparse labels, 5 in each row."""
    return Grid([shape], (dtype,), (SPARSE,), (5 / shape[1],), passes=(STEP,))


def _sizes(*exponents: int) -> list[Shape]:
    return [in_rows(2**n) for n in exponents]


_ELEMENTS = 2**24  # where another axis than the size is followed


def grids(device: str, quick: bool) -> list[Grid]:
    """What is measured where nothing else is asked for. README's main tables are of the first."""
    if device == "cuda":
        if quick:
            return [Grid(_sizes(28, 24, 20)), _few((1024, 131073)), SMALL]
        return [
            Grid(_sizes(28, *range(20, 31, 2), 31), DTYPES[:3]),
            _few((1024, 670091), "bfloat16"),
            SMALL,
        ]
    if quick:
        return [Grid([MAIN]), _few((128, 131073)), SMALL]
    every_thread = range(1, torch.get_num_threads() + 1)
    return [
        Grid([MAIN], DTYPES),
        Grid([MAIN], targets=("float", "int64", SPARSE)),
        _few((512, 131073)),
        _few((64, 2812281)),
        SMALL,
        Grid(_sizes(*range(10, 29, 2))),
        Grid([(_ELEMENTS // n, n) for n in (10**2, 10**3, 10**4, 10**5, 10**6)], passes=(STEP,)),
        *(_few((_ELEMENTS // n, n)) for n in (10**3, 10**4, 10**5, 10**6)),
        Grid([MAIN], densities=(0, 0.001, 0.005, 0.02, 0.1, 0.5), passes=(STEP,)),
        Grid([MAIN], targets=(SPARSE,), densities=(0, 0.001, 0.005, 0.02, 0.1), passes=(STEP,)),
        Grid([MAIN], threads=every_thread, passes=(STEP,)),
    ]
