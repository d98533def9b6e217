// Chooses the instruction set at run time.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"

namespace weighted_bce {

extern const Isa kBaseline;
#if defined(__x86_64__)
extern const Isa kAvx2;
extern const Isa kAvx512;
#endif

int isas(IsaInfo (&out)[kMaxIsas]) {
  int n = 0;
  out[n++] = {&kBaseline, true};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  out[n++] = {&kAvx2, avx2};
  out[n++] = {&kAvx512, avx512};
#endif
  return n;
}

namespace {

/// Returns the best that this processor has, or a lower one whose name is `wanted`.
const Isa* choose(const char* wanted, const char* what) {
  IsaInfo all[kMaxIsas];
  const int n = isas(all);
  const Isa* best = nullptr;
  std::string names;
  for (int i = 0; i < n; ++i) {
    names += std::string(i ? ", " : "") + all[i].isa->name;
    if (all[i].supported) best = all[i].isa;
    if (wanted && std::string(wanted) == all[i].isa->name) return best;
  }
  if (wanted && *wanted) {
    throw std::runtime_error(std::string(what) + " must be one of " + names + ", got " + wanted);
  }
  return best;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa{choose(std::getenv("WEIGHTED_BCE_SIMD"), "WEIGHTED_BCE_SIMD")};
  return isa;
}

}  // namespace

const Isa& isa() { return *chosen().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) {
  const Isa* const named = choose(name.c_str(), "the level");
  if (named->name != name) throw std::runtime_error("this processor does not run " + name);
  chosen().store(named, std::memory_order_relaxed);
}

}  // namespace weighted_bce
