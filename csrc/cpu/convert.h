// Between the dtypes in memory and the compute type, in runs of equally spaced elements. Included
// by level.h inside a level's namespace.

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct Bool {
  uint8_t byte;
};

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

template <class T>
using Load = void (*)(const void*, int64_t, int64_t, T* __restrict);
template <class T>
using Store = void (*)(const T* __restrict, int64_t, int64_t, void*);

/// In the order of enum Dtype.
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
