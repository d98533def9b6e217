// Chooses the level at run time.
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

const Level* choose() {
  LevelInfo all[kMaxLevels];
  const int n = levels(all);
  const char* wanted = std::getenv("WEIGHTED_BCE_SIMD");
  const Level* best = nullptr;
  std::string names;
  for (int i = 0; i < n; ++i) {
    names += std::string(i ? ", " : "") + all[i].level->name;
    if (all[i].supported) best = all[i].level;
    if (wanted && std::string(wanted) == all[i].level->name) return best;
  }
  if (wanted && *wanted) {
    throw std::runtime_error("WEIGHTED_BCE_SIMD must be one of " + names + ", got " + wanted);
  }
  return best;
}

}  // namespace

const Level& level() {
  static const Level* const chosen = choose();
  return *chosen;
}

}  // namespace weighted_bce
