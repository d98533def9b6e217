// Reads blocks of operands in the compute type, and writes them.
#pragma once

#include "cpu/convert.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

constexpr int64_t kBlock = 16 * kBytes;  // elements; 64 vectors of floats

/// Returns where element `row * sizes[last]` of the iteration lies, in elements of the operand.
inline int64_t row_offset(const Problem& problem, const Operand& o, int64_t row) {
  int64_t offset = 0;
  for (int d = problem.dims - 2; d > 0; --d) {
    offset += row % problem.sizes[d] * o.strides[d];
    row /= problem.sizes[d];
  }
  return problem.dims > 1 ? offset + row * o.strides[0] : 0;
}

/// Calls run(pointer, stride, count, position) for the evenly spaced runs of elements
/// [begin, begin + n) of an operand; position counts from 0.
template <class Run>
inline void for_each_run(const Problem& problem, const Operand& o, int64_t begin, int64_t n,
                         const Run& run) {
  const auto* base = static_cast<const char*>(o.data);
  if (o.form == Form::kContiguous)
    return run(base + begin * o.element_size, int64_t{1}, n, int64_t{0});
  const int64_t inner = problem.sizes[problem.dims - 1];
  const int64_t stride = o.strides[problem.dims - 1];
  int64_t row = begin / inner, column = begin % inner;
  for (int64_t done = 0; done < n; column = 0, ++row) {
    const int64_t count = std::min(n - done, inner - column);
    const int64_t offset = row_offset(problem, o, row) + column * stride;
    run(base + offset * o.element_size, stride, count, done);
    done += count;
  }
}

template <class T>
struct Buffer {
  alignas(64) T values[kBlock];
};

/// A Group<T, S> has so many elements.
template <class T, class S>
constexpr int64_t kGroup = Group<T, S>::kVectors * Simd<T>::kLanes;

/// Tells whether n elements of an operand are whole groups that lie in memory as S, one after the
/// other.
template <class T, class S>
bool is_in_groups(const Operand& o, int64_t n) {
  return o.form == Form::kContiguous && o.dtype == kDtypeOf<S> && n % kGroup<T, S> == 0;
}

/// Returns elements [begin, begin + n) in T, to be read up to a whole vector: in place where memory
/// has them so, otherwise in the buffer, the rest of its last vector filled with zeros.
template <class T>
const T* read(const Problem& problem, const Operand& o, int64_t begin, int64_t n,
              Buffer<T>& buffer) {
  if (o.data == nullptr) return nullptr;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  if (is_in_groups<T, T>(o, n)) return static_cast<const T*>(o.data) + begin;
  const Load<T> load = loader<T>(o.dtype);
  for_each_run(problem, o, begin, n,
               [&](const char* from, int64_t stride, int64_t count, int64_t position) {
                 load(from, stride, count, buffer.values + position);
               });
  for (int64_t i = n; i % kLanes != 0; ++i) buffer.values[i] = 0;
  return buffer.values;
}

/// The results of a block go straight to memory where that is in groups of S, otherwise into the
/// buffer.
template <class T, class S>
struct Output {
  S* begin = nullptr;         // null: there are none
  bool non_temporal = false;  // past the caches

  Output() = default;
  explicit Output(Buffer<S>& buffer) : begin(buffer.values) {}
  Output(const Problem& problem, int64_t at)
      : begin(static_cast<S*>(const_cast<void*>(problem.out.data)) + at),
        non_temporal(problem.non_temporal &&
                     reinterpret_cast<uintptr_t>(begin) % (kGroup<T, S> * sizeof(S)) == 0) {}

  template <int n>
  WEIGHTED_BCE_INLINE void put(int64_t i, const typename Simd<T>::Value (&group)[n]) const {
    if (non_temporal) {
      Group<T, S>::store_non_temporal(begin + i, group);
    } else {
      Group<T, S>::store(begin + i, group);
    }
  }
};

/// Rounds a block in the buffer to the output's dtype and writes it.
template <class T>
void write(const Problem& problem, int64_t begin, int64_t n, const Buffer<T>& buffer) {
  const Operand& o = problem.out;
  const Store<T> store = storer<T>(o.dtype);
  for_each_run(problem, o, begin, n,
               [&](const char* at, int64_t stride, int64_t count, int64_t position) {
                 store(buffer.values + position, stride, count, const_cast<char*>(at));
               });
}

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
