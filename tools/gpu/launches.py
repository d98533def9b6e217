"""The four main kernels, launched once each: python -m tools.gpu.launches --help.

The loss and its gradient of float32 and bfloat16 logits, with bool and with sparse targets.
"""

import sys
from collections.abc import Sequence

import torch

import weighted_bce
from tools.program import Parser, Refusal, run
from weighted_bce import SparseLabels, backend, weighted_bce_with_logits

from .device import add_device, check_device, elements

PROGRAM = "python -m tools.gpu.launches"
LABELS = 16384


def launch(device: str, elements: int) -> None:
    labels = min(LABELS, elements)
    shape = elements // labels, labels
    hard = torch.rand(shape, device=device) < 0.005
    targets = hard, SparseLabels.from_dense(hard)
    if device == "cuda":
        torch.cuda.synchronize()
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(shape, device=device).to(dtype).requires_grad_()
        for target in targets:
            with backend("fused"):
                loss = weighted_bce_with_logits(logits, target, pos_weight=7.0)
            if not loss.isfinite():
                raise Refusal(f"the loss of {dtype} is {loss.item()}", 1)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add_device(parser)
    parser.add_argument("--elements", type=elements, default=2**26, metavar="N")
    options = parser.parse_args(arguments)
    check_device(options.device)
    print(weighted_bce.show_config())
    launch(options.device, options.elements)
    print("the main kernels ran")


if __name__ == "__main__":
    sys.exit(main())
