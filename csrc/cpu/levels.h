// The CPU kernels, once for each instruction set.
#pragma once

#include <string>

#include "problem.h"

namespace weighted_bce {

/// Works on elements [begin, end) and returns their part of the result, in double precision.
using Kernel = double (*)(const Problem&, int64_t begin, int64_t end);

/// The kernels for one compute type.
struct Kernels {
  Kernel loss;           // returns the sum of the losses
  Kernel loss_and_grad;  // the same; out = scale * gradient
  Kernel grad;           // out = scale * upstream * gradient; returns 0
  Kernel unreduced;      // out = loss; returns 0
  Kernel count;          // returns the number of targets that are not ignored
};

/// Everything compiled for one instruction set.
struct Level {
  const char* name;
  Kernels for_float;   // float16, bfloat16 and float32 logits
  Kernels for_double;  // float64 logits
};

/// The best level that this processor runs, or the lower one that WEIGHTED_BCE_SIMD names.
/// Throws std::runtime_error, on each call, when the variable holds another word.
const Level& level();

/// From now on the kernels of this level are used, also by calls in other threads. For tests.
/// Throws std::runtime_error where no level has the name or this processor does not run it.
void set_level(const std::string& name);

/// The names of all levels compiled in, lowest first, and whether this processor runs each.
struct LevelInfo {
  const Level* level;
  bool supported;
};
constexpr int kMaxLevels = 3;
int levels(LevelInfo (&out)[kMaxLevels]);

}  // namespace weighted_bce
