"""The settings that are measured: shapes, dtypes, targets, densities and threads."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch

from .names import BCE, DTYPES, LABELS, PASSES, SPARSE, STEP, in_rows

ELEMENTS, MOST_STEPS = 2**17, 500  # of a timed call
Shape = tuple[int, ...]  # rows and labels; or rows, features and labels


class Setting(NamedTuple):
    """The shape and dtypes of logits and target, the share of positives, and their weight.

    If `features` is not 0, the logits are those of a linear layer, which is measured with its loss.
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
    loss: str = BCE
    busy: int = 0  # how many processes keep cores busy

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return getattr(torch, self.dtype)

    @property
    def target_dtype(self) -> torch.dtype:
        """The dtype of a dense target."""
        return getattr(torch, self.dtype if self.target == "float" else self.target)

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
    def steps(self) -> int:
        """The number of steps in a timed call: enough that reading the clock does not matter.

        Where cores are busy it is one, so that the worst call is the worst step.
        """
        return 1 if self.busy else max(1, min(MOST_STEPS, ELEMENTS // self.elements))

    @property
    def sizes(self) -> Shape:
        return (self.rows, self.features, self.labels) if self.features else self[:2]

    @property
    def logits_bytes(self) -> int:
        return self.elements * self.torch_dtype.itemsize

    @property
    def gradient_bytes(self) -> int:
        """The bytes of the gradient of the logits, or of those of the input and the weight."""
        elements = (self.rows + self.labels) * self.features or self.elements
        return elements * self.torch_dtype.itemsize

    @property
    def target_bytes(self) -> int:
        if self.is_sparse:
            return 8 * (self.rows * self.positives_per_row + self.rows + 1)
        return self.elements * self.target_dtype.itemsize

    @property
    def ready_bytes(self) -> int:
        """The bytes of a target in the logits' dtype, or for sparse labels of a bool target."""
        return self.elements if self.is_sparse else self.logits_bytes

    @property
    def sample_bytes(self) -> int:
        """The bytes of a sample: its leaves, both targets where they differ, and its outputs."""
        is_ready = not self.is_sparse and (self.features or self.target == "float")
        ready = 0 if is_ready else self.ready_bytes
        outputs = 0 if self.features else self.logits_bytes
        return self.gradient_bytes + self.target_bytes + ready + outputs

    def __str__(self) -> str:
        sizes = " x ".join(f"{size:,}" for size in self.sizes)
        what = "linear layer and loss" if self.features else "logits"
        target = f"{self.target} target with {100 * self.density:.3g}% positives"
        if self.is_sparse:
            target = f"sparse labels, {self.positives_per_row} in each row"
        loss = "" if self.loss == BCE else f"{self.loss} loss, "
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        busy = f", {self.busy} busy process{'es' * (self.busy > 1)}" if self.busy else ""
        how = f"{loss}pos_weight {self.pos_weight:g}, {threads}{busy}"
        return f"{sizes} {self.dtype} {what}, {target}, {how}"


class Grid(NamedTuple):
    """All combinations of these values. Without threads, torch chooses their number."""

    shapes: Sequence[Shape]
    dtypes: Sequence[str] = ("float32",)
    targets: Sequence[str] = ("bool",)
    densities: Sequence[float] = (0.005,)
    threads: Sequence[int] = ()
    passes: Sequence[str] = PASSES

    def settings(self, **equal: Any) -> Iterator[Setting]:
        """Yields the settings, with the given fields equal in all."""
        threads = self.threads or (torch.get_num_threads(),)
        axes = self.shapes, self.dtypes, self.targets, self.densities, threads
        for (rows, *features, labels), *kind, count in product(*axes):
            yield Setting(rows, labels, *kind, threads=count, features=sum(features), **equal)


MAIN = (1024, LABELS)
MANY_LABELS = (8192, 32768, 131073, 670091, 2812281)
SMALL_LAYERS = ((32, 128, 28), (64, 128, 512), (128, 128, 4096), (128, 128, 18154))
SMALL = Grid([(8, 16)], targets=("float",), densities=(0.1,), passes=(STEP,))


def few(shape: Shape, dtype: str = "float32", passes: Sequence[str] = (STEP,)) -> Grid:
    """Returns a grid of sparse labels, 5 in each row."""
    return Grid([shape], (dtype,), (SPARSE,), (min(1.0, 5 / shape[-1]),), passes=passes)


def grids(device: str, quick: bool) -> list[Grid]:
    """Returns what is measured by default. The documentation's main tables are of the first."""
    if device == "cuda":
        layers = [few((1024, 768, labels), "bfloat16") for labels in MANY_LABELS[2:]]
        if quick:  # torch.compile takes most of the time
            steps = Grid([in_rows(2**n) for n in (28, 24, 20)], passes=(STEP,))
            return [steps, Grid([in_rows(2**28)]), few((1024, 131073)), SMALL, layers[0]]
        sizes = Grid([in_rows(2**n) for n in (28, *range(20, 31, 2), 31)], DTYPES[:3])
        return [sizes, few((1024, 670091), "bfloat16"), SMALL, *layers]
    if quick:
        return [Grid([MAIN]), few((128, 131073)), SMALL, few((64, 128, 32768))]
    elements = 2**24  # where another axis than the size is followed
    every_thread = range(1, torch.get_num_threads() + 1)
    return [
        Grid([MAIN], DTYPES),
        Grid([MAIN], targets=("float", "int64", SPARSE)),
        few((512, 131073)),
        few((64, 2812281)),
        SMALL,
        Grid([in_rows(2**n) for n in range(10, 29, 2)]),
        Grid([(elements // 10**n, 10**n) for n in range(2, 7)], passes=(STEP,)),
        *(few((elements // 10**n, 10**n)) for n in range(3, 7)),
        Grid([MAIN], densities=(0, 0.001, 0.005, 0.02, 0.1, 0.5), passes=(STEP,)),
        Grid([MAIN], targets=(SPARSE,), densities=(0, 0.001, 0.005, 0.02, 0.1), passes=(STEP,)),
        Grid([MAIN], threads=every_thread, passes=(STEP,)),
        few((256, 256, 131072), passes=PASSES),
        few((256, 256, 131072), "bfloat16"),
        *map(few, SMALL_LAYERS),
        *(few((64, 128, labels)) for labels in MANY_LABELS),
    ]
