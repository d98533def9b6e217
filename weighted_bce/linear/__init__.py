"""A linear layer and its loss in one, for so many labels that the logits should not be held."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .._checks import (
    Target,
    check_count,
    check_layer,
    check_reduced,
    checked_options,
)
from .._options import REDUCTIONS
from ..modules import _WeightedLoss
from . import _ops
from ._chunks import Layer
from ._passes import Step


def linear_weighted_bce_with_logits(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    chunk_labels: int | None = None,
    fused_step: Step | None = None,
) -> Tensor:
    r"""The weighted loss of a linear layer's logits, which are never held all at once.

    Equivalent to::

        logits = F.linear(input, linear_weight, linear_bias)
        weighted_bce_with_logits(logits, target, weight, pos_weight, reduction,
                                 label_smoothing=label_smoothing)

    but a chunk of labels goes through all of it before the next one begins: its logits, their loss,
    and from its gradient the products of the backward pass. Beyond its inputs and their gradients
    it needs the memory of one chunk.

    Args:
        input: (rows, features); float16, bfloat16, float32 or float64.
        linear_weight: (labels, features), of the dtype of `input`. Under autocast half precision
            and float32 may be mixed.
        target: labels in [0, 1] of shape (rows, labels), bool, any integer or floating dtype; or
            only the positives, as `SparseLabels` or a torch.sparse_csr or sparse_coo tensor.
        linear_bias: (labels,), of the dtype of `linear_weight`. Default: None.
        weight: multiplies each element's loss; broadcasts to (rows, labels).
        pos_weight: multiplies the positive term; a number >= 0, or a tensor that broadcasts to
            (rows, labels): (labels,) for one weight a label. Default: 1.
        reduction: "mean" (over rows * labels), "sum" or "batchmean" (the sum over rows).
            Default: "mean". With millions of labels the gradients of a mean are as small as the
            eps of Adam; those of "batchmean" are not.
        label_smoothing: in [0, 1). Default: 0.
        chunk_labels: how many labels a chunk has. Default: on the CPU so many that a chunk's logits
            stay in a cache, on CUDA so many that they take 32 MiB, or an eighth of the free memory
            where that is less.
        fused_step: a callable that is given each chunk's gradients as soon as backward has made
            them, instead of ``.grad``: ``fused_step(labels, weight_grad, bias_grad)``, with
            ``labels`` the slice of rows of `linear_weight` that they belong to and ``bias_grad``
            None without a bias that requires a gradient. The tensors are valid during the call. It
            may change those rows: the whole gradient of the weight is never held. `FusedSGD` and
            `FusedAdam` are two. Called only where `linear_weight` requires a gradient. Nothing is
            averaged over processes: for classifiers that one process has, or a part of each.

    Returns:
        0-d; float64 for float64 input and float32 for all others.

    Raises:
        TypeError: an argument or a dtype of the wrong type.
        ValueError: a wrong shape or value, or tensors on different devices.
        NotImplementedError: `fused_step` under torch.func, with ``create_graph=True``, or with an
            `input` whose rows are sharded. Where torch.compile meets it, the graph breaks.
        RuntimeError: under ``backend("fused")``, where no kernel serves the input.

    Note:
        Products are torch's, in the dtype of `input` or of autocast. Those of half precision are
        summed, and kept until after the loss, in float32. On the CPU they take float32 copies of
        each chunk, so autocast changes nothing there.

        Where a gradient is needed the forward pass makes it, for the upstream gradient that came
        the last time, 1 at first. Where backward brings another, and in a graph that is kept, it is
        made once more; on CUDA backward waits for the forward pass in order to compare the two.
        Under torch.compile, in a checkpoint, while a CUDA graph is recorded and with `fused_step`
        the forward pass makes the loss alone, and backward the logits again.

        On the CPU the gradient of the weight takes memory that an earlier one has left, see
        `empty_cache`; and each chunk's threads wait for one another, so where other programs keep
        the processor's cores busy, fewer threads or larger chunks are faster.

        All logits are held where torch.func is at work, and for second derivatives and gradients
        with respect to `target`, `weight` and `pos_weight`.

        A DTensor `linear_weight` has its labels sharded (``Shard(0)``), `input` is replicated or
        has its rows sharded: each process computes its own part, and the loss is summed over all.

    Example:
        >>> import torch
        >>> from weighted_bce import SparseLabels, linear_weighted_bce_with_logits
        >>> hidden, classifier = torch.zeros(2, 8), torch.zeros(1000, 8)
        >>> target = SparseLabels.from_lists([[3, 17], [999]])
        >>> print(f"{linear_weighted_bce_with_logits(hidden, classifier, target):.4f}")
        0.6931
    """
    tensors = input, linear_weight, target, linear_bias, weight, pos_weight
    if has_torch_function_variadic(*tensors):
        result: Tensor = handle_torch_function(
            linear_weighted_bce_with_logits,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            pos_weight=pos_weight,
            reduction=reduction,
            label_smoothing=label_smoothing,
            chunk_labels=chunk_labels,
            fused_step=fused_step,
        )
        return result
    product_dtype = _autocast_dtype(input)
    check_layer(input, linear_weight, linear_bias, product_dtype is not None)
    layer = Layer(input, linear_weight, linear_bias)
    options = checked_options(
        layer.logits_like(),
        target,
        weight,
        pos_weight,
        label_smoothing,
        ignore_index=None,
        named="input and linear_weight",
    )
    check_reduced(reduction)
    if chunk_labels is not None:
        check_count("chunk_labels", chunk_labels)
    if not (fused_step is None or callable(fused_step)):
        raise TypeError(f"fused_step must be callable, got {type(fused_step).__name__}")
    how = product_dtype, chunk_labels
    return _ops.loss(layer, options, REDUCTIONS[reduction], how, fused_step)


def _autocast_dtype(input: Tensor) -> torch.dtype | None:
    """In which autocast would multiply."""
    if not isinstance(input, Tensor) or input.dtype == torch.float64:
        return None
    kind = input.device.type
    enabled = _ops.autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


class TopK(NamedTuple):
    """The largest logits of each row, (rows, k), largest first, and their labels."""

    values: Tensor
    indices: Tensor


class LinearWeightedBCEWithLogitsLoss(_WeightedLoss):
    """A classifier and its loss in one: `linear_weighted_bce_with_logits` as a module.

    Its layer is ``self.linear``, an nn.Linear, as in torch.nn.LinearCrossEntropyLoss.

    Args:
        in_features: size of each input row.
        num_labels: how many labels the classifier has.
        bias: whether it has a bias. Default: True.
        weight: multiplies each element's loss; a tensor that broadcasts to (rows, labels), a
            buffer.
        pos_weight: multiplies the positive term; a number >= 0 (stays a number), or a tensor that
            broadcasts to (rows, labels) (a buffer).
        reduction: "mean", "sum" or "batchmean". Default: "mean".
        label_smoothing: in [0, 1). Default: 0.
        chunk_labels: how many labels are computed at once. Default: chosen.
        device, dtype: of the layer, as for nn.Linear.

    Attributes:
        linear: the layer.
        fused_step: see `linear_weighted_bce_with_logits`; None, unless it is set. It is no part of
            the state_dict.

    Raises:
        TypeError, ValueError: when called; see `linear_weighted_bce_with_logits`.

    Example:
        >>> import torch
        >>> from weighted_bce import LinearWeightedBCEWithLogitsLoss, SparseLabels
        >>> criterion = LinearWeightedBCEWithLogitsLoss(64, 5000, pos_weight=7.0)
        >>> hidden = torch.randn(3, 64)
        >>> criterion(hidden, SparseLabels.from_lists([[1], [], [4, 4999]])).backward()
        >>> criterion.topk(hidden, 5).indices.shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        bias: bool = True,
        *,
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        chunk_labels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(weight, pos_weight, reduction, label_smoothing, None)
        self.linear = nn.Linear(in_features, num_labels, bias, device, dtype)
        self.chunk_labels = chunk_labels
        self.fused_step: Step | None = None

    def forward(self, input: Tensor, target: Target) -> Tensor:
        return linear_weighted_bce_with_logits(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=cast(str, self.reduction),
            label_smoothing=self.label_smoothing,
            chunk_labels=self.chunk_labels,
            fused_step=self.fused_step,
        )

    def logits(self, input: Tensor) -> Tensor:
        """All logits: ``self.linear(input)``, of shape (..., labels)."""
        logits: Tensor = self.linear(input)
        return logits

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k largest logits of each row and their labels, without all logits at once.

        Args:
            input: (rows, features), as for the loss.
            k: at least 1 and at most the number of labels.

        Returns:
            (values, indices), of shape (rows, k), largest first, as from torch.topk. The values are
            of the dtype of the loss, and have no gradient. Which of equal logits come first is not
            defined.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape or value.
        """
        product_dtype = _autocast_dtype(input)
        weight, bias = self.linear.weight, self.linear.bias
        check_layer(input, weight, bias, product_dtype is not None)
        layer = (None if t is None else t.detach() for t in (input, weight, bias))
        check_count("k", k)
        if k > weight.shape[0]:
            raise ValueError(f"k must be at most {weight.shape[0]}, the number of labels, got {k}")
        op: Callable[..., tuple[Tensor, Tensor]] = torch.ops.weighted_bce.linear_topk.default
        return TopK(*op(*layer, k, product_dtype, self.chunk_labels))
