// Converts between the dtypes in memory and the compute type, in runs of equally spaced elements.
#pragma once

#include "cpu/simd.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

struct Bool {
  uint8_t byte;
};

template <class S>
constexpr Dtype kDtypeOf = Dtype::kFloat32;
template <>
constexpr Dtype kDtypeOf<double> = Dtype::kFloat64;
template <>
constexpr Dtype kDtypeOf<Half> = Dtype::kFloat16;
template <>
constexpr Dtype kDtypeOf<BFloat16> = Dtype::kBFloat16;

template <class T, class S>
WEIGHTED_BCE_INLINE T widen(S v) {
  return static_cast<T>(v);
}
template <class T>
WEIGHTED_BCE_INLINE T widen(Bool v) {
  return static_cast<T>(v.byte != 0);
}
template <class T>
WEIGHTED_BCE_INLINE T widen(BFloat16 v) {
  return static_cast<T>(bits<float>(static_cast<uint32_t>(v.bits) << 16));
}
template <class T>
WEIGHTED_BCE_INLINE T widen(Half v) {
  // Moved into float's place, the exponent is 112 too small; a multiplication mends that, and
  // normalises denormal numbers as well. Infinity and NaN need the largest exponent instead.
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fffu) << 13;
  const float finite = bits<float>(magnitude) * 0x1p112f;
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t chosen = magnitude >= 0x0f800000u ? special : bits<uint32_t>(finite);
  return static_cast<T>(bits<float>(chosen | static_cast<uint32_t>(v.bits & 0x8000u) << 16));
}

template <class S, class T>
WEIGHTED_BCE_INLINE S narrow(T v);
template <>
WEIGHTED_BCE_INLINE float narrow<float, float>(float v) {
  return v;
}
template <>
WEIGHTED_BCE_INLINE double narrow<double, double>(double v) {
  return v;
}
template <>
WEIGHTED_BCE_INLINE BFloat16 narrow<BFloat16, float>(float v) {
  const uint32_t b = bits<uint32_t>(v);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const bool nan = (b & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u | (b >> 16) : rounded)};
}
template <>
WEIGHTED_BCE_INLINE Half narrow<Half, float>(float v) {
  const uint32_t sign = (bits<uint32_t>(v) >> 16) & 0x8000u;
  const uint32_t magnitude = bits<uint32_t>(v) & 0x7fffffffu;
  // Normal results: rebias the exponent, round to nearest even at bit 13.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormal results: float addition of 0.5 does the rounding, its low bits are the answer.
  const uint32_t small = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {static_cast<uint16_t>(sign | half)};
}

/// dst[i] = src[i * stride] for i < n.
template <class S, class T>
void load_run(const void* from, int64_t stride, int64_t n, T* __restrict dst) {
  const S* __restrict src = static_cast<const S*>(from);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) dst[i] = widen<T>(src[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i] = widen<T>(src[i * stride]);
  }
}

/// dst[i * stride] = src[i] for i < n.
template <class S, class T>
void store_run(const T* __restrict src, int64_t stride, int64_t n, void* to) {
  S* __restrict dst = static_cast<S*>(to);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) dst[i] = narrow<S>(src[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i * stride] = narrow<S>(src[i]);
  }
}

#if defined(WEIGHTED_BCE_AVX2) || defined(WEIGHTED_BCE_AVX512)
// These processors convert half precision themselves, which no compiler finds out by itself.
template <>
void load_run<Half, float>(const void* from, int64_t stride, int64_t n, float* __restrict dst) {
  const Half* src = static_cast<const Half*>(from);
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) dst[i] = widen<float>(src[i * stride]);
}
template <>
void store_run<Half, float>(const float* __restrict src, int64_t stride, int64_t n, void* to) {
  Half* dst = static_cast<Half*>(to);
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), halves);
  }
  for (; i < n; ++i) dst[i * stride] = narrow<Half>(src[i]);
}
#endif

/// A group of vectors of T whose elements lie in memory as S: it is widened and rounded in
/// registers. kVectors is 0 where there are none. Vector j has the elements j, j + kVectors, j + 2
/// kVectors, ...
template <class T, class S>
struct Group {
  static constexpr int kVectors = 0;
};

template <class T>
struct Group<T, T> {
  static constexpr int kVectors = 1;
  using V = typename Simd<T>::Value;
  static WEIGHTED_BCE_INLINE void load(const T* from, V (&to)[1]) { to[0] = Simd<T>::load(from); }
  static WEIGHTED_BCE_INLINE void store(T* to, const V (&from)[1]) { Simd<T>::store(to, from[0]); }
  static WEIGHTED_BCE_INLINE void store_non_temporal(T* to, const V (&from)[1]) {
    Simd<T>::store_non_temporal(to, from[0]);
  }
};

