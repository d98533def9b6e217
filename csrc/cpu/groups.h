// The groups of vectors of a block: their targets and factors. Included by level.h inside a level's
// namespace.

/// A block of operands, but for the logits, as lines of T; targets of one byte stay bytes, in y8.
template <class T>
struct Lines {
  const T* y;
  const uint8_t* y8;
  uint8_t y8_most;  // 1 for bool and sparse labels: any other byte is true as well
  const T *w, *p, *upstream;
};

/// Whether any target byte of the group at i has one of these bits.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE bool any_bit(const Lines<T>& in, int64_t i, uint64_t mask) {
  constexpr int kBytesRead = kVectors * Simd<T>::kLanes, kStep = std::min(kBytesRead, 8);
  uint64_t any = 0;  // one by one: GCC 12 takes an array of them by way of memory
#pragma GCC unroll 4
  for (int at = 0; at < kBytesRead; at += kStep) {
    uint64_t bytes = 0;
    __builtin_memcpy(&bytes, in.y8 + i + at, kStep);
    any |= bytes;
  }
  return (any & mask * 0x0101010101010101u) != 0;
}

/// Whether any of the targets of the group at i is not 0.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE bool any_positive(const Lines<T>& in, int64_t i) {
  if (in.y8 != nullptr) return any_bit<kVectors>(in, i, 0xff);
  bool any = false;
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) {
    any |= any_nonzero(Simd<T>::load(in.y + i + j * Simd<T>::kLanes));
  }
  return any;
}

/// Whether all of them are 0 or 1.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE bool all_hard(const Lines<T>& in, int64_t i) {
  if (in.y8 != nullptr) return in.y8_most == 1 || !any_bit<kVectors>(in, i, 0xfe);
  bool soft = false;
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) {
    const auto y = Simd<T>::load(in.y + i + j * Simd<T>::kLanes);
    soft |= any_nonzero(Simd<T>::fma(-y, y, y));  // y - y y; infinity gives NaN
  }
  return !soft;
}

/// Vector j of the group of kVectors vectors that begins at element i of a line of T.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE typename Simd<T>::Value vector_of(const T* line, int64_t i, int j) {
  if constexpr (kVectors == 1) {
    return Simd<T>::load(line + i);
  } else {
    static_assert(sizeof(T) == 4);
    typedef uint64_t Pairs __attribute__((vector_size(2 * kBytes)));
    Pairs pairs;
    __builtin_memcpy(&pairs, line + i, sizeof(pairs));
    return bits<typename Simd<T>::Value>(
        __builtin_convertvector(pairs >> (32 * j), typename Types<T>::Unsigned));
  }
}

/// The targets of that vector. Only n of their bytes are read.
template <int kVectors, class T>
WEIGHTED_BCE_INLINE typename Simd<T>::Value targets_of(const Lines<T>& in, int64_t i, int j,
                                                       int64_t n = kVectors * Simd<T>::kLanes) {
  if (in.y8 == nullptr) return vector_of<kVectors>(in.y, i, j);
  typedef uint8_t Bytes __attribute__((vector_size(kVectors * Simd<T>::kLanes)));
  Bytes bytes{};
  __builtin_memcpy(&bytes, in.y8 + i, n);
  bytes = bytes > in.y8_most ? in.y8_most - Bytes{} : bytes;
  typename Types<T>::Ints ints;
  if constexpr (kVectors == 1) {
    ints = widened<typename Types<T>::Ints>(bytes);
  } else {
    const auto words = bits<typename Types<T>::Words>(bytes) >> (8 * j) & 255;
    ints = __builtin_convertvector(words, typename Types<T>::Ints);
  }
  return __builtin_convertvector(ints, typename Types<T>::V);
}
