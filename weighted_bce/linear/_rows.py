"""Takes an input of any number of dimensions as the rows of a matrix.

Only the functions and modules see other shapes: all that they call gets matrices.
"""

from collections.abc import Sequence

from torch import Tensor

from .._options import BATCHMEAN, NONE, SUM, Options
from ._chunks import Layer


def of_layer(layer: Layer) -> Layer:
    """Returns a layer whose input is a matrix; the same layer if it is one already."""
    x = layer.input
    return layer if x.dim() == 2 else layer._replace(input=as_rows(x))


def of_options(options: Options, leading: Sequence[int]) -> Options:
    """Returns options for the rows of logits of shape (*leading, labels).

    Sparse labels are for rows already. `restored` completes the reduction.

    Raises:
        ValueError: if the reduction needs a first dimension, and there is none.
    """
    if options.reduction == BATCHMEAN and not leading:
        raise ValueError(
            "reduction 'batchmean' needs an input of shape (rows, ..., features), got 1-d"
        )

    def factor(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.dim() < 2:
            return tensor
        if any(n != 1 for n in tensor.shape[:-1]):  # it differs between rows
            tensor = tensor.expand(*leading, tensor.shape[-1])
        return as_rows(tensor)

    return options._replace(
        target=options.target if options.is_sparse else as_rows(options.target),
        weight=factor(options.weight),
        pos_weight=factor(options.pos_weight),
        reduction=SUM if options.reduction == BATCHMEAN else options.reduction,
    )


def restored(loss: Tensor, input: Tensor, reduction: int) -> Tensor:
    """Returns the loss of rows as that of an input of shape (..., features)."""
    if reduction == NONE:
        return loss.reshape(input.shape[:-1])
    return loss / input.shape[0] if reduction == BATCHMEAN else loss


def as_rows(tensor: Tensor) -> Tensor:
    """Returns a tensor as a matrix whose columns are its last dimension."""
    return tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0)
