// The extension module: importing it registers the ops; what it binds tells how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/memory.h"
#ifdef WEIGHTED_BCE_WITH_CUDA
#include "cuda/launch.h"
#endif
#include "cpu/isa.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::vector<std::pair<std::string, bool>> simd_levels() {
  weighted_bce::IsaInfo all[weighted_bce::kMaxIsas];
  const int n = weighted_bce::isas(all);
  std::vector<std::pair<std::string, bool>> out;
  for (int i = 0; i < n; ++i) out.emplace_back(all[i].isa->name, all[i].supported);
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = WEIGHTED_BCE_VERSION;
  m.attr("torch_version") = WEIGHTED_BCE_TORCH_VERSION;
  m.attr("compiler") = compiler();
#ifdef WEIGHTED_BCE_WITH_CUDA
  m.attr("cuda_archs") = WEIGHTED_BCE_CUDA_ARCHS;
  m.attr("cuda_version") = WEIGHTED_BCE_CUDA_VERSION;
  m.def("cuda_driver", &weighted_bce::cuda::driver_version,
        "The newest CUDA that the driver serves, 1000 major + 10 minor; 0 without a driver.");
#else
  m.attr("cuda_archs") = "";
  m.attr("cuda_version") = "";
#endif
  m.def("simd_levels", &simd_levels, "Each level compiled in, and whether this processor runs it.");
  m.def("simd_level", [] { return std::string(weighted_bce::isa().name); });
  m.def("set_simd_level", &weighted_bce::set_isa, "Chooses a level, for tests.");
  m.def("kept_bytes", &weighted_bce::kept_bytes);
  m.def("release_kept", &weighted_bce::release_kept);
}
