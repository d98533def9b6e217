"""A loss under the transforms of torch.func, alone and within one another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_bce import backend, weighted_bce_with_logits

from .truth import as_given, logits

SAMPLES, ROWS, LABELS = 3, 4, 5
DTYPES = (torch.float32, torch.bfloat16, torch.float64)

# A batching rule that is missing is a warning of torch about performance.
SLOW_BATCHING = pytest.mark.filterwarnings("error:.*performance drop")


class Ops(TorchDispatchMode):
    """Remembers which of our ops ran."""

    def __enter__(self) -> list[str]:
        self.names: list[str] = []
        super().__enter__()
        return self.names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "weighted_bce":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def same(fused: Callable[[], Any], rtol: float = 1e-5, atol: float = 1e-6) -> Any:
    """The result, which the reference gives as well."""
    with backend("reference"):
        expected = fused()
    with backend("fused"):
        result = fused()
    torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)
    return result


def loss(x: Tensor, y: Any, w: Tensor | None = None, p: Any = 3.0, **options: Any) -> Tensor:
    return weighted_bce_with_logits(x, y, w, p, **options)


def hard_samples(device: str) -> Tensor:
    """Targets with as many positives in each sample, in other rows: sparse ones can be stacked."""
    y = torch.zeros(SAMPLES, ROWS, LABELS, dtype=torch.bool, device=device)
    for k in range(SAMPLES):
        y[k, 0, :3] = y[k, 1 + k % 3, k] = y[k, 3, 4] = True
    assert len({int(one.sum()) for one in y}) == 1
    return y


@dataclass
class Samples:
    """Logits `xs` and targets `ys` of some samples, those of one, two tangents of its logits."""

    xs: Tensor
    ys: Any
    x: Tensor
    y: Any
    t: Tensor
    u: Tensor
    options: dict[str, Any]

    def loss(self, x: Tensor, y: Any = None, **more: Any) -> Tensor:
        y = self.y if y is None else y
        return weighted_bce_with_logits(x, y, **{**self.options, **more})

    def total(self, x: Tensor, y: Any = None, **more: Any) -> Tensor:
        return self.loss(x, y, **more).sum()


def samples(
    device: str,
    dtype: torch.dtype = torch.float32,
    sparse: torch.dtype | None = None,
    **options: Any,
) -> Samples:
    dense = hard_samples(device)
    x = logits(2 + SAMPLES, ROWS, LABELS, dtype=dtype, device=device) / 3
    targets = as_given(dense, sparse), x[0], as_given(dense[0], sparse)
    return Samples(x[2:], *targets, *torch.randn_like(x[:2]), options)


def _dual(c: Samples) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(c.loss(forward_ad.make_dual(c.x, c.t)))


TRANSFORMS: dict[str, Callable[[Samples], Any]] = {
    "grad": lambda c: grad(c.total)(c.x),
    "vjp": lambda c: vjp(c.loss, c.x)[1](torch.ones_like(c.loss(c.x))),
    "jvp": lambda c: jvp(c.loss, (c.x,), (c.t,)),
    "dual level": lambda c: tuple(_dual(c)),
    "jacrev": lambda c: jacrev(c.loss)(c.x),
    "jacfwd": lambda c: jacfwd(c.loss)(c.x),
    "hessian": lambda c: hessian(c.total)(c.x),
    "vmap": lambda c: vmap(c.loss)(c.xs, c.ys),
    "vmap, dims": lambda c: vmap(c.loss, (1, None))(c.xs.movedim(0, 1), c.y),
    "vmap of grad": lambda c: vmap(grad(c.total))(c.xs, c.ys),
    "vmap of jvp": lambda c: vmap(lambda t: jvp(c.loss, (c.x,), (t,))[1])(torch.stack([c.t, c.u])),
    "vmap of hessian": lambda c: vmap(hessian(c.total))(c.xs, c.ys),
    "grad of vmap": lambda c: grad(lambda xs: vmap(c.total)(xs, c.ys).square().sum())(c.xs),
    "grad of vmap of grad": lambda c: grad(lambda xs: vmap(grad(c.total))(xs, c.ys).square().sum())(
        c.xs
    ),
    "grad of grad": lambda c: grad(lambda x: grad(c.total)(x).square().sum())(c.x),
    "grad of jvp": lambda c: grad(lambda x: jvp(c.total, (x,), (c.t,))[1])(c.x),
    "jvp of grad": lambda c: jvp(grad(c.total), (c.x,), (c.t,)),
    "jvp of jvp": lambda c: jvp(lambda x: jvp(c.loss, (x,), (c.t,))[1], (c.x,), (c.u,)),
    "jacrev of jacrev": lambda c: jacrev(jacrev(c.total))(c.x),
    "jacrev of jacfwd": lambda c: jacrev(jacfwd(c.total))(c.x),
    "jacfwd of jacfwd": lambda c: jacfwd(jacfwd(c.total))(c.x),
    "grad of pos_weight": lambda c: grad(lambda p: c.total(c.x, pos_weight=p))(
        torch.ones_like(c.x[0])
    ),
}
