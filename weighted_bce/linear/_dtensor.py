"""The loss of a linear layer of DTensors: each process has the logits of its labels and rows.

Nothing is sent but what is summed: the loss, the gradient of the input over processes that share
labels out, that of the layer over those that share rows out.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from .. import _reference
from .._checks import check_listed
from .._dtensor import beside, own_part, placed
from .._options import SUM, Options
from . import _ops
from ._chunks import How, Layer
from ._passes import Step


def loss(
    layer: Layer,
    options: Options,
    reduction: int,
    how: How,
    step: Step | None,
) -> Tensor:
    """The loss after a reduction, a sum over processes that is yet to be taken."""
    check_listed(layer.logits_like(), options)  # a shard does not know how many labels there are
    x, weight = _both(layer)
    if step is not None and Shard(0) in x.placements:
        raise NotImplementedError(
            "fused_step is given the gradients of whole batches: input must not be split over "
            f"processes, got {x.placements}"
        )
    own_parameters = _parameters(layer, x)
    if step is not None:  # which receives their gradients; they go no further
        own_parameters = tuple(map(_cut_off, own_parameters))
    own = Layer(x.to_local(grad_placements=_of_gradients(x, weight)), *own_parameters)
    total = _ops.loss(own, _own_options(x, weight, options), SUM, how, step)
    logits = _of_logits(x, weight)
    sums = [Replicate() if isinstance(p, Replicate) else Partial() for p in logits]
    whole = DTensor.from_local(total, x.device_mesh, sums, run_check=False)
    return _reference.divided(whole, reduction, layer.logits_like(), options)


def _both(layer: Layer) -> tuple[DTensor, DTensor]:
    """The input and the weight, placed so that each process can go on by itself."""
    x, weight = layer.input, layer.weight
    for name, tensor in (("input", x), ("linear_weight", weight)):
        if not isinstance(tensor, DTensor):
            raise TypeError(
                f"{name} must be a DTensor like the others, got {type(tensor).__name__}"
            )
    x, weight = cast(DTensor, x), cast(DTensor, weight)
    if weight.device_mesh != x.device_mesh:
        raise ValueError(
            f"linear_weight must be on {x.device_mesh} like input, got {weight.device_mesh}"
        )
    x = _placed(x, [Replicate() if p.is_partial() else p for p in x.placements])
    for of_input, of_weight in zip(x.placements, weight.placements, strict=True):
        allowed = (Shard(0), Replicate())
        shared = of_input == of_weight == Shard(0)
        if of_input not in allowed or of_weight not in allowed or shared:
            raise ValueError(
                "input and linear_weight must each be replicated or, one of them, Shard(0) along a "
                f"dimension of the mesh, got {x.placements} and {weight.placements}"
            )
    return x, weight


def _placed(tensor: DTensor, placements: Sequence[Placement]) -> DTensor:
    """Without a part in the graph that would send the gradient, where nothing is to be done."""
    if tensor.placements == tuple(placements):
        return tensor
    return tensor.redistribute(placements=placements)


def _cut_off(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().requires_grad_(parameter.requires_grad)


def _of_logits(x: DTensor, weight: DTensor) -> list[Placement]:
    pairs = zip(x.placements, weight.placements, strict=True)
    return [Shard(1) if w == Shard(0) else p for p, w in pairs]


def _of_gradients(own: DTensor, other: DTensor) -> list[Placement]:
    """A process has a part of the gradient of what it shares with those that have other parts of
    what it is multiplied by."""
    pairs = zip(own.placements, other.placements, strict=True)
    return [Partial() if isinstance(q, Shard) else p for p, q in pairs]


def _parameters(layer: Layer, x: DTensor) -> tuple[Any, ...]:
    weight = cast(DTensor, layer.weight)
    of_gradients = _of_gradients(weight, x)
    own = weight.to_local(grad_placements=of_gradients)
    if layer.bias is None:
        return own, None
    if not isinstance(layer.bias, DTensor):
        raise TypeError(
            f"linear_bias must be a DTensor like the others, got {type(layer.bias).__name__}"
        )
    bias = _placed(layer.bias, weight.placements)
    return own, bias.to_local(grad_placements=of_gradients)


def _own_options(x: DTensor, weight: DTensor, options: Options) -> Options:
    logits = _of_logits(x, weight)
    rows, labels = own_part(x, 0), own_part(weight, 0)

    def own(name: str, tensor: Tensor | None, placements: list[Placement]) -> Any:
        if tensor is None:
            return None
        found = placed(name, tensor, x, placements)
        return found.to_local() if isinstance(found, DTensor) else found

    def factor(name: str, tensor: Tensor | None) -> Any:
        return None if tensor is None else own(name, tensor, beside(tensor, 2, logits))

    options = options._replace(
        weight=factor("weight", options.weight), pos_weight=factor("pos_weight", options.pos_weight)
    )
    if not options.is_sparse:
        return options._replace(target=own("target", options.target, logits))
    whole: list[Placement] = [Replicate() for _ in logits]

    def indices(name: str, tensor: Tensor) -> Any:
        return own(name, tensor, whole) if isinstance(tensor, DTensor) else tensor

    crow = indices("crow_indices", cast(Tensor, options.crow_indices))
    return options._replace(
        target=indices("col_indices", options.target),
        crow_indices=crow[rows.start : rows.stop + 1],
        first_label=labels.start,
    )
