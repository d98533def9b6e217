// Chooses the level at run time.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/levels.h"

namespace weighted_bce {

extern const Level kBaseline;
#if defined(__x86_64__)
extern const Level kAvx2;
extern const Level kAvx512;
#endif

int levels(LevelInfo (&out)[kMaxLevels]) {
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

/// The best level that this processor runs, or a lower one whose name is `wanted`.
const Level* choose(const char* wanted, const char* what) {
  LevelInfo all[kMaxLevels];
  const int n = levels(all);
  const Level* best = nullptr;
  std::string names;
  for (int i = 0; i < n; ++i) {
    names += std::string(i ? ", " : "") + all[i].level->name;
    if (all[i].supported) best = all[i].level;
    if (wanted && std::string(wanted) == all[i].level->name) return best;
  }
  if (wanted && *wanted) {
    throw std::runtime_error(std::string(what) + " must be one of " + names + ", got " + wanted);
  }
  return best;
}

std::atomic<const Level*>& chosen() {
  static std::atomic<const Level*> level{
      choose(std::getenv("WEIGHTED_BCE_SIMD"), "WEIGHTED_BCE_SIMD")};
  return level;
}

}  // namespace

const Level& level() { return *chosen().load(std::memory_order_relaxed); }

void set_level(const std::string& name) {
  const Level* const found = choose(name.c_str(), "the level");
  if (found->name != name) throw std::runtime_error("this processor does not run " + name);
  chosen().store(found, std::memory_order_relaxed);
}

}  // namespace weighted_bce
