// SIMD arithmetic for one instruction set.
//
// Each isa_*.cpp includes the kernels once, with its instruction set switched on and named by
// WEIGHTED_BCE_ISA, the namespace of all that is compiled for it. Without a name it is the
// baseline: four floats at a time, lowered by the compiler for any processor.
//
// Vectors are the compiler's own (GCC and Clang); intrinsics appear only where the compiler cannot
// be told. larger(a, b) gives b where one of them is NaN, as x86 has it.
#pragma once

#include "cpu/before_isa.h"

#ifndef WEIGHTED_BCE_ISA
#define WEIGHTED_BCE_ISA baseline
#define WEIGHTED_BCE_VECTOR_BYTES 16
#endif

#include "losses.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

constexpr int kBytes = WEIGHTED_BCE_VECTOR_BYTES;
typedef float VecF __attribute__((vector_size(kBytes)));
typedef double VecD __attribute__((vector_size(kBytes)));
typedef int32_t VecI __attribute__((vector_size(kBytes)));
typedef int64_t VecL __attribute__((vector_size(kBytes)));

template <class T>
struct Types;
template <>
struct Types<float> {
  using V = VecF;
  using I = VecI;
  typedef uint32_t Unsigned __attribute__((vector_size(kBytes)));
  using Int = int32_t;
  typedef uint8_t Bytes __attribute__((vector_size(kBytes / 4)));
  typedef uint16_t Words __attribute__((vector_size(kBytes / 2)));
  using Ints = VecI;
};
template <>
struct Types<double> {
  using V = VecD;
  using I = VecL;
  using Int = int64_t;
  typedef uint8_t Bytes __attribute__((vector_size(kBytes / 8)));
  typedef uint16_t Words __attribute__((vector_size(kBytes / 4)));
  typedef int32_t Ints __attribute__((vector_size(kBytes / 2)));
};

template <class To, class From>
WEIGHTED_BCE_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits() keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

