// New tensors on the device of another one, through the stable ABI, and what may be written.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include "plan.h"

namespace weighted_bce {

using OptionalTensor = std::optional<Tensor>;

inline Tensor new_tensor(const Tensor& like, ScalarType dtype, int64_t dims, const int64_t* sizes,
                         const int64_t* strides) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

/// A tensor for the gradient or the unreduced loss.
inline Tensor new_matrix(const Tensor& input) {
  int64_t strides[kMaxDims];
  output_strides(input, strides);
  return new_tensor(input, input.scalar_type(), input.dim(), input.sizes().data(), strides);
}

/// 0-d, of the dtype of arithmetic.
inline Tensor new_scalar(const Tensor& input) {
  return new_tensor(input, compute_type(input), 0, nullptr, nullptr);
}

inline void check_writable(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(non_overlapping(tensor), name, " must not overlap itself to be written in place");
}

}  // namespace weighted_bce
