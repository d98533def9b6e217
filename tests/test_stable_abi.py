"""The extension uses of torch what the oldest torch has that it promises."""

import re
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc"
SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
USED = re.compile(
    r"\b(?:aoti_torch_|AOTI|STABLE_|STD_TORCH_|THO_|TORCH_BOX)\w*|\btorch::(?:stable|headeronly)(?:::\w+)+"
)
# Seen in the headers and libraries of torch 2.11.0, on which `make oldest` builds.
IN_TORCH_2_11 = {
    "AOTITorchError",
    "AOTI_TORCH_SUCCESS",
    "STABLE_TORCH_LIBRARY",
    "STABLE_TORCH_LIBRARY_IMPL",
    "STD_TORCH_CHECK",
    "TORCH_BOX",
    "aoti_torch_copy_",
    "aoti_torch_cpu_addmm_out",
    "aoti_torch_cpu_mm_out",
    "aoti_torch_empty_strided",
    "aoti_torch_get_current_cuda_stream",
    "aoti_torch_get_device_type",
    "torch::headeronly::DeviceType::CPU",
    "torch::headeronly::ScalarType",
    "torch::stable::Device",
    "torch::stable::Tensor",
    "torch::stable::accelerator::DeviceGuard",
    "torch::stable::detail::StableLibrary",
    "torch::stable::detail::from",
    "torch::stable::detail::to",
    "torch::stable::from_blob",
    "torch::stable::get_num_threads",
    "torch::stable::parallel_for",
    "torch::stable::to",
}


def test_nothing_newer_than_the_oldest_torch_is_used() -> None:
    sources = [path for path in sorted(CSRC.rglob("*")) if path.suffix in SUFFIXES]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    used = set(USED.findall(text))
    assert used, "the pattern finds nothing"
    assert used <= IN_TORCH_2_11, "see whether `make oldest` builds with these; then add them here"
