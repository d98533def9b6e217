"""Processes that keep cores busy, as other programs on a machine do."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from subprocess import DEVNULL, PIPE, Popen

from tools.program import Refusal

# It looks for its parent several thousand times a second, and ends when that is gone. Only Python
# itself is imported, so that it starts quickly.
LOOP = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    sum(range(10_000))
"""


@contextmanager
def keep_busy(count: int) -> Iterator[None]:
    """Runs `count` processes, each of which would keep one core busy, during a `with` block.

    They run when the block begins, and are killed when it ends, however it ends. If this process
    is killed, they end by themselves. They stay in its session: Linux may share the cores evenly
    among sessions instead of among threads.

    Raises:
        Refusal: if they cannot be started, or if one has ended before the block.
    """
    ended_early = Refusal(f"--busy {count}: a process that kept a core busy has ended early", 1)
    command = [sys.executable, "-I", "-S", "-c", LOOP, str(os.getpid())]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            try:
                # An interrupt from the keyboard ends them too, of which they have nothing to say.
                process = stack.enter_context(Popen(command, stdout=PIPE, stderr=DEVNULL))
            except OSError as error:
                raise Refusal(f"--busy {count}: cannot start a process: {error}", 1) from None
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():  # which is written when its loop begins
                raise ended_early
        yield
        if any(process.poll() is not None for process in started):
            raise ended_early
