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

/// The arguments that all ops share.
struct Arguments {
  const Tensor& input;
  const Tensor& target;
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& pos_weight;
  double pos_weight_value;
  double label_smoothing;
  std::optional<double> ignore_index;
  std::optional<double> divisor;
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

inline void check_same_device(const Tensor& tensor, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(
      tensor.is_cpu() == input.is_cpu() && tensor.get_device_index() == input.get_device_index(),
      name, " must be on the device of input");
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
  if (a.weight) {
    STD_TORCH_CHECK(broadcasts(*a.weight, a.input), "weight must broadcast to the shape of input");
    check_same_device(*a.weight, a.input, "weight");
  }
  if (a.pos_weight) {
    STD_TORCH_CHECK(broadcasts(*a.pos_weight, a.input),
                    "pos_weight must broadcast to the shape of input");
    check_same_device(*a.pos_weight, a.input, "pos_weight");
  }
  STD_TORCH_CHECK(a.pos_weight_value >= 0, "pos_weight must be at least 0, got ",
                  a.pos_weight_value);
  STD_TORCH_CHECK(a.label_smoothing >= 0 && a.label_smoothing < 1,
                  "label_smoothing must be in [0, 1), got ", a.label_smoothing);
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input) {
  STD_TORCH_CHECK(grad_output.dim() == 0 || same_sizes(grad_output, input),
                  "grad_output must be 0-d or have the shape of input");
  check_same_device(grad_output, input, "grad_output");
}

}  // namespace weighted_bce
