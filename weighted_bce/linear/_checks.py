"""Checks whether the tensors of a linear layer fit each other."""

import torch
from torch import Tensor

from .._checks import INPUT_DTYPES, check_input
from .._csr_checks import short


def check_layer(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, any_dtype: bool
) -> None:
    """Raises TypeError or ValueError if the tensors of a linear layer do not fit each other.

    With `any_dtype`, half precision and float32 may be mixed.
    """
    check_input(input)
    if input.layout is not torch.strided:
        raise TypeError(f"input must be torch.strided, got {input.layout}")
    if input.dim() == 0:
        raise ValueError("input must have shape (..., features), got ()")
    features = input.shape[-1]
    _check_parameter("linear_weight", linear_weight, input, any_dtype)
    if linear_weight.dim() != 2 or linear_weight.shape[1] != features:
        raise ValueError(
            f"linear_weight must have shape (labels, {features}) to match input, "
            f"got {tuple(linear_weight.shape)}"
        )
    if linear_bias is None:
        return
    _check_parameter("linear_bias", linear_bias, input, any_dtype)
    if linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(
            f"linear_bias must have shape ({linear_weight.shape[0]},) to match linear_weight, "
            f"got {tuple(linear_bias.shape)}"
        )


def _check_parameter(name: str, parameter: Tensor, input: Tensor, any_dtype: bool) -> None:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(parameter).__name__}")
    if parameter.layout is not torch.strided:
        raise TypeError(f"{name} must be torch.strided, got {parameter.layout}")
    mixed = any_dtype and parameter.dtype in INPUT_DTYPES - {torch.float64}
    if parameter.dtype != input.dtype and not (mixed and input.dtype != torch.float64):
        raise TypeError(
            f"{name} must be {short(input.dtype)} like input, got {short(parameter.dtype)}"
        )
    if parameter.device != input.device:
        raise ValueError(f"{name} must be on {input.device} like input, got {parameter.device}")