/// Two to a group: a word of 32 bits holds an element of each, and one of them, but for the lower
/// 16 bits, is that element in float32.
template <>
struct Group<float, BFloat16> {
  static constexpr int kVectors = 2;
  using VecU = Types<float>::Unsigned;

  static WEIGHTED_BCE_INLINE void load(const BFloat16* from, VecF (&to)[2]) {
    VecU words;
    __builtin_memcpy(&words, from, sizeof(words));
    to[0] = bits<VecF>(words << 16);
    to[1] = bits<VecF>(words & 0xffff0000u);
  }
  static WEIGHTED_BCE_INLINE void store(BFloat16* to, const VecF (&from)[2]) {
    const VecU words = narrowed(from);
    __builtin_memcpy(to, &words, sizeof(words));
  }
  static WEIGHTED_BCE_INLINE void store_non_temporal(BFloat16* to, const VecF (&from)[2]) {
    Simd<float>::store_non_temporal(reinterpret_cast<float*>(to), bits<VecF>(narrowed(from)));
  }

 private:
  /// Does what narrow() does. A NaN that was computed is a quiet one, and stays one without its
  /// end.
  static WEIGHTED_BCE_INLINE VecU rounded(VecF v) {
    const VecU b = bits<VecU>(v);
    return v == v ? b + (((b >> 16) & 1u) + 0x7fffu) : b;
  }
  static WEIGHTED_BCE_INLINE VecU narrowed(const VecF (&from)[2]) {
    return rounded(from[0]) >> 16 | (rounded(from[1]) & 0xffff0000u);
  }
};

#if defined(WEIGHTED_BCE_AVX2) || defined(WEIGHTED_BCE_AVX512)
template <>
struct Group<float, Half> {
  static constexpr int kVectors = 1;
  using Words = Types<float>::Words;

  static WEIGHTED_BCE_INLINE void load(const Half* from, VecF (&to)[1]) {
    Words words;
    __builtin_memcpy(&words, from, sizeof(words));
#if defined(WEIGHTED_BCE_AVX512)
    to[0] = _mm512_maskz_cvtph_ps(0xffff, bits<__m256i>(words));
#else
    to[0] = _mm256_cvtph_ps(bits<__m128i>(words));
#endif
  }
  static WEIGHTED_BCE_INLINE void store(Half* to, const VecF (&from)[1]) {
    const Words words = narrowed(from[0]);
    __builtin_memcpy(to, &words, sizeof(words));
  }
  /// Does what Simd::store_non_temporal does; the other half of the cache line follows.
  static WEIGHTED_BCE_INLINE void store_non_temporal(Half* to, const VecF (&from)[1]) {
#if defined(WEIGHTED_BCE_AVX512)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(narrowed(from[0])));
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits<__m128i>(narrowed(from[0])));
#endif
  }

 private:
  static WEIGHTED_BCE_INLINE Words narrowed(VecF v) {
#if defined(WEIGHTED_BCE_AVX512)
    return bits<Words>(_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#else
    return bits<Words>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#endif
  }
};
#endif

template <class T>
using Load = void (*)(const void*, int64_t, int64_t, T* __restrict);
template <class T>
using Store = void (*)(const T* __restrict, int64_t, int64_t, void*);

/// Returns the function for a dtype.
template <class T>
Load<T> loader(Dtype dtype) {
  static constexpr Load<T> kTable[kDtypes] = {
      load_run<Bool, T>,    load_run<uint8_t, T>,  load_run<int8_t, T>,   load_run<uint16_t, T>,
      load_run<int16_t, T>, load_run<uint32_t, T>, load_run<int32_t, T>,  load_run<uint64_t, T>,
      load_run<int64_t, T>, load_run<Half, T>,     load_run<BFloat16, T>, load_run<float, T>,
      load_run<double, T>};
  return kTable[static_cast<int>(dtype)];
}

template <class T>
Store<T> storer(Dtype dtype);
template <>
Store<float> storer<float>(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return store_run<Half, float>;
  if (dtype == Dtype::kBFloat16) return store_run<BFloat16, float>;
  return store_run<float, float>;
}
template <>
Store<double> storer<double>(Dtype) {
  return store_run<double, double>;
}

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
