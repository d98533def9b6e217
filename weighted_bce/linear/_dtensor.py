"""The loss of a linear layer of DTensors: each process has the logits of its labels and rows.

Processes exchange only sums: the loss, the gradient of the input if labels are split, and those of
the layer if rows are split.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from .. import _reference
from .._checks import check_csr_indices
from .._dtensor import GlobalLogits, as_sum, local_options, redistributed
from .._options import NONE, Options
from ._chunks import Layer


class LocalPart(NamedTuple):
    """The part of a layer's loss that one process computes."""

    layer: Layer
    options: Options
    all_logits: GlobalLogits
    logits: Tensor  # a stand-in for all logits, with their shape, dtype and device

    def reduced(self, total: Tensor, options: Options) -> Tensor:
        """Returns the loss of all processes from the sum of this one, or from those of its rows."""
        if options.reduction == NONE:
            return self._of_rows(total)
        return _reference.divided(as_sum(total, self.all_logits), self.logits, options)

    def _of_rows(self, sums: Tensor) -> Tensor:
        """Returns the losses of all rows, each of which has a part in every shard of its labels."""
        mesh, placements, shape = self.all_logits
        own = [Partial() if p == Shard(1) else p for p in placements]
        return DTensor.from_local(
            sums, mesh, own, run_check=False, shape=torch.Size(shape[:1]), stride=(1,)
        )


def shard_of(layer: Layer, options: Options, has_step: bool) -> LocalPart:
    """Returns what this process computes.

    Args:
        layer: a layer whose input or weight is a DTensor.
        options: the options of all logits.
        has_step: whether there is a fused step, which sums no gradients over a mesh.

    Raises:
        TypeError, ValueError, NotImplementedError: if the placements of the tensors do not fit.
    """
    check_csr_indices(layer.shape, options)  # a shard does not know how many labels there are
    x, weight = _checked(layer)
    if has_step and Shard(0) in x.placements:
        raise NotImplementedError(
            "input must not have its rows split over a mesh if fused_step is used; give each "
            f"process its rows and the optimizer a group, got {x.placements}"
        )
    own_x = x.to_local(grad_placements=_of_gradients(x, weight))
    own = Layer(own_x, *_local_parameters(layer, x, weight))
    pairs = zip(x.placements, weight.placements, strict=True)
    placements = tuple(Shard(1) if w == Shard(0) else p for p, w in pairs)
    all_logits = GlobalLogits(x.device_mesh, placements, layer.shape)
    return LocalPart(own, local_options(options, all_logits), all_logits, layer.logits_like())


def _checked(layer: Layer) -> tuple[DTensor, DTensor]:
    """Returns the input and the weight, with placements with which each process computes alone."""
    x, weight = layer.input, layer.weight
    for name, tensor in (("input", x), ("linear_weight", weight)):
        if not isinstance(tensor, DTensor):
            hint = "; if fully_shard has split the layer, wrap the criterion" if tensor is x else ""
            got = type(tensor).__name__
            raise TypeError(f"{name} must be a DTensor like the others, got {got}{hint}")
    x, weight = cast(DTensor, x), cast(DTensor, weight)
    if weight.device_mesh != x.device_mesh:
        raise ValueError(
            f"linear_weight must be on {x.device_mesh} like input, got {weight.device_mesh}"
        )
    x = redistributed(x, [Replicate() if p.is_partial() else p for p in x.placements])
    for of_input, of_weight in zip(x.placements, weight.placements, strict=True):
        allowed = (Shard(0), Replicate())
        shared = of_input == of_weight == Shard(0)
        if of_input not in allowed or of_weight not in allowed or shared:
            raise ValueError(
                "input and linear_weight must each be replicated or Shard(0), not both of them "
                "Shard(0) along the same dimension of the mesh, "
                f"got {x.placements} and {weight.placements}"
            )
    return x, weight


def _of_gradients(own: DTensor, other: DTensor) -> list[Placement]:
    """Returns the placements of the gradient of `own`, which is multiplied by `other`: the gradient
    is partial along each dimension of the mesh along which `other` is split."""
    pairs = zip(own.placements, other.placements, strict=True)
    return [Partial() if isinstance(q, Shard) else p for p, q in pairs]


def _local_parameters(layer: Layer, x: DTensor, weight: DTensor) -> tuple[Tensor, Tensor | None]:
    of_gradients = _of_gradients(weight, x)
    own = weight.to_local(grad_placements=of_gradients)
    if layer.bias is None:
        return own, None
    if not isinstance(layer.bias, DTensor):
        raise TypeError(
            f"linear_bias must be a DTensor like the others, got {type(layer.bias).__name__}"
        )
    bias = redistributed(layer.bias, weight.placements)
    return own, bias.to_local(grad_placements=of_gradients)
