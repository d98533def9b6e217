"""The names on the command line; this module does not import torch."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
TARGETS = ("bool", "float", "int64", "sparse")  # float: of the dtype of the logits
PASSES = STEP, FORWARD = "step", "forward"
COPY, PRODUCTS, OURS, SPARSE = "copy", "products", "ours", "sparse"
LABELS = 16384
LARGEST = "largest"  # a shape of LABELS columns, and as many rows as memory allows
LOSSES = BCE, FOCAL, ASYMMETRIC, HILL, POLY1, SQUARED_HINGE = (
    *("bce", "focal", "asymmetric", "hill", "poly1", "squared-hinge"),
)

# The keys of baselines.BASELINES that --against may choose, in the same order.
AGAINST = (
    *("released", "scaled", "scaled-changing", "inplace", "fused-step"),
    *("ours-compiled", "reference", "dense", "unfused", "masked", *LOSSES, "bce-float"),
    *("bce-plain", "compile", "compile-masked", "scatter", "torchvision", "timm"),
)


def in_rows(elements: int) -> tuple[int, int]:
    """Returns a shape of about that many elements, in rows of LABELS."""
    labels = min(LABELS, elements)
    return elements // labels, labels
