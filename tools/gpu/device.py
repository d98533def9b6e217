"""Whether this process can still use its GPU; where it never did, torch is not imported for it."""

import sys


def synchronize() -> None:
    """Waits for the GPU; raises the error of a kernel that has failed since."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def is_lost() -> bool:
    """Whether an error has left the GPU unusable for this process."""
    try:
        synchronize()
    except RuntimeError:
        return True
    return False
