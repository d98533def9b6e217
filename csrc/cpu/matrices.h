// Matrices that are views of memory, and torch's products of them.
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
    torch::stable::get_num_threads();  // torch sets the number once in each thread, now at the
                                       // latest
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

/// Returns a view of memory, which is written only where the caller may write.
inline Tensor matrix(const void* data, ScalarType dtype, std::array<int64_t, 2> sizes,
                     std::array<int64_t, 2> strides) {
  return torch::stable::from_blob(const_cast<void*>(data), {sizes.data(), 2}, {strides.data(), 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

/// Returns a view of a tensor's memory from an element on.
inline Tensor view(const Tensor& t, int64_t first, std::array<int64_t, 2> sizes,
                   std::array<int64_t, 2> strides) {
  const auto* const data = static_cast<const char*>(t.const_data_ptr());
  return matrix(data + first * static_cast<int64_t>(t.element_size()), t.scalar_type(), sizes,
                strides);
}

inline Tensor transposed(const Tensor& m) {
  return view(m, 0, {m.size(1), m.size(0)}, {m.stride(1), m.stride(0)});
}

/// Returns rows of a matrix.
inline Tensor rows_of(const Tensor& m, Range rows) {
  return view(m, rows.begin * m.stride(0), {rows.size(), m.size(1)}, {m.stride(0), m.stride(1)});
}

/// Returns columns of a matrix.
inline Tensor columns_of(const Tensor& m, Range columns) {
  return view(m, columns.begin * m.stride(1), {m.size(0), columns.size()},
              {m.stride(0), m.stride(1)});
}

/// Returns elements of a list as a matrix with so many equal rows.
inline Tensor part_of_list(const Tensor& list, Range range, int64_t rows = 1) {
  return view(list, range.begin * list.stride(0), {rows, range.size()}, {0, list.stride(0)});
}

/// Returns what a part of the logits has of a tensor that broadcasts to all of them.
inline Tensor part_of_factor(const Tensor& t, Range rows, Range labels) {
  if (t.dim() == 0) return t;
  const int64_t last = t.dim() - 1;
  const bool has_rows = t.dim() == 2 && t.size(0) != 1, has_labels = t.size(last) != 1;
  const int64_t row_stride = has_rows ? t.stride(0) : 0;
  const int64_t label_stride = has_labels ? t.stride(last) : 0;
  return view(t, rows.begin * row_stride + labels.begin * label_stride,
              {has_rows ? rows.size() : 1, has_labels ? labels.size() : 1},
              {row_stride, label_stride});
}

inline bool is_contiguous(const Tensor& m) {
  return (m.size(1) == 1 || m.stride(1) == 1) && (m.size(0) == 1 || m.stride(0) == m.size(1));
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

}  // namespace weighted_bce
