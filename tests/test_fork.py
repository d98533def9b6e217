"""The child of a fork works, whatever the other threads of its parent were doing."""

import os

import pytest

from weighted_bce._extension import extension

from .scripts import run_python

# Threads do without a pause what holds a lock, while this one forks. A child that hangs is ended by
# its alarm.
FORKS = """
import os, signal, sys, threading, time, torch
from weighted_bce import LinearWeightedBCEWithLogitsLoss, empty_cache, weighted_bce_with_logits
from weighted_bce.linear import _expectation

torch.set_num_threads(1)
done = threading.Event()
large = torch.zeros(512, 1024)
labels = torch.zeros(512, 1024, dtype=torch.bool)

def gradients():
    x = large.clone().requires_grad_()
    weighted_bce_with_logits(x, labels).backward()
    assert x.grad.untyped_storage().nbytes() == 2**21 and not x.grad.untyped_storage().resizable()

def memory():
    torch.ops.weighted_bce.empty_grad(large)
    empty_cache()

def lock():
    with _expectation._lock:
        time.sleep(0.001)

def linear():
    criterion = LinearWeightedBCEWithLogitsLoss(4, 100, chunk_labels=64)
    criterion(torch.zeros(2, 4), labels[:2, :100]).backward()

def without_end(work):
    while not done.is_set():
        work()

work, in_child = {"gradients": (memory, gradients), "linear": (lock, linear)}[sys.argv[1]]
in_child()
threads = [threading.Thread(target=without_end, args=(work,)) for _ in range(3)]
for thread in threads:
    thread.start()
status = 0
for _ in range(40):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        in_child()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        break
done.set()
for thread in threads:
    thread.join()
sys.exit(f"a child ended with {status}" if status else 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("what", ["gradients", "linear"])
def test_threads_do_not_leave_locks_behind(what: str) -> None:
    if what == "gradients" and extension is None:
        pytest.skip("no extension")
    run_python(FORKS, what)
