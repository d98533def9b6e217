// Reads targets: sparse ones as bytes, block by block, and those of a group of vectors.
#pragma once

#include "cpu/operands.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

/// Hands out sparse targets, one block after the other, as bytes of 0 and 1.
class SparseTargets {
  const Csr& csr_;
  int64_t row_ = 0, column_ = 0;  // of the next element
  int64_t next_ = 0;              // in col_indices, the first of the row that is not past
  bool any_ = false;              // whether a byte is 1
  alignas(64) uint8_t bytes_[kBlock] = {};

  /// Returns the place of the first index of a row that is not below `label`.
  template <class Index>
  static int64_t seek(const Index* col, int64_t begin, int64_t end, int64_t label) {
    if (begin == end || col[begin] >= label) return begin;
    return std::lower_bound(col + begin, col + end, label) - col;
  }

  /// Sets the bytes of the next n elements. All is in local variables: a store of bytes might
  /// change any member.
  template <class Index>
  void fill(int64_t n) {
    const auto* const crow = static_cast<const Index*>(csr_.crow_indices);
    const auto* const col = static_cast<const Index*>(csr_.col_indices);
    const int64_t num_labels = csr_.num_labels, first_label = csr_.first_label;
    int64_t row = row_, column = column_, next = next_, count = 0;
    for (int64_t done = 0; done < n;) {
      const int64_t end = crow[row + 1];
      if (column == 0) next = seek(col, crow[row], end, first_label);
      const int64_t stop = std::min(num_labels, column + (n - done)), before = next;
      const int64_t shift = done - column - first_label, limit = done + stop - column;
      for (; next < end; ++next) {
        const int64_t at = col[next] + shift;  // read once: it stays in the block, whoever writes
        if (at < 0 || at >= limit) break;
        bytes_[at] = 1;
      }
      count += next - before;
      done += stop - column;
      column = stop;
      if (column == num_labels) {
        ++row;
        column = 0;
      }
    }
    row_ = row;
    column_ = column;
    next_ = next;
    any_ = count > 0;
  }

  template <class Index>
  void start() {
    const auto* const crow = static_cast<const Index*>(csr_.crow_indices);
    const auto* const col = static_cast<const Index*>(csr_.col_indices);
    next_ = seek(col, crow[row_], crow[row_ + 1], csr_.first_label + column_);
  }

 public:
  /// Starts at element `begin`; with dense targets there is nothing to hand out.
  SparseTargets(const Csr& csr, int64_t begin) : csr_(csr) {
    if (csr.crow_indices == nullptr) return;
    row_ = begin / csr.num_labels;
    column_ = begin % csr.num_labels;
    if (csr.index_size == 4) {
      start<int32_t>();
    } else {
      start<int64_t>();
    }
  }

  /// Returns the next n targets, at most a block.
  const uint8_t* next(int64_t n) {
    if (any_) std::fill_n(bytes_, kBlock, uint8_t{0});
    if (csr_.index_size == 4) {
      fill<int32_t>(n);
    } else {
      fill<int64_t>(n);
    }
    return bytes_;
  }
};

/// A block has these operands besides the logits; targets of one byte stay bytes.
template <class T>
struct Block {
  const T* y;
  const uint8_t* y_bytes;        // in place of y
  uint8_t largest_byte;          // 1 for bool and sparse labels: any other byte is true as well
  const T *w, *p, *grad_output;  // null: one for all
};

/// Tells whether any target byte of the group at i has one of these bits.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE bool any_bit(const Block<T>& in, int64_t i, uint64_t mask) {
  constexpr int kBytesRead = kVectors * Simd<T>::kLanes, kStep = std::min(kBytesRead, 8);
  uint64_t any = 0;  // one by one: GCC 12 takes an array of them by way of memory
#pragma GCC unroll 4
  for (int at = 0; at < kBytesRead; at += kStep) {
    uint64_t bytes = 0;
    __builtin_memcpy(&bytes, in.y_bytes + i + at, kStep);
    any |= bytes;
  }
  return (any & mask * 0x0101010101010101u) != 0;
}

/// Tells whether any of the targets of the group at i is not 0.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE bool any_positive(const Block<T>& in, int64_t i) {
  if (in.y_bytes != nullptr) return any_bit<kVectors>(in, i, 0xff);
  bool any = false;
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) {
    any |= any_nonzero(Simd<T>::load(in.y + i + j * Simd<T>::kLanes));
  }
  return any;
}

/// Tells whether all of them are 0 or 1.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE bool all_hard(const Block<T>& in, int64_t i) {
  if (in.y_bytes != nullptr) return in.largest_byte == 1 || !any_bit<kVectors>(in, i, 0xfe);
  bool soft = false;
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) {
    const auto y = Simd<T>::load(in.y + i + j * Simd<T>::kLanes);
    soft |= any_nonzero(Simd<T>::fma(-y, y, y));  // y - y y; infinity gives NaN
  }
  return !soft;
}

/// Returns vector j of the group of kVectors vectors that begins at values[i].
template <int kVectors, class T>
WEIGHTED_BCE_INLINE typename Simd<T>::Value vector_of(const T* values, int64_t i, int j) {
  if constexpr (kVectors == 1) {
    return Simd<T>::load(values + i);
  } else {
    static_assert(sizeof(T) == 4);
    typedef uint64_t Pairs __attribute__((vector_size(2 * kBytes)));
    Pairs pairs;
    __builtin_memcpy(&pairs, values + i, sizeof(pairs));
    return bits<typename Simd<T>::Value>(
        __builtin_convertvector(pairs >> (32 * j), typename Types<T>::Unsigned));
  }
}

/// Returns the targets of that vector. Only n of their bytes are read.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE typename Simd<T>::Value targets_of(const Block<T>& in, int64_t i, int j,
                                                       int64_t n = kVectors * Simd<T>::kLanes) {
  if (in.y_bytes == nullptr) return vector_of<kVectors>(in.y, i, j);
  typedef uint8_t Bytes __attribute__((vector_size(kVectors * Simd<T>::kLanes)));
  Bytes bytes{};
  __builtin_memcpy(&bytes, in.y_bytes + i, n);
  bytes = bytes > in.largest_byte ? in.largest_byte - Bytes{} : bytes;
  typename Types<T>::Ints ints;
  if constexpr (kVectors == 1) {
    ints = widened<typename Types<T>::Ints>(bytes);
  } else {
    const auto words = bits<typename Types<T>::Words>(bytes) >> (8 * j) & 255;
    ints = __builtin_convertvector(words, typename Types<T>::Ints);
  }
  return __builtin_convertvector(ints, typename Types<T>::V);
}

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
