"""The losses under the names and with the arguments that other packages give them."""

from torch import Tensor

from ._checks import Target
from ._numbers import checked_number
from .functional import Reduction, multilabel_loss_with_logits
from .losses import Asymmetric, Focal
from .modules import MultilabelLoss


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Target,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
) -> Tensor:
    r"""The focal loss with the arguments of torchvision.ops.sigmoid_focal_loss.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u` and target y:

    .. math::
        \alpha y v^\gamma \log(1 + e^{-x}) + (1 - \alpha) (1 - y) u^\gamma \log(1 + e^x)

    Lin, Goyal, Girshick, He and Dollar, "Focal Loss for Dense Object Detection" (ICCV 2017). For
    targets of 0 and 1 it is torchvision's, except on purpose:

    - The power is never that of a difference, as 1 - p_t is in torchvision: for a gamma of 2, that
      is 12% off at a logit of -16 in float32, and 0 at -10 in float16, and so is the gradient.
      Nothing here is NaN for a finite logit, whatever gamma is.
    - Soft targets weigh the two terms; torchvision's formula takes the factor at the target.
    - Reductions of float16 and bfloat16 are float32.

    Args:
        inputs: logits of any shape; float16, bfloat16, float32 or float64.
        targets: labels in [0, 1], of any dtype, of the shape of `inputs`; or sparse labels.
        alpha: the factor of the positives, in [0, 1]; that of the negatives is 1 - alpha. Below 0,
            there are no factors. Default: 0.25.
        gamma: the exponent, finite and at least 0. Default: 2.
        reduction: "none", "mean" and "sum" as in torchvision, "batchmean" or a callable.
            Default: "none".

    Returns:
        "none": of the shape and dtype of `inputs`. Otherwise 0-d, float64 for float64 logits and
        float32 for all others.

    Raises:
        TypeError: an argument or a dtype of the wrong type.
        ValueError: a wrong shape or value, an unknown reduction among them.

    Note:
        `multilabel_loss_with_logits` with `Focal` also has weights, label smoothing and ignored
        elements. What it promises holds here too.

    Example:
        >>> import torch
        >>> from weighted_bce import sigmoid_focal_loss
        >>> logits, targets = torch.tensor([0.0, -5.0]), torch.tensor([1.0, 0.0])
        >>> print(f"{sigmoid_focal_loss(logits, targets, reduction='sum').item():.4f}")
        0.0433
    """
    loss = Focal(gamma, None if checked_number("alpha", alpha) < 0 else alpha)
    return multilabel_loss_with_logits(inputs, targets, loss, reduction=reduction)


class AsymmetricLoss(MultilabelLoss):
    r"""The asymmetric loss with the arguments of its authors' module.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u`, clip m and target y:

    .. math::
        y v^{\gamma_+} \log(1 + e^{-x}) - (1 - y) (u - m)^{\gamma_-} \log(1 - (u - m))

    where the negative term is 0 unless u is above m: Ridnik et al., "Asymmetric Loss For
    Multi-Label Classification" (ICCV 2021). For targets of 0 and 1 it is AsymmetricLoss and
    AsymmetricLossOptimized of github.com/Alibaba-MIIL/ASL, except on purpose:

    - Probabilities are not limited by `eps`. There, a positive with a logit below -18.4 loses its
      gradient, and its loss no longer grows; float16, in which `eps` is 0, has no
      finite gradient from -17 on.
    - Below the clip a negative has no loss and no gradient. There, the limit of 1 on 1 - u + m
      does the same, but for a gamma_neg between 0 and 1 the gradient is NaN.
    - Soft targets weigh the two terms; there, they also choose an exponent between the two.
    - The sum of float16 and bfloat16 is float32.

    timm's AsymmetricLossMultiLabel is that with ``reduction="batchmean"``, in float32. Label
    smoothing, ignored elements and the rest are in `MultilabelLoss(Asymmetric(...))`. The authors'
    ASLSingleLabel, of one label a sample by a softmax, is another loss.

    Args:
        gamma_neg: the exponent of the negatives, finite and at least 0. Default: 4.
        gamma_pos: the exponent of the positives, finite and at least 0. Default: 1.
        clip: m in [0, 1); None is 0. Default: 0.05.
        eps: not used.
        disable_torch_grad_focal_loss: derivatives take the powers for constants. Default: False,
            that of AsymmetricLossOptimized; AsymmetricLoss there has True.
        reduction: "none", "mean", "sum", "batchmean" or a callable. Default: "sum".
        weight: multiplies each element's loss; a tensor that broadcasts to the input. A buffer.
        pos_weight: multiplies the positive term; a number >= 0 (stays a number), or a tensor that
            broadcasts to the input (a buffer).

    Raises:
        TypeError, ValueError: an argument is wrong; when called, see `multilabel_loss_with_logits`.

    Example:
        >>> import torch
        >>> from weighted_bce import AsymmetricLoss
        >>> criterion = AsymmetricLoss(gamma_neg=4, gamma_pos=0, clip=0.05)
        >>> print(f"{criterion(torch.zeros(2), torch.tensor([1.0, 0.0])).item():.4f}")
        0.7177
    """

    def __init__(
        self,
        gamma_neg: float = 4,
        gamma_pos: float = 1,
        clip: float | None = 0.05,
        eps: float = 1e-8,
        disable_torch_grad_focal_loss: bool = False,
        *,
        reduction: Reduction = "sum",
        weight: Tensor | None = None,
        pos_weight: float | Tensor | None = None,
    ) -> None:
        loss = Asymmetric(
            gamma_neg, gamma_pos, 0.0 if clip is None else clip, bool(disable_torch_grad_focal_loss)
        )
        super().__init__(loss, weight, pos_weight, reduction)

    def forward(self, x: Tensor, y: Target) -> Tensor:
        return super().forward(x, y)
