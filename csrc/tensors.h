// Makes new tensors on the device of another one, through the stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include "plan.h"

namespace weighted_bce {

/// Throws where a function of torch's C interface has failed: torch's own macro for this is newer
/// than torch 2.11.
inline void check_success(AOTITorchError error, const char* task) {
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "torch failed to ", task);
}

inline Tensor new_tensor(const Tensor& like, ScalarType dtype, int64_t dims, const int64_t* sizes,
                         const int64_t* strides) {
  int32_t device_type = 0;
  check_success(aoti_torch_get_device_type(like.get(), &device_type), "tell a tensor's device");
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  check_success(aoti_torch_empty_strided(dims, sizes, strides, code, device_type,
                                         like.get_device_index(), &handle),
                "allocate a tensor");
  return Tensor(handle);
}

/// Returns a tensor for the gradient or the unreduced loss.
inline Tensor new_matrix(const Tensor& input) {
  int64_t strides[kMaxDims];
  output_strides(input, strides);
  return new_tensor(input, input.scalar_type(), input.dim(), input.sizes().data(), strides);
}

/// Returns a 0-d tensor of the dtype of arithmetic.
inline Tensor new_scalar(const Arguments& a) {
  return new_tensor(a.input, a.compute_type(), 0, nullptr, nullptr);
}

}  // namespace weighted_bce
