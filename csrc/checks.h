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
  const Tensor& target;
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& pos_weight;
  double pos_weight_value;
  double label_smoothing;
  std::optional<double> ignore_index;
  Reduction reduction;
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

inline void check(const Arguments& a) {
  const ScalarType dtype = a.input.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "input must be float16, bfloat16, float32 or float64");
  STD_TORCH_CHECK(a.input.dim() <= kMostDims, "input must have at most ", kMostDims,
                  " dimensions, got ", a.input.dim());
  STD_TORCH_CHECK(same_sizes(a.target, a.input), "target must have the shape of input");
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
                         const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& pos_weight, double pos_weight_value,
                         double label_smoothing, std::optional<double> ignore_index,
                         int64_t reduction) {
  const Arguments a{input,
                    target,
                    weight,
                    pos_weight,
                    pos_weight_value,
                    label_smoothing,
                    ignore_index,
                    static_cast<Reduction>(reduction)};
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
  if (a.ignore_index) return std::nullopt;
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