#if defined(WEIGHTED_BCE_AVX512)
WEIGHTED_BCE_INLINE VecF fused(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
WEIGHTED_BCE_INLINE VecD fused(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }
WEIGHTED_BCE_INLINE bool any_nonzero(VecF v) {
  return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0;
}
WEIGHTED_BCE_INLINE bool any_nonzero(VecD v) {
  return _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ) != 0;
}
WEIGHTED_BCE_INLINE VecF larger(VecF a, VecF b) { return _mm512_maskz_max_ps(0xffff, a, b); }
WEIGHTED_BCE_INLINE VecD larger(VecD a, VecD b) { return _mm512_maskz_max_pd(0xff, a, b); }
WEIGHTED_BCE_INLINE VecF scaled_by_power_of_two(VecF v, VecF n) {
  return _mm512_maskz_scalef_ps(0xffff, v, n);
}
WEIGHTED_BCE_INLINE VecD scaled_by_power_of_two(VecD v, VecD n) {
  return _mm512_maskz_scalef_pd(0xff, v, n);
}
/// Returns 1 / b where both are normal, at most 1 ulp off. An approximation of 14 bits and a step
/// of Newton's method take a third of the time of a division.
WEIGHTED_BCE_INLINE VecF inverse(VecF b) {
  const VecF r = _mm512_maskz_rcp14_ps(0xffff, b);
  return fused(fused(-b, r, 1.0f - VecF{}), r, r);
}
WEIGHTED_BCE_INLINE VecD inverse(VecD b) { return 1 / b; }
template <class V>
WEIGHTED_BCE_INLINE Decomposed<V> decomposed(V v) {
  if constexpr (sizeof(v[0]) == 4) {
    return {_mm512_maskz_getmant_ps(0xffff, v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src),
            _mm512_maskz_getexp_ps(0xffff, v)};
  } else {
    return {_mm512_maskz_getmant_pd(0xff, v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src),
            _mm512_maskz_getexp_pd(0xff, v)};
  }
}
/// Does what exp_of_negative_pair does. A register holds a table of 2^(k/16), so that what is left
/// for the polynomial is at most log(2) / 32, where three powers do; another holds what the table's
/// rounding took.
WEIGHTED_BCE_INLINE Pair<VecF> exp_by_table(VecF t) {
  constexpr VecF kPowers = {1.0f,        1.04427373f, 1.09050775f, 1.13878858f,
                            1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
                            1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                            1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
  constexpr VecF kRests = {0.0f,
                           4.62854715e-08f,
                           -1.19921575e-08f,
                           4.72978243e-08f,
                           3.19341815e-08f,
                           3.62105723e-08f,
                           -3.09907193e-08f,
                           -7.47521334e-09f,
                           1.71142709e-08f,
                           -3.04768335e-08f,
                           5.23333421e-09f,
                           6.10759177e-09f,
                           -1.47196051e-08f,
                           -5.25879518e-09f,
                           -6.12825968e-09f,
                           5.14060927e-09f};
  using Constants = Floating<float>;
  const VecF round = Constants::kRound / 16 - VecF{};  // the low bits of `sum` are then k
  const VecF sum = fused(t, 1.44269504f - VecF{}, round), n = sum - round;
  VecF f = fused(n, -Constants::kLog2High - VecF{}, t);
  f = fused(n, -Constants::kLog2Low - VecF{}, f);
  const VecF power = _mm512_maskz_permutexvar_ps(0xffff, bits<__m512i>(sum), kPowers);
  const VecF rest = _mm512_maskz_permutexvar_ps(0xffff, bits<__m512i>(sum), kRests);
  const VecF more = fused(fused(f, 0.1666696f - VecF{}, 0.50000977f - VecF{}), f, 1.0f - VecF{});
  const VecF tail = fused(more, f, rest), high = fused(power, tail, power);
  const VecF low = fused(power, tail, power - high);
  return {scaled_by_power_of_two(high, n), scaled_by_power_of_two(low, n)};  // by n's whole part
}
#else
#if defined(WEIGHTED_BCE_AVX2)
WEIGHTED_BCE_INLINE VecF fused(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
WEIGHTED_BCE_INLINE VecD fused(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }
WEIGHTED_BCE_INLINE bool any_nonzero(VecF v) {
  return _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)) != 0;
}
WEIGHTED_BCE_INLINE bool any_nonzero(VecD v) {
  return _mm256_movemask_pd(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_NEQ_UQ)) != 0;
}
WEIGHTED_BCE_INLINE VecF larger(VecF a, VecF b) { return _mm256_max_ps(a, b); }
WEIGHTED_BCE_INLINE VecD larger(VecD a, VecD b) { return _mm256_max_pd(a, b); }
#else
template <class V>
WEIGHTED_BCE_INLINE V fused(V a, V b, V c) {
  return a * b + c;
}
template <class V>
WEIGHTED_BCE_INLINE bool any_nonzero(V v) {
  const auto words = bits<VecL>(v != V{});
  int64_t any = 0;
  for (int i = 0; i < kBytes / 8; ++i) any |= words[i];
  return any != 0;
}
template <class V>
WEIGHTED_BCE_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
#endif
template <class V>
WEIGHTED_BCE_INLINE V inverse(V b) {
  return 1 / b;
}
template <class V>
WEIGHTED_BCE_INLINE Decomposed<V> decomposed(V v) {
  using T = typename std::remove_reference<decltype(v[0])>::type;
  using I = typename Types<T>::I;
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  constexpr T kWhole = sizeof(T) == 4 ? T(1 << 23) : T(int64_t{1} << 52);
  const I biased = bits<I>(v) >> kMantissa;
  const V exponent = bits<V>(biased | bits<I>(kWhole - V{})) - (kWhole + kBias);
  return {v * bits<V>((2 * kBias - biased) << kMantissa), exponent};
}
/// Returns v 2^n for n from -2^8 to 0 (float) or -2^11 to 0 (double). Two factors, each a normal
/// number, so that a denormal result is rounded once.
template <class V>
WEIGHTED_BCE_INLINE V scaled_by_power_of_two(V v, V n) {
  using T = typename std::remove_reference<decltype(v[0])>::type;
  using I = typename Types<T>::I;
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  const I whole = __builtin_convertvector(n, I);
  const I half = whole >> 1;
  const V first = bits<V>((half + kBias) << kMantissa);
  const V second = bits<V>((whole - half + kBias) << kMantissa);
  return v * first * second;
}
#endif

/// Returns bytes as integers of as many lanes.
template <class Ints, class Bytes>
WEIGHTED_BCE_INLINE Ints widened(Bytes bytes) {
#if defined(WEIGHTED_BCE_AVX512)  // GCC 12 would take the bytes one by one, or in two halves
  if constexpr (sizeof(Bytes) == 16) {
    return bits<Ints>(_mm512_maskz_cvtepu8_epi32(0xffff, bits<__m128i>(bytes)));
  }
#endif
#if defined(WEIGHTED_BCE_AVX2) || defined(WEIGHTED_BCE_AVX512)
  if constexpr (sizeof(Bytes) == 8) {
    return bits<Ints>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits<int64_t>(bytes))));
  }
  if constexpr (sizeof(Bytes) == 4) {
    return bits<Ints>(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bits<int32_t>(bytes))));
  }
