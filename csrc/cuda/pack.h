// From the plan of a problem to the argument of the CUDA kernels. On the host.
#pragma once

#include <stdexcept>

#include "cuda/parameters.h"

namespace weighted_bce::cuda {

inline Divider divider(int64_t d) {
  int l = 0;
  while ((int64_t{1} << l) < d) ++l;
  const auto power = static_cast<unsigned __int128>(1) << (63 + l);
  const auto m = (power + static_cast<uint64_t>(d) - 1) / static_cast<uint64_t>(d);
  return {static_cast<uint64_t>(m), l - 1};
}

inline Operand packed(const weighted_bce::Operand& from, int dims) {
  Operand o{};
  o.data = from.data;
  o.dtype = from.dtype;
  o.size = static_cast<uint8_t>(from.element_size);
  if (from.data == nullptr) return o;
  bool uniform = true;
  for (int d = 0; d < dims; ++d) {
    o.strides[d] = from.strides[d];
    uniform = uniform && from.strides[d] == 0;
  }
  o.form = uniform ? Form::kUniform : from.linear ? Form::kLinear : Form::kStrided;
  return o;
}

template <class T>
Numbers<T> numbers(const weighted_bce::Problem& from) {
  Numbers<T> to;
  to.pos_weight = static_cast<T>(from.pos_weight);
  to.weight = 1;
  to.keep = static_cast<T>(1 - from.label_smoothing);
  to.shift = static_cast<T>(from.label_smoothing / 2);
  to.ignore_index = static_cast<T>(from.ignore_index);
  return to;
}

/// Everything but what lies in device memory besides the operands. Throws std::length_error for too
/// many dimensions.
inline Problem packed(const weighted_bce::Problem& from) {
  if (from.dims > kMostDims) throw std::length_error("too many dimensions for a CUDA kernel");
  Problem to{};
  to.numel = from.numel;
  to.dims = from.dims;
  for (int d = 0; d < from.dims; ++d) {
    to.sizes[d] = from.sizes[d];
    to.dividers[d] = divider(from.sizes[d] > 0 ? from.sizes[d] : 1);
  }
  to.x = packed(from.x, from.dims);
  to.y = packed(from.y, from.dims);
  to.w = packed(from.w, from.dims);
  to.p = packed(from.p, from.dims);
  to.upstream = packed(from.upstream, from.dims);
  to.out = packed(from.out, from.dims);
  to.positives = from.positives;
  to.labels = divider(from.positives.labels > 0 ? from.positives.labels : 1);
  to.narrow = numbers<float>(from);
  to.wide = numbers<double>(from);
  to.ignores = from.ignores;
  to.divisor = 1;
  return to;
}

/// Whether logits, targets and output are lines that start where a vector of 16 bytes of logits
/// may. Wider vectors bring nothing to float64, whose elements fill whole sectors of memory.
inline bool takes_vectors(const Problem& problem) {
  const auto aligned = [](const Operand& o, int64_t bytes) {
    return o.form == Form::kAbsent ||
           (o.form == Form::kLinear && reinterpret_cast<uintptr_t>(o.data) % bytes == 0);
  };
  const int64_t targets = int64_t{16} / problem.x.size * problem.y.size;
  return problem.x.size < 8 && aligned(problem.x, 16) && aligned(problem.out, 16) &&
         aligned(problem.y, targets < 16 ? targets : 16);
}

}  // namespace weighted_bce::cuda
