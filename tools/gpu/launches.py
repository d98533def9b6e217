"""The four main kernels, launched once each: python -m tools.gpu.launches --help.

The loss and its gradient of float32 and bfloat16 logits, with bool and with sparse targets.
"""

import argparse

import torch

import weighted_bce
from weighted_bce import SparseLabels, backend, weighted_bce_with_logits

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
                raise SystemExit(f"the loss of {dtype} is {loss.item()}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.launches", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--elements", type=int, default=2**26)
    options = parser.parse_args()
    print(weighted_bce.show_config())
    launch(options.device, options.elements)
    print("the main kernels ran")


if __name__ == "__main__":
    main()
