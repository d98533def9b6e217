// What a CPU kernel is asked to do, without a word of torch: the kernels also compile on their own,
// for the sanitizers.
#pragma once

#include <cstdint>

namespace weighted_bce {

enum class Dtype : uint8_t {
  kBool,
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kUInt32,
  kInt32,
  kUInt64,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};
constexpr int kDtypes = 13;

constexpr int kMaxDims = 64;

/// One tensor as seen over the iteration space. Strides count elements; 0 repeats one.
struct Operand {
  const void* data = nullptr;  // null: absent
  Dtype dtype = Dtype::kFloat32;
  int element_size = 0;
  bool linear = false;  // element i of the iteration lies at data + i
  int64_t strides[kMaxDims];
};

/// The iteration space is [sizes[0], ..., sizes[dims - 1]], row-major, walked as one line.
struct Problem {
  int dims = 0;
  int64_t sizes[kMaxDims];
  int64_t numel = 0;
  Operand x;         // logits
  Operand y;         // targets
  Operand w;         // weight, optional
  Operand p;         // pos_weight, optional
  Operand upstream;  // one factor an element, optional: the incoming gradient of an unreduced loss
  Operand out;       // gradient or unreduced loss; its data is written
  bool stream = false;  // write `out` past the caches

  double pos_weight = 1;  // where p is absent
  double label_smoothing = 0;
  double scale = 1;  // multiplies the gradient before it is rounded
  bool ignores = false;
  double ignore_index = 0;  // NaN ignores NaN targets
};

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

/// The names of all levels compiled in, lowest first, and whether this processor runs each.
struct LevelInfo {
  const Level* level;
  bool supported;
};
constexpr int kMaxLevels = 3;
int levels(LevelInfo (&out)[kMaxLevels]);

}  // namespace weighted_bce
