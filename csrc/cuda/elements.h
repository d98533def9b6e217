// Moves a few elements at a time between memory and a thread's arithmetic.
#pragma once

#include <type_traits>

#include "cuda/launch.h"
#include "cuda/thread_math.h"

namespace weighted_bce::cuda {

/// T is the type of arithmetic on logits of type X.
template <class X>
struct Arithmetic {
  using T = float;
};
template <>
struct Arithmetic<double> {
  using T = double;
};

/// Bits holds those of a run of elements.
template <int kBytes>
struct Bits {
  uint32_t words[(kBytes + 3) / 4] = {};

  /// Returns the bits of element j, of kSize bytes.
  template <int kSize>
  WEIGHTED_BCE_DEVICE uint64_t element(int j) const {
    if constexpr (kSize == 8) {
      return static_cast<uint64_t>(words[2 * j + 1]) << 32 | words[2 * j];
    } else if constexpr (kSize == 4) {
      return words[j];
    } else {
      return words[j * kSize / 4] >> (j * kSize % 4 * 8) & ((1u << 8 * kSize) - 1);
    }
  }
  template <int kSize>
  WEIGHTED_BCE_DEVICE void set_element(int j, uint64_t bits) {
    if constexpr (kSize == 8) {
      words[2 * j] = static_cast<uint32_t>(bits);
      words[2 * j + 1] = static_cast<uint32_t>(bits >> 32);
    } else if constexpr (kSize == 4) {
      words[j] = static_cast<uint32_t>(bits);
    } else {
      words[j * kSize / 4] |= static_cast<uint32_t>(bits) << (j * kSize % 4 * 8);
    }
  }
};

template <class X, int kBytes>
WEIGHTED_BCE_DEVICE typename Arithmetic<X>::T widened(const Bits<kBytes>& run, int j) {
  const uint64_t bits = run.template element<sizeof(X)>(j);
  if constexpr (sizeof(X) == 8) {
    return from_bits(bits);
  } else if constexpr (sizeof(X) == 4) {
    return from_bits(static_cast<uint32_t>(bits));
  } else if constexpr (std::is_same_v<X, Half>) {
    return from_float16(static_cast<uint32_t>(bits));
  } else {
    return from_bits(static_cast<uint32_t>(bits) << 16);
  }
}

/// Rounds each number to X.
template <class X, int kLanes, class T>
WEIGHTED_BCE_DEVICE Bits<kLanes * sizeof(X)> narrowed(const T (&values)[kLanes]) {
  Bits<kLanes * sizeof(X)> run;
  if constexpr (sizeof(X) >= 4) {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) run.template set_element<sizeof(X)>(j, to_bits(values[j]));
  } else {
#pragma unroll
    for (int j = 0; j < kLanes; j += 2) {
      const T high = j + 1 < kLanes ? values[j + 1] : T(0);
      run.words[j / 2] =
          std::is_same_v<X, Half> ? to_float16s(values[j], high) : to_bfloat16s(values[j], high);
    }
  }
  return run;
}

/// Returns the number that the bits of an element of this dtype stand for. kSize, where it is
/// known, is the size of the dtype.
template <class T, int kSize = 0>
WEIGHTED_BCE_DEVICE T decoded(uint64_t bits, Dtype dtype) {
  const auto low = static_cast<uint32_t>(bits);
  if constexpr (kSize == 0 || kSize == 1) {
    if (dtype == Dtype::kBool) return static_cast<T>(low != 0);
    if (dtype == Dtype::kInt8) return static_cast<T>(static_cast<int8_t>(low));
  }
  if constexpr (kSize == 0 || kSize == 2) {
    if (dtype == Dtype::kInt16) return static_cast<T>(static_cast<int16_t>(low));
    if (dtype == Dtype::kFloat16) return from_float16(low);
    if (dtype == Dtype::kBFloat16) return from_bits(low << 16);
  }
  if constexpr (kSize == 0 || kSize == 4) {
    if (dtype == Dtype::kInt32) return static_cast<T>(static_cast<int32_t>(low));
    if (dtype == Dtype::kFloat32) return from_bits(low);
  }
  if constexpr (kSize == 0 || kSize == 8) {
    if (dtype == Dtype::kInt64) return static_cast<T>(static_cast<int64_t>(bits));
    if (dtype == Dtype::kUInt64) return static_cast<T>(bits);
    if (dtype == Dtype::kFloat64) return static_cast<T>(from_bits(bits));
  }
  return static_cast<T>(low);  // unsigned, of 4 bytes at most
}

