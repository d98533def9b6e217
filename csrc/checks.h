// The one check of an op's arguments, for every backend. Python checks first, with better words;
// this guards those who call torch.ops.weighted_bce directly.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace weighted_bce {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostDims = 64;

/// Numbered as torch numbers them, but for the last.
enum Reduction : int64_t { kMean = 1, kSum = 2, kBatchMean = 3 };

/// The arguments that all ops share.
struct Arguments {
  const Tensor& input;
  const Tensor& target;                       // with crow_indices: col_indices
  const std::optional<Tensor>& crow_indices;  // null: target has the shape of input
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& pos_weight;
  double pos_weight_value;
  double label_smoothing;
  std::optional<double> ignore_index;
  std::optional<int64_t> first_label;
  Reduction reduction;

  /// Whether some targets may not count: those of sparse labels are 0 or 1.
  bool ignores() const {
    return ignore_index && (!crow_indices || *ignore_index == 0 || *ignore_index == 1);
  }
};

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

inline bool broadcasts(const Tensor& from, const Tensor& to) {
  const int64_t missing = to.dim() - from.dim();
  if (missing < 0) return false;
  for (int64_t d = 0; d < from.dim(); ++d) {
    if (from.size(d) != 1 && from.size(d) != to.size(d + missing)) return false;
  }
  return true;
}

/// The dtype of arithmetic, of a reduced loss and of what the gradient is multiplied by.
inline ScalarType compute_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_same_device(const Tensor& tensor, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(
      tensor.is_cpu() == input.is_cpu() && tensor.get_device_index() == input.get_device_index(),
      name, " must be on the device of input");
}

/// As torch's own operators, a factor of one number may stay on the CPU.
inline void check_factor(const Tensor& factor, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(broadcasts(factor, input), name, " must broadcast to the shape of input");
  const bool movable = factor.is_cpu() && factor.dim() == 0;
  if (!movable) check_same_device(factor, input, name);
}

inline void check_indices(const Tensor& indices, const char* name) {
  STD_TORCH_CHECK(
      indices.scalar_type() == ScalarType::Int || indices.scalar_type() == ScalarType::Long, name,
      " must be int32 or int64");
  STD_TORCH_CHECK(indices.dim() == 1 && (indices.numel() < 2 || indices.stride(0) == 1), name,
                  " must be 1-d and contiguous");
}

/// All but the values of the indices, which only a CPU can look at without waiting.
inline void check_sparse(const Arguments& a) {
  const Tensor& crow = *a.crow_indices;
  STD_TORCH_CHECK(a.input.dim() == 2, "input must be 2-d with sparse labels, got ", a.input.dim(),
                  " dimensions");
  check_indices(a.target, "col_indices");
  check_indices(crow, "crow_indices");
  STD_TORCH_CHECK(crow.scalar_type() == a.target.scalar_type(),
                  "crow_indices must have the dtype of col_indices");
  STD_TORCH_CHECK(crow.numel() == a.input.size(0) + 1, "crow_indices must have ",
                  a.input.size(0) + 1, " elements, one more than input has rows, got ",
                  crow.numel());
  check_same_device(crow, a.input, "crow_indices");
  constexpr int64_t kMost = int64_t{1} << 62;  // leaves room for the number of labels
  STD_TORCH_CHECK(a.first_label.value_or(0) >= 0 && a.first_label.value_or(0) < kMost,
                  "first_label must be in [0, 2**62), got ", a.first_label.value_or(0));
}

inline void check(const Arguments& a) {
  const ScalarType dtype = a.input.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "input must be float16, bfloat16, float32 or float64");
  STD_TORCH_CHECK(a.input.dim() <= kMostDims, "input must have at most ", kMostDims,
                  " dimensions, got ", a.input.dim());
  if (a.crow_indices) {
    check_sparse(a);
  } else {
    STD_TORCH_CHECK(same_sizes(a.target, a.input), "target must have the shape of input");
    STD_TORCH_CHECK(!a.first_label, "first_label needs crow_indices");
  }
  check_same_device(a.target, a.input, "target");
  if (a.weight) check_factor(*a.weight, a.input, "weight");
  if (a.pos_weight) check_factor(*a.pos_weight, a.input, "pos_weight");
  STD_TORCH_CHECK(a.pos_weight_value >= 0, "pos_weight must be at least 0, got ",
                  a.pos_weight_value);
  STD_TORCH_CHECK(a.label_smoothing >= 0 && a.label_smoothing < 1,
                  "label_smoothing must be in [0, 1), got ", a.label_smoothing);
  STD_TORCH_CHECK(a.reduction >= kMean && a.reduction <= kBatchMean,
                  "reduction must be 1 (mean), 2 (sum) or 3 (batchmean), got ",
                  static_cast<int64_t>(a.reduction));
  STD_TORCH_CHECK(a.reduction != kBatchMean || a.input.dim() > 0,
                  "reduction batchmean needs an input with a first dimension");
}

inline Arguments checked(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& crow_indices,
                         const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& pos_weight, double pos_weight_value,
                         double label_smoothing, std::optional<double> ignore_index,
                         std::optional<int64_t> first_label, int64_t reduction) {
  const Arguments a{input,           target,
                    crow_indices,    weight,
                    pos_weight,      pos_weight_value,
                    label_smoothing, ignore_index,
                    first_label,     static_cast<Reduction>(reduction)};
  check(a);
  return a;
}

/// What the sum is divided by; nothing for the number of targets that count, where some may not.
inline std::optional<double> divisor_of(const Arguments& a) {
  switch (a.reduction) {
    case kSum: return 1;
    case kBatchMean: return static_cast<double>(a.input.size(0));
    case kMean: break;
  }
  if (a.ignores()) return std::nullopt;
  return static_cast<double>(a.input.numel());
}

/// 0-d, of the dtype of the loss, where the logits are.
inline void check_scalar(const Tensor& scalar, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(scalar.dim() == 0, name, " must be 0-d");
  const ScalarType dtype = compute_type(input);
  STD_TORCH_CHECK(scalar.scalar_type() == dtype, name, " must be ",
                  dtype == ScalarType::Double ? "float64" : "float32", " like the loss of input");
  check_same_device(scalar, input, name);
}

inline void check_grad(const Tensor& grad, const Tensor& input) {
  STD_TORCH_CHECK(same_sizes(grad, input) && grad.scalar_type() == input.scalar_type(),
                  "grad must have the shape and dtype of input");
  check_same_device(grad, input, "grad");
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input) {
  STD_TORCH_CHECK(grad_output.dim() == 0 || same_sizes(grad_output, input),
                  "grad_output must be 0-d or have the shape of input");
  check_same_device(grad_output, input, "grad_output");
}

}  // namespace weighted_bce
