// Tensors of one number on the CPU.
#pragma once

#include "tensors.h"

namespace weighted_bce {

inline void set_scalar(Tensor& scalar, double value) {
  if (scalar.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(scalar.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(scalar.mutable_data_ptr()) = static_cast<float>(value);
  }
}

/// Returns a number in the dtype of arithmetic.
inline Tensor new_scalar(const Arguments& a, double value) {
  Tensor scalar = new_scalar(a);
  set_scalar(scalar, value);
  return scalar;
}

}  // namespace weighted_bce
