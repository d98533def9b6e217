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
WEIGHTED_BCE_INLINE VecF scaled_by_power_of_two(VecF v, VecF n) {
  return _mm512_maskz_scalef_ps(0xffff, v, n);
}
WEIGHTED_BCE_INLINE VecD scaled_by_power_of_two(VecD v, VecD n) {
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

/// The arithmetic that loss_math.h asks for, on whole vectors.
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
  static WEIGHTED_BCE_INLINE Value max(Value a, Value b) { return larger(a, b); }
  static WEIGHTED_BCE_INLINE Value reciprocal(Value v) { return inverse(v); }
  static WEIGHTED_BCE_INLINE Value divide(Value a, Value b) { return a / b; }
  static WEIGHTED_BCE_INLINE Value times_power_of_two(Value v, Value n) {
    return scaled_by_power_of_two(v, n);
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

  /// exp(-|x|), at most 1 ulp off, denormal results included. NaN gives NaN, infinity 0.
  static WEIGHTED_BCE_INLINE Value exp_minus_abs(Value x) {
    const Value minus = bits<Value>(bits<Mask>(x) | std::numeric_limits<Int>::min());
    return exp_of_negative<Simd>(larger(set(Floating<T>::kLowest), minus));
  }
};
