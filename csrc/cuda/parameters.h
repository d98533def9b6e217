// What a CUDA kernel is asked to do: the argument of all kernels, a few KiB, without a word of
// CUDA.
#pragma once

#include "problem.h"

namespace weighted_bce::cuda {

/// After merging: no tensor whose gradient fits into a GPU has more dimensions above size 1.
constexpr int kMostDims = 40;
constexpr int kThreads = 256;  // of a block
constexpr int kMostBlocks = 4096;

enum class Mode : uint8_t { kLoss, kLossAndGrad, kGrad, kUnreduced };
template <Mode kMode>
constexpr bool kAddsUp = kMode == Mode::kLoss || kMode == Mode::kLossAndGrad;
template <Mode kMode>
constexpr bool kHasSlopes = kMode == Mode::kGrad || kMode == Mode::kLossAndGrad;

/// Division by a number from 1 to 2^62, as a multiplication: of n < 2^63,
///     n / d = floor(n m / 2^64) / 2^shift    with m = ceil(2^(63 + l) / d), 2^(l - 1) < d <= 2^l
/// and shift = l - 1, exact since n (m d - 2^(63 + l)) < 2^(63 + l)
/// (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994).
struct Divider {
  uint64_t multiplier;
  int32_t shift;  // -1: the number is 1
};

/// How an operand lies along the iteration.
enum class Form : uint8_t {
  kAbsent,
  kUniform,  // one element for all
  kLinear,   // element i at data + i
  kStrided,
};

struct Operand {
  const void* data;
  int64_t strides[kMostDims];  // in elements
  Dtype dtype;
  Form form;
  uint8_t size;  // of an element, in bytes
};

/// Numbers of a call, already in the type of the arithmetic: a GPU may be slow to convert them.
template <class T>
struct Numbers {
  T pos_weight, weight;  // where there is no tensor of them
  T keep, shift;         // of label smoothing: 1 - e and e / 2
  T ignore_index;
};

/// The iteration space is as in weighted_bce::Problem. Losses, factors and what comes from device
/// memory are T: float64 for float64 logits, float32 for all others.
struct Problem {
  int64_t numel;
  int64_t sizes[kMostDims];
  Divider dividers[kMostDims];
  int dims;
  bool ignores;

  Operand x;         // logits
  Operand y;         // targets, where positives.crow is null
  Operand w;         // weight, of dtype T or of the logits'
  Operand p;         // pos_weight, likewise
  Operand upstream;  // one factor an element, likewise
  Operand out;       // gradient or unreduced loss
  Positives positives;
  Divider labels;  // by positives.labels
  Numbers<float> narrow;
  Numbers<double> wide;

  // The gradient is multiplied by *factor / divisor.
  const void* factor;   // T; null: 1
  const double* count;  // the divisor; null: the one below
  double divisor;

  // Of the backward pass that follows a guess: the factor that the gradient carries, where nothing
  // is to be done if it is *factor, and the next guess. `learn` sets both. Null: no guess.
  void* guessed;  // T
  void* learned;  // T

  // A sum over all blocks: the parts of each, then the results.
  double* sums;   // [blocks]
  void* factors;  // [blocks], T: the factor that the block found
  void* loss;     // T, or double for a count
  void* used;     // T: the factor that all blocks found, NaN where they differ; null: not wanted
};
static_assert(sizeof(Problem) <= 4096, "an argument of a kernel");

}  // namespace weighted_bce::cuda