/// Returns the bits of the number 1 in this dtype.
WEIGHTED_BCE_DEVICE uint64_t bits_of_one(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat16: return 0x3c00;
    case Dtype::kBFloat16: return 0x3f80;
    case Dtype::kFloat32: return 0x3f800000;
    case Dtype::kFloat64: return uint64_t{0x3ff00000} << 32;
    default: return 1;
  }
}

/// Loads an element whose size is known at run time only.
WEIGHTED_BCE_DEVICE uint64_t load_element(const Operand& o, int64_t offset) {
  const char* const at = static_cast<const char*>(o.data) + offset * o.element_size;
  uint32_t words[2] = {0, 0};
  switch (o.element_size) {
    case 1: load<1, false>(at, words); break;
    case 2: load<2, false>(at, words); break;
    case 4: load<4, false>(at, words); break;
    default: load<8, false>(at, words);
  }
  return static_cast<uint64_t>(words[1]) << 32 | words[0];
}

WEIGHTED_BCE_DEVICE int64_t quotient(int64_t n, Divider by) {
  if (by.shift < 0) return n;
  const auto high = high_product(static_cast<uint64_t>(n), by.multiplier);
  return static_cast<int64_t>(high >> by.shift);
}

/// Calls add(d, coordinate) for each dimension d of element i of the iteration.
template <class Add>
WEIGHTED_BCE_DEVICE void for_each_coordinate(const Problem& problem, int64_t i, const Add& add) {
#pragma unroll 1
  for (int d = problem.dims - 1; d > 0; --d) {
    const int64_t above = quotient(i, problem.dividers[d]);
    add(d, i - above * problem.sizes[d]);
    i = above;
  }
  add(0, i);
}

/// Returns where element i of the iteration lies, in elements of the operand.
WEIGHTED_BCE_DEVICE int64_t offset_of(const Problem& problem, const Operand& o, int64_t i) {
  if (o.form == Form::kContiguous) return i;
  if (o.form == Form::kUniform) return 0;
  int64_t offset = 0;
  for_each_coordinate(problem, i, [&](int d, int64_t at) { offset += at * o.strides[d]; });
  return offset;
}

/// Reads elements [0, kLanes) of type S at `offset` and every `stride` from there.
template <class S, int kLanes, class T>
WEIGHTED_BCE_DEVICE void read_run(const void* data, int64_t offset, int64_t stride,
                                  T (&values)[kLanes]) {
  const S* const at = static_cast<const S*>(data) + offset;
  if (kLanes > 1 && stride == 1 && reinterpret_cast<uintptr_t>(at) % 16 == 0) {
    Bits<kLanes * sizeof(S)> run;
    load<kLanes * sizeof(S), false>(at, run.words);
#pragma unroll
    for (int j = 0; j < kLanes; ++j) values[j] = widened<S>(run, j);
    return;
  }
#pragma unroll
  for (int j = 0; j < kLanes; ++j) {
    Bits<sizeof(S)> one;
    load<sizeof(S), false>(at + j * stride, one.words);
    values[j] = widened<S>(one, 0);
  }
}

/// Reads elements [i, i + kLanes) of a factor, which is of dtype T or X; none lies beyond the end
/// of a row of the innermost dimension.
template <class X, int kLanes, class T>
WEIGHTED_BCE_DEVICE void read_factors(const Problem& problem, const Operand& o, int64_t i,
                                      T (&values)[kLanes]) {
  const int64_t offset = offset_of(problem, o, i);
  int64_t stride = 0;
  if (o.form == Form::kContiguous) stride = 1;
  if (o.form == Form::kStrided) stride = o.strides[problem.dims - 1];
  if (o.element_size == sizeof(T)) return read_run<T>(o.data, offset, stride, values);
  read_run<X>(o.data, offset, stride, values);
}

template <class X, class T>
WEIGHTED_BCE_DEVICE T factor_at(const Problem& problem, const Operand& o, int64_t i) {
  T value[1];
  read_factors<X>(problem, o, i, value);
  return value[0];
}

}  // namespace weighted_bce::cuda
