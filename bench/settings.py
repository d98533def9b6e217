"""What is measured: shapes, dtypes, targets, densities and threads, and products of them."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tools.measuring import made_up_labels
from weighted_bce import SparseLabels

from .names import DTYPES, LABELS, PASSES, SPARSE, STEP, in_rows

Target = Tensor | SparseLabels
Shape = tuple[int, ...]  # rows and labels; or rows, features and labels


class Setting(NamedTuple):
    """The shape and dtypes of the logits and the target, and how rare and heavy positives are.

    With `features` the logits are those of a linear layer, which is measured with its loss.
    """

    rows: int
    labels: int
    dtype: str = "float32"
    target: str = "bool"
    density: float = 0.005
    pos_weight: float = 7.0
    threads: int = 1
    seed: int = 0
    features: int = 0

    def sample(self, device: str = "cpu") -> tuple[tuple[Tensor, ...], Target]:
        """The logits, or the input and the weight of the layer; and the target."""
        generator = torch.Generator(device).manual_seed(self.seed)
        options: dict[str, Any] = {"generator": generator, "device": device}
        if self.features:
            weight = torch.randn(self.labels, self.features, **options)
            weight *= self.features**-0.5  # logits of variance 1
            made = torch.randn(self.rows, self.features, **options), weight
        else:
            made = (torch.randn(self.rows, self.labels, **options),)
        leaves = tuple(t.to(getattr(torch, self.dtype)).requires_grad_() for t in made)
        if self.is_sparse:
            each = self.positives_per_row
            return leaves, made_up_labels(self.rows, self.labels, each, generator)
        target = torch.rand(self.rows, self.labels, **options) < self.density
        return leaves, target.to(self.target_dtype)

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
    def sizes(self) -> Shape:
        return (self.rows, self.features, self.labels) if self.features else self[:2]

    @property
    def logits_bytes(self) -> int:
        return self.elements * int(getattr(torch, self.dtype).itemsize)

    @property
    def gradient_bytes(self) -> int:
        """Of the gradient of the logits, or of those of the input and the weight."""
        if not self.features:
            return self.logits_bytes
        elements = (self.rows + self.labels) * self.features
        return elements * int(getattr(torch, self.dtype).itemsize)

    @property
    def target_bytes(self) -> int:
        if self.is_sparse:
            return 8 * (self.rows * self.positives_per_row + self.rows + 1)
        return self.elements * int(self.target_dtype.itemsize)

    def __str__(self) -> str:
        target = f"{self.target} target with {self.density:.3g} positives"
        if self.is_sparse:
            target = f"sparse labels, {self.positives_per_row} in each row"
        what = "linear layer and loss" if self.features else "logits"
        return (
            f"{' x '.join(map(str, self.sizes))} {self.dtype} {what}, {target}, "
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
            rows, *features, labels = shape
            yield Setting(rows, labels, *kind, pos_weight, count, seed, *features)


MAIN = (1024, LABELS)
LAYER = (256, 256, 131072)
MANY_LABELS = (8192, 32768, 131073, 670091, 2812281)
SMALL = Grid([(8, 16)], targets=("float",), densities=(0.1,), passes=(STEP,))


def few(shape: Shape, dtype: str = "float32", passes: Sequence[str] = (STEP,)) -> Grid:
    """Sparse labels, 5 in each row."""
    return Grid([shape], (dtype,), (SPARSE,), (min(1.0, 5 / shape[-1]),), passes=passes)


def _sizes(*exponents: int) -> list[Shape]:
    return [in_rows(2**n) for n in exponents]


_ELEMENTS = 2**24  # where another axis than the size is followed


def grids(device: str, quick: bool) -> list[Grid]:
    """What is measured where nothing else is asked for. README's main tables are of the first."""
    if device == "cuda":
        if quick:  # torch.compile takes most of the time
            layer = few((1024, 768, 131073), "bfloat16")
            steps = Grid(_sizes(28, 24, 20), passes=(STEP,))
            return [steps, Grid(_sizes(28)), few((1024, 131073)), SMALL, layer]
        return [
            Grid(_sizes(28, *range(20, 31, 2), 31), DTYPES[:3]),
            few((1024, 670091), "bfloat16"),
            SMALL,
            *(few((1024, 768, labels), "bfloat16") for labels in MANY_LABELS[2:]),
        ]
    if quick:
        return [Grid([MAIN]), few((128, 131073)), SMALL, few((64, 128, 32768))]
    every_thread = range(1, torch.get_num_threads() + 1)
    return [
        Grid([MAIN], DTYPES),
        Grid([MAIN], targets=("float", "int64", SPARSE)),
        few((512, 131073)),
        few((64, 2812281)),
        SMALL,
        Grid(_sizes(*range(10, 29, 2))),
        Grid([(_ELEMENTS // n, n) for n in (10**2, 10**3, 10**4, 10**5, 10**6)], passes=(STEP,)),
        *(few((_ELEMENTS // n, n)) for n in (10**3, 10**4, 10**5, 10**6)),
        Grid([MAIN], densities=(0, 0.001, 0.005, 0.02, 0.1, 0.5), passes=(STEP,)),
        Grid([MAIN], targets=(SPARSE,), densities=(0, 0.001, 0.005, 0.02, 0.1), passes=(STEP,)),
        Grid([MAIN], threads=every_thread, passes=(STEP,)),
        few(LAYER, passes=PASSES),
        few(LAYER, "bfloat16"),
        *(few((64, 128, labels)) for labels in MANY_LABELS),
    ]
