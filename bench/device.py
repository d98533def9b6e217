"""The devices, with the ways to time work and to measure memory on them."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from tools.command import why_no_kernels
from tools.program import Refusal, shortened
from weighted_bce._extension import extension

WARM_UPS = 2
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Device:
    """The CPU. Its memory is measured in other processes, see timing.peak."""

    name = "cpu"
    is_gpu = False

    def seconds(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def cache_bytes(self) -> int:
        """Returns the size of the cache that samples should exceed; 0 if it is not known."""
        sizes = (path.read_text().strip() for path in CACHES.glob("index*/size"))
        return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=0)

    def free_bytes(self) -> int:
        """Returns how much can be allocated now."""
        return int(psutil.virtual_memory().available)

    def release(self) -> None:
        """Gives unused memory back to the system."""

    def facts(self) -> dict[str, str]:
        """Returns facts about the device, by name."""
        return {}


class Cuda(Device):
    """The current CUDA device. Events time the work, torch's allocator counts its memory."""

    name = "cuda"
    is_gpu = True

    def __init__(self) -> None:
        # Made once: an event made between two others would count as their time.
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, work: Callable[[], object]) -> float:
        """Returns the time from the end of the work queued before to the end of this work.

        The time that it takes to queue the work counts only if the GPU waits for it.
        """
        self._start.record()
        work()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3

    def cache_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)

    def free_bytes(self) -> int:
        """Counts what torch's allocator keeps for later as free, too."""
        self.release()
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + kept

    def rise_of_peak(self, work: Callable[[], object]) -> int:
        """Returns how many bytes the work needs at its peak, beyond those in use."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - before

    def release(self) -> None:
        gc.collect()
        # Refused for the rest of the process once the capture of a graph has failed.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()

    def graph(
        self, prepare: Callable[[], Any], work: Callable[[Any], object]
    ) -> Callable[[], None]:
        """Captures the work on what `prepare` returns; the result replays it."""
        prepare()  # so that what it allocates at first use belongs to the usual stream
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # torch.cuda.graph does not leave it when it fails
            for _ in range(WARM_UPS):  # what is made or loaded at first use cannot be captured
                work(prepare())
            prepared = prepare()
            with torch.cuda.graph(graph, stream=stream):
                work(prepared)
        torch.cuda.current_stream().wait_stream(stream)
        return graph.replay

    def facts(self) -> dict[str, str]:
        assert extension is not None
        version = int(extension.cuda_driver())
        supported = f"{version // 1000}.{version % 1000 // 10}"
        return {"driver": f"CUDA {supported}", "CUDA": str(torch.version.cuda)}


CPU = Device()


def find(name: str) -> Device:
    """Returns the device of that name; raises Refusal if it cannot be used."""
    if name == CPU.name:
        return CPU
    why_not = f"torch {torch.__version__} finds no GPU; use --device cpu"
    if torch.cuda.is_available():
        why_not = why_no_kernels(name)
    if why_not:
        raise Refusal(f"--device {name}: {why_not}")
    return Cuda()


def reason(error: Exception) -> str:
    """Returns the one line of a message, which can be very long, that says the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.endswith(":")), type(error).__name__)
    return shortened(text, 150)
