// A Problem says what a kernel is to do, on any backend. It does not know torch: the kernels also
// compile on their own, for the tests. It is small enough to be the argument of a CUDA kernel.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WEIGHTED_BCE_INLINE __device__ __forceinline__
#else
#define WEIGHTED_BCE_INLINE inline __attribute__((always_inline))
#endif

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

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

/// The mode says what a kernel computes.
enum class Mode : uint8_t {
  kLoss,         // the sum of the losses
  kLossAndGrad,  // the same, and `out` = gradient
  kGrad,         // `out` = gradient
  kUnreduced,    // `out` = losses
  kCount,        // the number of targets that are not ignored
};
constexpr bool sums(Mode mode) { return mode == Mode::kLoss || mode == Mode::kLossAndGrad; }
template <Mode kMode>
constexpr bool kSums = sums(kMode);
template <Mode kMode>
constexpr bool kHasGrad = kMode == Mode::kGrad || kMode == Mode::kLossAndGrad;

/// The losses as the ops number them; losses.h says what each is. Exported programs hold these
/// numbers, so that none may change.
enum class Loss : uint8_t {
  kBce = 0,
  kFocal = 1,
  kSquaredHinge = 2,
  kPoly1 = 3,
  kHill = 4,
  kAsymmetric = 5,
};
constexpr int kLosses = 6, kMaxParameters = 4;

/// An iteration has no more dimensions: no tensor that fits into memory has more above size 1.
constexpr int kMaxDims = 40;

/// A division by a number from 1 to 2^62 is a multiplication: of n < 2^63,
///     n / d = floor(n m / 2^64) / 2^shift    with m = ceil(2^(63 + l) / d), 2^(l - 1) < d <= 2^l
/// and shift = l - 1, exact since n (m d - 2^(63 + l)) < 2^(63 + l)
/// (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994).
struct Divider {
  uint64_t multiplier;
  int32_t shift;  // -1: the number is 1
};
inline Divider divider(int64_t number) {
  if (number <= 1) return {0, -1};
  const auto d = static_cast<uint64_t>(number);
  const int l = 64 - __builtin_clzll(d - 1);
  const auto power = static_cast<unsigned __int128>(1) << (63 + l);
  return {static_cast<uint64_t>((power + d - 1) / d), l - 1};
}

/// The form says how an operand lies along the iteration.
enum class Form : uint8_t {
  kAbsent,
  kUniform,     // one element for all
  kContiguous,  // element i at data + i
  kStrided,
};

/// An operand is a tensor along the iteration. Strides count elements; 0 repeats one.
struct Operand {
  const void* data = nullptr;
  int64_t strides[kMaxDims];
  Dtype dtype = Dtype::kFloat32;
  Form form = Form::kAbsent;
  uint8_t element_size = 0;  // bytes
};

/// Sparse targets: row r of [num_rows, num_labels] is 1 at label col_indices[i] - first_label for i
/// from crow_indices[r] to crow_indices[r + 1], and 0 elsewhere. Labels outside of the columns may
/// occur too; they are ignored.
struct Csr {
  const void* crow_indices = nullptr;  // [num_rows + 1], never falling; null: targets are dense
  const void* col_indices = nullptr;   // [count], ascending within each row
  int index_size = 0;                  // bytes of an element of either: 4 or 8
  int64_t num_rows = 0, num_labels = 0, count = 0;
  int64_t first_label = 0;
  Divider by_num_labels;  // see set_dividers
};

/// These numbers of a call are in the type of its arithmetic. The host converts them: a GPU may be
/// slow to.
template <class T>
struct CallConstants {
  T pos_weight, weight;          // where there is no operand of them
  T keep, shift;                 // of label smoothing e: 1 - e and e / 2
  T ignore_index;                // NaN ignores NaN targets
  T parameters[kMaxParameters];  // of the loss
  T derived;                     // a constant that follows from them, see losses.h
  T remainders[kMaxParameters];  // what the conversion to T has taken from the parameters,
  T derived_remainder;           // and from the other constant
};

/// The iteration is [sizes[0], ..., sizes[dims - 1]], row-major.
struct Problem {
  Mode mode = Mode::kLoss;
  Loss loss = Loss::kBce;
  bool ignores = false;
  bool hard_fast_path = false;  // see has_hard_fast_path
  bool non_temporal = false;    // write `out` past the caches

  int dims = 0;
  int64_t numel = 0;
  int64_t sizes[kMaxDims];
  Divider dividers[kMaxDims];  // by the sizes, see set_dividers

  Operand x;            // logits
  Operand y;            // targets, where csr.crow_indices is null
  Operand w;            // weight
  Operand p;            // pos_weight
  Operand grad_output;  // absent: 1
  Operand out;          // gradient or unreduced loss; its data is written
  Csr csr;

  CallConstants<float> narrow{};
  CallConstants<double> wide{};
  double divisor = 1;  // of the sum of the losses
};

inline Form form_of(const Operand& o, const Problem& problem) {
  bool uniform = true, contiguous = true;
  int64_t expected = 1;
  for (int d = problem.dims - 1; d >= 0; --d) {
    uniform = uniform && o.strides[d] == 0;
    contiguous = contiguous && o.strides[d] == expected;
    expected *= problem.sizes[d];
  }
  return contiguous ? Form::kContiguous : uniform ? Form::kUniform : Form::kStrided;
}

/// Prepares the divisions of a GPU. A CPU divides as it is, and need not pay for them.
inline void set_dividers(Problem& problem) {
  for (int d = 0; d < problem.dims; ++d) problem.dividers[d] = divider(problem.sizes[d]);
  problem.csr.by_num_labels = divider(problem.csr.num_labels);
}

/// Tells whether each target of 0 or 1 has coefficients that the whole call shares, but for the
/// pos_weight of a positive: there is no weight, no smoothing, no grad_output of its own, and none
/// is ignored. Such targets, hard ones, need only one of the two terms, and no logarithm of their
/// own.
inline bool has_hard_fast_path(const Problem& problem) {
  const float ignored = problem.narrow.ignore_index;
  const bool ignores_hard = problem.ignores && (ignored == 0 || ignored == 1);
  return problem.mode != Mode::kUnreduced && problem.w.data == nullptr &&
         problem.wide.weight == 1 && problem.grad_output.form <= Form::kUniform &&
         problem.wide.shift == 0 && !ignores_hard;
}

template <class T>
WEIGHTED_BCE_INLINE const CallConstants<T>& constants_of(const Problem& problem) {
  if constexpr (sizeof(T) == 8) {
    return problem.wide;
  } else {
    return problem.narrow;
  }
}

}  // namespace weighted_bce
