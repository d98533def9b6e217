// Matrices that are views of memory, and torch's products of them. Within a parallel region a
// product runs on the thread that asks for it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>
#include <new>

#include "cpu/cut.h"
#include "tensors.h"

// torch has it where its products are MKL's.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int);

namespace weighted_bce {

/// While one lives, products of this thread run on it alone. Within a parallel region they do so in
/// any case, but MKL cuts them for as many threads as torch.set_num_threads was given, which takes
/// longer and rounds otherwise.
class SerialProducts {
  int before_ = 0;

 public:
  SerialProducts() {
    if (MKL_Set_Num_Threads_Local) before_ = MKL_Set_Num_Threads_Local(1);
  }
  ~SerialProducts() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  SerialProducts(const SerialProducts&) = delete;
  SerialProducts& operator=(const SerialProducts&) = delete;
};

/// Returns the bytes of an element of a dtype that logits may have.
inline int64_t size_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return 8;
    case ScalarType::Float: return 4;
    default: return 2;
  }
}

inline Tensor matrix(void* data, ScalarType dtype, std::array<int64_t, 2> sizes,
                     std::array<int64_t, 2> strides) {
  return torch::stable::from_blob(data, {sizes.data(), 2}, {strides.data(), 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

inline Tensor transposed(const Tensor& m) {
  return matrix(const_cast<void*>(m.const_data_ptr()), m.scalar_type(), {m.size(1), m.size(0)},
                {m.stride(1), m.stride(0)});
}

/// Returns a part of a tensor that broadcasts to (rows, columns); as a matrix, unless it is 0-d.
inline Tensor part(const Tensor& t, Range rows, Range columns) {
  if (t.dim() == 0) return t;
  const bool has_rows = t.dim() == 2 && t.size(0) != 1;
  const bool has_columns = t.size(t.dim() - 1) != 1;
  const int64_t row_stride = has_rows ? t.stride(0) : 0;
  const int64_t column_stride = has_columns ? t.stride(t.dim() - 1) : 0;
  const int64_t first = rows.begin * row_stride + columns.begin * column_stride;
  auto* const data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  return matrix(data + first * static_cast<int64_t>(t.element_size()), t.scalar_type(),
                {has_rows ? rows.size() : 1, has_columns ? columns.size() : 1},
                {row_stride, column_stride});
}

/// Returns elements of a 1-d tensor as a matrix of one row.
inline Tensor part_of_list(const Tensor& list, Range range) {
  auto* const data = static_cast<char*>(const_cast<void*>(list.const_data_ptr()));
  const int64_t stride = list.stride(0);
  return matrix(data + range.begin * stride * static_cast<int64_t>(list.element_size()),
                list.scalar_type(), {1, range.size()}, {0, stride});
}

/// Returns a matrix whose rows are all the same, the only one of `row`.
inline Tensor repeated(const Tensor& row, int64_t rows) {
  return matrix(const_cast<void*>(row.const_data_ptr()), row.scalar_type(), {rows, row.size(1)},
                {0, row.stride(1)});
}

/// Writes a b to `out`; with `add` adds it.
inline void product(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  check_success(add ? aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1, 1)
                    : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()),
                "multiply matrices");
}

/// Copies a matrix, whose dtype may be another one.
inline void copy(const Tensor& out, const Tensor& from) {
  check_success(aoti_torch_copy_(out.get(), from.get(), 0), "copy a matrix");
}

inline bool is_contiguous(const Tensor& m) {
  return (m.size(1) == 1 || m.stride(1) == 1) && (m.size(0) == 1 || m.stride(0) == m.size(1));
}

/// This is memory for one matrix at a time.
class Workspace {
  ScalarType dtype_;
  void* memory_;
  static constexpr std::align_val_t kAlignment{64};

 public:
  Workspace(ScalarType dtype, int64_t elements) : dtype_(dtype) {
    const int64_t bytes = std::max<int64_t>(elements, 1) * size_of(dtype);
    memory_ = ::operator new(static_cast<size_t>(bytes), kAlignment);
  }
  ~Workspace() { ::operator delete(memory_, kAlignment); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* memory() const { return memory_; }
  Tensor matrix(int64_t rows, int64_t columns) const {
    return weighted_bce::matrix(memory_, dtype_, {rows, columns}, {columns, 1});
  }
};

/// Returns the matrix in the dtype of the workspace, to which it is copied.
inline Tensor converted(const Tensor& m, const Workspace& workspace) {
  const Tensor result = workspace.matrix(m.size(0), m.size(1));
  copy(result, m);
  return result;
}

}  // namespace weighted_bce
