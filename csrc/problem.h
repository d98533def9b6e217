// What a kernel is asked to do, without a word of torch: the kernels also compile on their own, for
// the sanitizers.
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

/// Targets that are 1 at the listed elements of an iteration space [rows, labels], and 0 elsewhere:
/// row r is 1 at label col[i] - first_label for i from crow[r] to crow[r + 1]. Other labels may be
/// listed too; they count for nothing.
struct Positives {
  const void* crow = nullptr;  // [rows + 1], never falling; null: the targets are an operand
  const void* col = nullptr;   // [count], ascending within each row
  int index_size = 0;          // bytes of an element of either: 4 or 8
  int64_t rows = 0, labels = 0, count = 0;
  int64_t first_label = 0;
};

/// The iteration space is [sizes[0], ..., sizes[dims - 1]], row-major, walked as one line.
struct Problem {
  int dims = 0;
  int64_t sizes[kMaxDims];
  int64_t numel = 0;
  Operand x;         // logits
  Operand y;         // targets, where positives.crow is null
  Operand w;         // weight, optional
  Operand p;         // pos_weight, optional
  Operand upstream;  // one factor an element, optional: the incoming gradient of an unreduced loss
  Operand out;       // gradient or unreduced loss; its data is written
  Positives positives;
  bool stream = false;  // write `out` past the caches

  double pos_weight = 1;  // where p is absent
  double label_smoothing = 0;
  double scale = 1;  // multiplies the gradient before it is rounded
  bool ignores = false;
  double ignore_index = 0;  // NaN ignores NaN targets
};

}  // namespace weighted_bce