#endif
  typedef uint16_t Words __attribute__((vector_size(2 * sizeof(Bytes))));
  return __builtin_convertvector(__builtin_convertvector(bytes, Words), Ints);
}

/// This is the arithmetic that elementary.h asks for, on whole vectors.
template <class T>
struct Simd {
  using Value = typename Types<T>::V;
  using Mask = typename Types<T>::I;
  using Int = typename Types<T>::Int;
  using Element = T;
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

  static WEIGHTED_BCE_INLINE Value set(T v) { return v - Value{}; }
  static WEIGHTED_BCE_INLINE Value fma(Value a, Value b, Value c) { return fused(a, b, c); }
  static WEIGHTED_BCE_INLINE Value select(Mask m, Value a, Value b) { return m ? a : b; }
  static WEIGHTED_BCE_INLINE bool any(Mask m) { return any_nonzero(m ? set(1) : Value{}); }
  static WEIGHTED_BCE_INLINE Value max(Value a, Value b) { return larger(a, b); }
  static WEIGHTED_BCE_INLINE Value divide(Value a, Value b) { return a / b; }
  static WEIGHTED_BCE_INLINE Value times_power_of_two(Value v, Value n) {
    return scaled_by_power_of_two(v, n);
  }
  /// Returns a b - product, where product is a b rounded.
  static WEIGHTED_BCE_INLINE Value product_remainder(Value a, Value b, Value product) {
#if defined(WEIGHTED_BCE_AVX2) || defined(WEIGHTED_BCE_AVX512)
    return fused(a, b, -product);
#else  // Dekker (1971): halves of the digits have exact products
    const Value a_high = upper_digits(a), b_high = upper_digits(b);
    const Value a_low = a - a_high, b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
  }
  static WEIGHTED_BCE_INLINE Value upper_digits(Value v) {
    const Value shifted = v * static_cast<T>(sizeof(T) == 4 ? 4097 : 134217729);  // 2^12, 2^27 + 1
    return shifted - (shifted - v);
  }
  static WEIGHTED_BCE_INLINE Value abs(Value v) {
    return bits<Value>(bits<Mask>(v) & std::numeric_limits<Int>::max());
  }
  static WEIGHTED_BCE_INLINE Value load(const T* from) {
    Value v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static WEIGHTED_BCE_INLINE void store(T* to, Value v) { __builtin_memcpy(to, &v, sizeof(v)); }
  /// Stores past the caches, to an aligned place whose whole cache line is about to be written.
  static WEIGHTED_BCE_INLINE void store_non_temporal(T* to, Value v) {
#if defined(WEIGHTED_BCE_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits<__m512i>(v));
#elif defined(WEIGHTED_BCE_AVX2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(v));
#elif defined(__SSE2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits<__m128i>(v));
#else
    store(to, v);
#endif
  }

  static WEIGHTED_BCE_INLINE Value reciprocal(Value b) { return inverse(b); }
  static WEIGHTED_BCE_INLINE Decomposed<Value> decomposed(Value v) {
    return WEIGHTED_BCE_ISA::decomposed(v);
  }

  /// Returns exp(-|x|), at most 1 ulp off, denormal results included. NaN gives NaN, infinity 0.
  static WEIGHTED_BCE_INLINE Value exp_minus_abs(Value x) {
#if defined(WEIGHTED_BCE_AVX512)
    if constexpr (std::is_same_v<T, float>) return exp_by_table(limited(x)).high;
#endif
    return exp_of_negative<Simd>(limited(x));
  }
  /// Returns the same with a remainder, see exp_of_negative_pair.
  static WEIGHTED_BCE_INLINE Pair<Value> exp_minus_abs_pair(Value x) {
#if defined(WEIGHTED_BCE_AVX512)
    if constexpr (std::is_same_v<T, float>) return exp_by_table(limited(x));
#endif
    return exp_of_negative_pair<Simd>(limited(x));
  }

 private:
  /// Returns -|x|, or Floating::kLowest where that is larger.
  static WEIGHTED_BCE_INLINE Value limited(Value x) {
    const Value minus = bits<Value>(bits<Mask>(x) | std::numeric_limits<Int>::min());
    return larger(set(Floating<T>::kLowest), minus);
  }
};

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
