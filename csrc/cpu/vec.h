// SIMD arithmetic for one level. No include guard against the level's namespace: each level_*.cpp
// includes this once, inside its own namespace, with kBytes defined and the instruction set on.
//
// Vectors are the compiler's own (GCC and Clang); intrinsics appear only where the compiler cannot
// be told. larger(a, b) gives b where one of them is NaN, as x86 has it.

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
/// 1 / v for v in [1, 2], at most 1 ulp off: an approximation good to 14 bits and one Newton step.
WEIGHTED_BCE_INLINE VecF inverse(VecF v) {
  const VecF r = _mm512_maskz_rcp14_ps(0xffff, v);
  return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(v, r, VecF{} + 1.0f), r);
}
WEIGHTED_BCE_INLINE VecD inverse(VecD v) { return 1.0 / v; }
WEIGHTED_BCE_INLINE VecF times_power_of_two(VecF v, VecF n) {
  return _mm512_maskz_scalef_ps(0xffff, v, n);
}
WEIGHTED_BCE_INLINE VecD times_power_of_two(VecD v, VecD n) {
  return _mm512_maskz_scalef_pd(0xff, v, n);
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
WEIGHTED_BCE_INLINE V inverse(V v) {
  return 1 / v;
}
/// v 2^n for n from -2^7 to 0 (float) or -2^10 to 0 (double). Two factors, each a normal number, so
/// that a denormal result is rounded once.
template <class V>
WEIGHTED_BCE_INLINE V times_power_of_two(V v, V n) {
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

template <class T>
struct Polynomials;
template <>
struct Polynomials<float> {
  // Chebyshev fits: (exp(f) - 1 - f) / f^2 on |f| <= log(2) / 2, off by 6.5e-8, and
  // (atanh(s) / s - 1) / s^2 on s^2 <= 1/9 as a polynomial in s^2, off by 9e-11.
  static constexpr float kExp[] = {
      1.39261836e-3f, 8.36317905e-3f, 4.16665546e-2f, 1.66665770e-1f, 0.5f, 1.0f, 1.0f};
  static constexpr float kLog1p[] = {1.03941347e-1f, 8.7322699e-2f,  1.11323623e-1f,
                                     1.42851526e-1f, 2.00000054e-1f, 3.33333333e-1f};
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -104.0f;     // exp of it rounds to 0
  static constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
};
template <>
struct Polynomials<double> {
  // The same, off by 1.4e-18 and 2.5e-23.
  static constexpr double kExp[] = {2.0914686968086877e-9,
                                    2.5105217004720745e-8,
                                    2.7557273643110295e-7,
                                    2.7557255400206424e-6,
                                    2.4801587325547741e-5,
                                    1.9841269874820626e-4,
                                    1.3888888888883748e-3,
                                    8.3333333333261351e-3,
                                    4.1666666666666670e-2,
                                    1.6666666666666671e-1,
                                    0.5,
                                    1.0,
                                    1.0};
  static constexpr double kLog1p[] = {7.3674363953967427e-2,
                                      2.1541379173885993e-2,
                                      4.3376846035230552e-2,
                                      4.3009325491916152e-2,
                                      4.7663185650909075e-2,
                                      5.2628686142674407e-2,
                                      5.8823662301925981e-2,
                                      6.6666662427341935e-2,
                                      7.6923077014632928e-2,
                                      9.0909090907812500e-2,
                                      1.1111111111112179e-1,
                                      1.4285714285714281e-1,
                                      0.2,
                                      3.3333333333333333e-1};
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -746.0;
  static constexpr double kLog2High = 6.93145751953125e-1, kLog2Low = 1.42860682030941723e-6;
};

/// The arithmetic that loss_math.h asks for, on whole vectors.
template <class T>
struct Simd {
  using Value = typename Types<T>::V;
  using Mask = typename Types<T>::I;
  using Int = typename Types<T>::Int;
  using Constants = Polynomials<T>;
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

  static WEIGHTED_BCE_INLINE Value set(T v) { return v - Value{}; }
  static WEIGHTED_BCE_INLINE Value fma(Value a, Value b, Value c) { return fused(a, b, c); }
  static WEIGHTED_BCE_INLINE Value select(Mask m, Value a, Value b) { return m ? a : b; }
  static WEIGHTED_BCE_INLINE Value max(Value a, Value b) { return larger(a, b); }
  static WEIGHTED_BCE_INLINE Value reciprocal(Value v) { return inverse(v); }
  static WEIGHTED_BCE_INLINE Value abs(Value v) {
    return bits<Value>(bits<Mask>(v) & std::numeric_limits<Int>::max());
  }
  static WEIGHTED_BCE_INLINE Value load(const T* from) {
    Value v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static WEIGHTED_BCE_INLINE void store(T* to, Value v) { __builtin_memcpy(to, &v, sizeof(v)); }
  /// Past the caches, to an aligned place whose whole cache line is about to be written.
  static WEIGHTED_BCE_INLINE void stream(T* to, Value v) {
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

  template <int kTerms>
  static WEIGHTED_BCE_INLINE Value polynomial(Value v, const T (&terms)[kTerms]) {
    Value sum = set(terms[0]);
#pragma GCC unroll 16
    for (int i = 1; i < kTerms; ++i) sum = fma(sum, v, set(terms[i]));
    return sum;
  }
  static WEIGHTED_BCE_INLINE Value log1p_series(Value square) {
    return polynomial(square, Constants::kLog1p);
  }

  /// exp(-|x|), at most 1 ulp off, denormal results included. NaN gives NaN, infinity 0.
  static WEIGHTED_BCE_INLINE Value exp_minus_abs(Value x) {
    const Value minus = bits<Value>(bits<Mask>(x) | std::numeric_limits<Int>::min());
    const Value t = larger(set(Constants::kLowest), minus);
    const Value round = set(Constants::kRound);
    const Value n = fma(t, set(T(1.4426950408889634)), round) - round;
    Value f = fma(n, set(-Constants::kLog2High), t);
    f = fma(n, set(-Constants::kLog2Low), f);
    const Value e = polynomial(f, Constants::kExp);
    return times_power_of_two(e, n);
  }
};
