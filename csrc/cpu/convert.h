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

/// Vectors of T that lie in memory as S: widened and rounded in registers.
template <class T, class S>
struct Line {
  static constexpr bool kExists = false;
};

template <class T>
struct Line<T, T> : Simd<T> {
  static constexpr bool kExists = true;
};

/// What the lines of two bytes an element share: `Own` has widened() and narrowed().
template <class S, class Own>
struct HalfLine {
  static constexpr bool kExists = true;
  using Words = Types<float>::Words;
  static WEIGHTED_BCE_INLINE VecF load(const S* from) {
    Words words;
    __builtin_memcpy(&words, from, sizeof(words));
    return Own::widened(words);
  }
  static WEIGHTED_BCE_INLINE void store(S* to, VecF v) {
    const Words words = Own::narrowed(v);
    __builtin_memcpy(to, &words, sizeof(words));
  }
  /// As Simd::stream; the other half of the cache line follows.
  static WEIGHTED_BCE_INLINE void stream(S* to, VecF v) {
#if defined(WEIGHTED_BCE_AVX512)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(Own::narrowed(v)));
#elif defined(WEIGHTED_BCE_AVX2)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits<__m128i>(Own::narrowed(v)));
#else
    store(to, v);
#endif
  }
};

template <>
struct Line<float, BFloat16> : HalfLine<BFloat16, Line<float, BFloat16>> {
  typedef uint32_t VecU __attribute__((vector_size(kBytes)));
  static WEIGHTED_BCE_INLINE VecF widened(Words words) {
#if defined(WEIGHTED_BCE_AVX512)  // GCC 12 would do it in two halves
    const VecU wide = bits<VecU>(_mm512_maskz_cvtepu16_epi32(0xffff, bits<__m256i>(words)));
#else
    const VecU wide = __builtin_convertvector(words, VecU);
#endif
    return bits<VecF>(wide << 16);
  }
  /// As narrow(), of what was computed: a NaN is then a quiet one, and stays one without its end.
  static WEIGHTED_BCE_INLINE Words narrowed(VecF v) {
    const VecU b = bits<VecU>(v);
    const VecU rounded = (v == v ? b + (((b >> 16) & 1u) + 0x7fffu) : b) >> 16;
#if defined(WEIGHTED_BCE_AVX512)
    return bits<Words>(_mm512_maskz_cvtepi32_epi16(0xffff, bits<__m512i>(rounded)));
#else
    return __builtin_convertvector(rounded, Words);
#endif
  }
};

#if defined(WEIGHTED_BCE_AVX512)
template <>
struct Line<float, Half> : HalfLine<Half, Line<float, Half>> {
  static WEIGHTED_BCE_INLINE VecF widened(Words words) {
    return _mm512_maskz_cvtph_ps(0xffff, bits<__m256i>(words));
  }
  static WEIGHTED_BCE_INLINE Words narrowed(VecF v) {
    return bits<Words>(_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
  }
};
#elif defined(WEIGHTED_BCE_AVX2)
template <>
struct Line<float, Half> : HalfLine<Half, Line<float, Half>> {
  static WEIGHTED_BCE_INLINE VecF widened(Words words) {
    return _mm256_cvtph_ps(bits<__m128i>(words));
  }
  static WEIGHTED_BCE_INLINE Words narrowed(VecF v) {
    return bits<Words>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};
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
