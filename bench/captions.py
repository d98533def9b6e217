"""What is said below the tables."""

TRAINING = (
    "From the logits to logits.grad. ours: the gradient takes the memory of the last step's, as in "
    "any training loop; memory released: weighted_bce.empty_cache() comes before each step, so "
    "that the page faults of fresh memory count; inplace_backward: the gradient replaces the "
    "logits, of which an untimed copy is made. F.bce_with_logits is "
    "F.binary_cross_entropy_with_logits(pos_weight=...). It and the masked multiply make a float "
    "target in each call, but for 'float target'. Ratios: medians of those within a round. GB/s: "
    "of the bytes that must be read and written."
)
CUDA_TRAINING = (
    "From the logits to logits.grad, on inputs out of the L2 cache ({}). Each call follows an "
    "untimed one of the same kind; events time it, launches included where the GPU waits for them. "
    "inplace_backward: the gradient replaces the logits, of which an untimed copy is made. "
    "F.bce_with_logits is F.binary_cross_entropy_with_logits(pos_weight=...). It and the masked "
    "multiply make a float target in each call, but for 'float target'. Ratios: medians of those "
    "within a round. GB/s: of the bytes that must move: logits, target and gradient once each, and "
    "the logits twice for copy_. % of copy_: that figure over the one of copy_. p20, p80: "
    "percentiles, in the unit of the median. peak: allocated beyond the inputs, in gradients."
)
FORWARD = "Under no_grad, from the logits to the loss."
CUDA_FORWARD = (
    "Under no_grad, from the logits to the loss, otherwise as above. GB/s: logits and target once."
)
GRAPHS = "The same work as one CUDA graph, a step on each input ({}): no gaps between the kernels."
SPARSE = (
    "From the logits to logits.grad; the target is SparseLabels, each row of as many positives. no "
    "positives: with an empty list; bool target: with a dense one that is there already; "
    "zeros().scatter_: a dense float target is made in each call. GB/s: logits, target, gradient."
)
SMALL = "The target is float32."
MEMORY = (
    "Rise of the resident set's high-water mark in a step, inputs not counted, in a fresh process "
    "for each. One gradient is {:.1f} MiB."
)


def inputs(count: int) -> str:
    return "one set, larger than the cache" if count == 1 else f"{count} sets that take turns"
