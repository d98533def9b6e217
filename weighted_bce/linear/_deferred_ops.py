"""The operations on a `DeferredGrad` that do not need the whole gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._options import compute_dtype
from ._deferred import DeferredGrad, operations

aten: Any = torch.ops.aten


def _same(func: Any, grad: DeferredGrad, *_: Any) -> DeferredGrad:
    return grad.with_sum(grad.gradient_sum)


def _view(func: Any, grad: DeferredGrad, shape: list[int]) -> Any:
    return _same(func, grad) if list(grad.shape) == shape else NotImplemented


def _clone(func: Any, grad: DeferredGrad, **_: Any) -> DeferredGrad:
    return grad.copy()


def _zero_(func: Any, grad: DeferredGrad) -> DeferredGrad:
    grad.gradient_sum.zero_()
    return grad


def _match(one: Any, other: Any) -> bool:
    """Tells whether two tensors have one shape, dtype and layout: gradients may be sparse."""
    return isinstance(other, Tensor) and all(
        getattr(one, name) == getattr(other, name) for name in ("shape", "dtype", "layout")
    )


def _add(func: Any, one: Any, other: Any, *, alpha: float = 1) -> Any:
    if not _match(one, other):
        return NotImplemented
    if isinstance(one, DeferredGrad):
        total = one.copy()
        if isinstance(other, DeferredGrad):
            total.gradient_sum.passes = max(one.gradient_sum.passes, other.gradient_sum.passes)
    else:
        total, other, alpha = _multiply_(func, other.copy(), alpha), one, 1
    total.gradient_sum.add_(other.gradient_sum if isinstance(other, DeferredGrad) else other, alpha)
    return total


def _add_(func: Any, one: Any, other: Any, *, alpha: float = 1) -> Any:
    if not _match(one, other):
        return NotImplemented
    if not isinstance(one, DeferredGrad):
        for labels, gradient in other.chunks():
            one[labels].add_(gradient, alpha=alpha)
    elif isinstance(other, DeferredGrad):  # autograd adds what another backward pass brings
        one.gradient_sum.passes += other.gradient_sum.passes
        one.gradient_sum.add_(other.gradient_sum, alpha)
    else:
        one.gradient_sum.add_(other, alpha)
    return one


def _is_number(value: Any, grad: DeferredGrad) -> bool:
    """Tells whether a factor is one number, with which the gradient keeps its shape and dtype."""
    if not isinstance(value, Tensor):
        return isinstance(value, (int, float))
    is_same = value.dtype == grad.dtype and value.dim() <= grad.dim()
    return value.dim() == 0 or (value.numel() == 1 and is_same)


def _multiply_(func: Any, grad: Any, factor: Any) -> Any:
    if not isinstance(grad, DeferredGrad):
        return NotImplemented
    if _is_number(factor, grad):
        grad.gradient_sum.multiply_(factor.reshape(()) if isinstance(factor, Tensor) else factor)
    else:
        grad.whole().mul_(factor)
    return grad


def _multiply(func: Any, grad: Any, factor: Any) -> Any:
    if not isinstance(grad, DeferredGrad):
        grad, factor = factor, grad
    return _multiply_(func, grad.copy(), factor) if _is_number(factor, grad) else NotImplemented


def _divide_(func: Any, grad: Any, divisor: Any, **rounding: Any) -> Any:
    if rounding or not isinstance(grad, DeferredGrad):
        return NotImplemented
    if _is_number(divisor, grad):  # Python would not divide by 0, and half precision has less range
        one = torch.ones((), dtype=torch.float64, device="cpu")
        return _multiply_(func, grad, one / divisor)
    grad.whole().div_(divisor)
    return grad


def _divide(func: Any, grad: Any, divisor: Any, **rounding: Any) -> Any:
    if rounding or not isinstance(grad, DeferredGrad) or not _is_number(divisor, grad):
        return NotImplemented
    return _divide_(func, grad.copy(), divisor)


def _norm(
    func: Any,
    grad: DeferredGrad,
    ord: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns the norm of all elements, from the norms of the chunks."""
    norm: Callable[..., Tensor] = torch.linalg.vector_norm
    if dim or keepdim or ord == 0 or grad.numel() == 0:
        return norm(grad.whole(), ord, dim, keepdim, dtype=dtype)
    sum_dtype = compute_dtype(grad.dtype)
    parts = [norm(gradient, ord, dtype=sum_dtype) for _, gradient in grad.chunks()]
    return norm(torch.stack(parts), ord).to(dtype or grad.dtype)


def _norm_of_item(
    func: Any, grad: DeferredGrad, ord: float = 2, dtype: torch.dtype | None = None
) -> Tensor:
    return _norm(func, grad, ord, dtype=dtype)


def _on_list(one: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the operation on a list, which may also have tensors that are not deferred, from that
    on a deferred gradient. Another list has an item for each gradient."""

    def on_list(func: Any, grads: list[Tensor], *others: Any, **options: Any) -> Any:
        def at(other: Any, i: int) -> Any:
            return other[i] if isinstance(other, (list, tuple)) else other

        def of(other: Any, indices: list[int]) -> Any:
            return [other[i] for i in indices] if isinstance(other, (list, tuple)) else other

        others = tree_map_only(DeferredGrad, DeferredGrad.whole, others)
        indices = range(len(grads))
        plain = [i for i in indices if not isinstance(grads[i], DeferredGrad)]
        results: dict[int, Any] = {}
        if plain:
            theirs = func(of(grads, plain), *(of(o, plain) for o in others), **options)
            results.update(zip(plain, theirs or [None] * len(plain), strict=True))
        for i in sorted(set(indices) - set(plain)):
            results[i] = one(func, grads[i], *(at(o, i) for o in others), **options)
        return None if func._schema.returns == [] else [results[i] for i in indices]

    return on_list


def _unscale_(func: Any, grads: list[Tensor], found_inf: Tensor, inv_scale: Tensor) -> None:
    """Multiplies gradients as a GradScaler does, and records whether all of them are finite.

    A deferred gradient counts as finite if the input, the loss and grad_output are.
    """
    plain = [grad for grad in grads if not isinstance(grad, DeferredGrad)]
    deferred = [grad for grad in grads if isinstance(grad, DeferredGrad)]
    if plain:
        func(plain, found_inf, inv_scale)
    func([grad.gradient_sum.not_finite(found_inf) for grad in deferred], found_inf, inv_scale)
    for grad in deferred:
        grad.gradient_sum.multiply_(inv_scale.reshape(()))
        grad.gradient_sum.is_unscaled = True


operations |= {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.view.default: _view,
    aten.clone.default: _clone,
    aten.zero_.default: _zero_,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.mul.Tensor: _multiply,
    aten.mul_.Tensor: _multiply_,
    aten.div.Tensor: _divide,
    aten.div_.Tensor: _divide_,
    aten.linalg_vector_norm.default: _norm,
    aten._foreach_norm.Scalar: _on_list(_norm_of_item),
    aten._foreach_zero_.default: _on_list(_zero_),
    aten._foreach_mul_.Scalar: _on_list(_multiply_),
    aten._foreach_mul_.Tensor: _on_list(_multiply_),
    aten._foreach_mul_.List: _on_list(_multiply_),
    aten._foreach_mul_.ScalarList: _on_list(_multiply_),
    aten._foreach_div_.Scalar: _on_list(_divide_),
    aten._foreach_div_.Tensor: _on_list(_divide_),
    aten._foreach_div_.List: _on_list(_divide_),
    aten._foreach_div_.ScalarList: _on_list(_divide_),
    aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_,
}
