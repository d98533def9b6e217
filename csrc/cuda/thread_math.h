// One thread has the arithmetic that elementary.h and terms.h ask for, and products of logarithms.
#pragma once

#include "terms.h"

namespace weighted_bce::cuda {

template <class T>
struct Basics {
  using Value = T;
  using Element = T;

  static WEIGHTED_BCE_DEVICE T set(T v) { return v; }
  static WEIGHTED_BCE_DEVICE T fma(T a, T b, T c) { return fused(a, b, c); }
  static WEIGHTED_BCE_DEVICE T select(bool m, T a, T b) { return m ? a : b; }
  static WEIGHTED_BCE_DEVICE T max(T a, T b) { return max_number(a, b); }
  static WEIGHTED_BCE_DEVICE T abs(T v) { return magnitude(v); }
  /// Returns what the rounding of a b to `product` has taken.
  static WEIGHTED_BCE_DEVICE T product_remainder(T a, T b, T product) {
    return fused(a, b, -product);
  }
};

/// By its errors, value and slope of a term of Focal (terms.h) are at most 16 ulp off in float,
/// and 6 in double.
template <class T>
struct Scalar;

template <>
struct Scalar<float> : Basics<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;

  /// Is at most 2 ulp off for b in [1, 2^126].
  static WEIGHTED_BCE_DEVICE float divide(float a, float b) {
    return a * reciprocal_approximate(b);
  }

  /// Returns exp(-|x|), at most 5 ulp off, denormal results included. NaN gives NaN, infinity 0.
  ///
  /// h is 64 - |x| log2(e) rounded to 16 binary places, so that 64 - h is exact, and low is what
  /// the rounding took: exp2(low) is 1 + low log(2) to 33 places. 2^64 times the result is a normal
  /// number, so the approximation of exp2(h) may flush to zero.
  static WEIGHTED_BCE_DEVICE float exp_minus_abs(float x) {
    constexpr float kLog2E = 1.44269502f, kLog2ERest = 1.92596303e-8f;
    const float t = max_or_nan(-abs(x), Floating<float>::kLowest);
    const float h = fused(t, kLog2E, 384.0f) - 320.0f;
    const float low = fused(t, kLog2ERest, fused(t, kLog2E, 64.0f - h));
    constexpr float kSmall = 0x1p-64f;
    return exp2_approximate(h) * fused(low, 0.693147182f * kSmall, kSmall);
  }
};

template <>
struct Scalar<double> : Basics<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;

  static WEIGHTED_BCE_DEVICE double divide(double a, double b) { return a / b; }
  /// Returns v 2^n for n from -2^11 to 0. It takes two factors, each a normal number, so that a
  /// denormal result is rounded once.
  static WEIGHTED_BCE_DEVICE double times_power_of_two(double v, double n) {
    const int64_t whole = static_cast<int64_t>(n), half = whole >> 1;
    return v * power_of_two(half) * power_of_two(whole - half);
  }
  static WEIGHTED_BCE_DEVICE double power_of_two(int64_t n) {
    return from_bits(static_cast<uint64_t>(n + kBias) << kMantissa);
  }
  /// Returns exp(-|x|), with the error of exp_of_negative.
  static WEIGHTED_BCE_DEVICE double exp_minus_abs(double x) {
    return exp_of_negative<Scalar>(max_or_nan(-abs(x), Floating<double>::kLowest));
  }
};

/// Returns log(1 + r) for r from 0 to the largest power of two, at most 4 ulp off. A NaN gives NaN.
template <class T>
WEIGHTED_BCE_DEVICE T log1p_of_product(T r) {
  using S = Scalar<T>;
  using Bits = typename S::Bits;
  // 1 + r = 2^k (1 + m), m in [0, 1). Below 1, r itself has more digits than 1 + r.
  const T whole = T(1) + r;
  const Bits exponent = to_bits(whole) >> S::kMantissa;  // k + kBias
  const T shrink = from_bits(static_cast<Bits>((Bits{2} * S::kBias - exponent) << S::kMantissa));
  const bool below = r < T(1);
  const T m = below ? r : whole * shrink - T(1);
  const T k = below ? T(0) : static_cast<T>(static_cast<int>(exponent) - S::kBias);
  return fused(k, T(0.693147180559945309), log1p_unit<S>(m));
}

/// A Product is prod(1 + z) - 1 over up to kFactors z in [0, 1], so that their logarithms are one.
/// It keeps its relative accuracy for tiny z.
template <class T>
struct Product {
  static constexpr int kFactors = 96;  // 2^96 times what rounding adds is finite in float
  T value = 0;
  WEIGHTED_BCE_DEVICE void times_one_plus(T z) { value += fused(z, value, z); }
};

}  // namespace weighted_bce::cuda
