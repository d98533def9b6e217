"""Losses under the names and with the arguments that other packages give them."""

from torch import Tensor

from ._checks import Target
from ._numbers import checked_number
from ._types import Reduction
from .functional import multilabel_loss_with_logits
from .losses import Asymmetric, Focal
from .modules import MultilabelLoss


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Target,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Computes the focal loss with the arguments of torchvision.ops.sigmoid_focal_loss.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u` and target y, an element's loss is

    .. math::
        \alpha y v^\gamma \log(1 + e^{-x}) + (1 - \alpha) (1 - y) u^\gamma \log(1 + e^x)

    Source: Lin, Goyal, Girshick, He and Dollar, "Focal Loss for Dense Object Detection" (ICCV
    2017). For targets of 0 and 1 the result is torchvision's, with these differences on purpose:

    - torchvision takes the power of a difference, 1 - p_t. With a gamma of 2, its loss and its
      gradient are 12% off at a logit of -16 in float32, and 0 at -10 in float16. Here they keep
      their relative accuracy, and are not NaN for any finite logit and any gamma.
    - Soft targets weight the two terms. torchvision computes one factor at the target instead.
    - The mean and the sum of float16 and bfloat16 are float32.

    Args:
        inputs: the logits, of any shape; float16, bfloat16, float32 or float64.
        targets: the labels, with values in [0, 1]; a tensor of the shape of `inputs` and any real
            dtype, or sparse labels as for `weighted_bce_with_logits`.
        alpha: the factor of positives, at most 1; negatives have the factor 1 - alpha. If it is
            negative, there are no factors. Default: 0.25.
        gamma: the exponent, a finite number >= 0. Default: 2.
        reduction: "none", "mean" or "sum" as in torchvision, "batchmean" or a callable.
            Default: "none".

    Returns:
        The loss. With reduction "none" it has the shape and dtype of `inputs`. Otherwise it is 0-d,
        float64 for float64 logits and float32 for all others.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape or value, or is on another device.

    Note:
        Use `multilabel_loss_with_logits` with `Focal` for weights, label smoothing and ignored
        elements. Its notes apply here too.

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
    r"""Computes the asymmetric loss with the arguments of its authors' module.

    With :math:`u = \sigma(x)`, :math:`v = 1 - u`, clip m and target y, an element's loss is

    .. math::
        y v^{\gamma_+} \log(1 + e^{-x}) - (1 - y) (u - m)^{\gamma_-} \log(1 - (u - m))

    If u is not above m, the negative term is 0. Source: Ridnik et al., "Asymmetric Loss For
    Multi-Label Classification" (ICCV 2021). For targets of 0 and 1 the result is that of
    AsymmetricLoss and AsymmetricLossOptimized of github.com/Alibaba-MIIL/ASL, with these
    differences on purpose:

    - Probabilities are not limited by `eps`. There, a positive with a logit below -18.4 gets
      almost no gradient, and its loss no longer grows. In float16, `eps` is 0, and a logit below
      -11.1 has no finite gradient.
    - A negative below the clip has no loss and no gradient. That is so there too, except that the
      gradient is NaN if `gamma_neg` is between 0 and 1.
    - Soft targets weight the two terms. There, they also choose an exponent between the two.
    - The sum and the mean of float16 and bfloat16 are float32.

    With ``reduction="batchmean"`` this is AsymmetricLossMultiLabel of timm 1.0.31, which computes
    in float32. Use ``MultilabelLoss(Asymmetric(...))`` for label smoothing and ignored elements.
    The authors' ASLSingleLabel, a softmax loss for one label per sample, is a different loss.

    Args:
        gamma_neg: the exponent of the negative term, a finite number >= 0. Default: 4.
        gamma_pos: the exponent of the positive term, a finite number >= 0. Default: 1.
        clip: m, which is subtracted from the probability of a negative; in [0, 1), or None for 0.
            Default: 0.05.
        eps: accepted, but not used.
        disable_torch_grad_focal_loss: whether derivatives treat the two powers as constants.
            Default: False, as in AsymmetricLossOptimized. The default of the authors'
            AsymmetricLoss is True.
        reduction: "none", "mean", "sum", "batchmean" or a callable. Default: "sum", which is the
            authors' reduction.
        weight: multiplies each element's loss; a tensor of finite numbers >= 0 that broadcasts to
            the input. It becomes a buffer. Default: None, which means 1.
        pos_weight: multiplies the positive term; a finite number >= 0, or a tensor of such numbers
            that broadcasts to the input and becomes a buffer. Default: None, which means 1.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype or value. Shapes and devices
            are checked in each call.

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

    def forward(
        self,
        x: Tensor,
        y: Target,
        weight: Tensor | None = None,
        *,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Computes the loss of a batch.

        Args:
            x: the logits, of any shape; float16, bfloat16, float32 or float64.
            y: the labels, with values in [0, 1]. A dense tensor has the shape of `x` and any real
                dtype. If `x` has shape (rows, labels), the labels may also be sparse.
            weight: multiplies each element's loss, only if the module has no weight of its own; a
                tensor that broadcasts to `x`. Default: None.
            normalizer: what the sum of the losses is divided by, in place of the number of
                elements; a finite number >= 0 or a 0-d tensor. Default: None.

        Returns:
            The loss. With reduction "none" it has the shape and dtype of `x`. Otherwise it is 0-d,
            float64 for float64 logits and float32 for all others. A callable's result is returned
            as it is.

        Raises:
            TypeError, ValueError: as `multilabel_loss_with_logits` does.
            ValueError: if the module has a weight, too.
        """
        return super().forward(x, y, weight, normalizer=normalizer)
