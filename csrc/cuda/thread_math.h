// One thread has the arithmetic that elementary.h asks for, and products of logarithms.
#pragma once

#include "losses.h"

namespace weighted_bce::cuda {

template <class T>
struct Basics {
  using Value = T;
  using Element = T;

  static WEIGHTED_BCE_DEVICE T set(T v) { return v; }
  static WEIGHTED_BCE_DEVICE T fma(T a, T b, T c) { return fused(a, b, c); }
  static WEIGHTED_BCE_DEVICE T select(bool m, T a, T b) { return m ? a : b; }
  static WEIGHTED_BCE_DEVICE bool any(bool m) { return m; }
  static WEIGHTED_BCE_DEVICE T max(T a, T b) { return max_number(a, b); }
  static WEIGHTED_BCE_DEVICE T abs(T v) { return magnitude(v); }
  static WEIGHTED_BCE_DEVICE Decomposed<T> decomposed(T v) {
    using Bits = decltype(to_bits(v));
    constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52, kBias = sizeof(T) == 4 ? 127 : 1023;
    const Bits biased = to_bits(v) >> kMantissa;
    return {v * from_bits(static_cast<Bits>((2 * Bits{kBias} - biased) << kMantissa)),
            static_cast<T>(static_cast<int>(biased) - kBias)};
  }
  /// Returns what the rounding of a b to `product` has taken.
  static WEIGHTED_BCE_DEVICE T product_remainder(T a, T b, T product) {
    return fused(a, b, -product);
  }
};

/// By its errors, values and slopes of terms (losses.h) are at most 8 ulp off in double, and 10 for
/// Asymmetric. In float, where those of exp grow with the powers of it, they are at most 12 off for
/// Bce and Poly1, 4 for SquaredHinge, 40 for Focal and Hill with a gamma up to 4, and 96 for
/// Asymmetric.
template <class T>
struct Scalar;

template <>
struct Scalar<float> : Basics<float> {
  /// Is at most 2 ulp off where 1 / b is normal.
  static WEIGHTED_BCE_DEVICE float divide(float a, float b) { return a * reciprocal(b); }
  static WEIGHTED_BCE_DEVICE float reciprocal(float b) { return reciprocal_approximate(b); }

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
  /// Returns the same: what the approximation has taken is not known.
  static WEIGHTED_BCE_DEVICE Pair<float> exp_minus_abs_pair(float x) {
    return {exp_minus_abs(x), 0};
  }
};

template <>
struct Scalar<double> : Basics<double> {
  static WEIGHTED_BCE_DEVICE double divide(double a, double b) { return a / b; }
  static WEIGHTED_BCE_DEVICE double reciprocal(double b) { return 1 / b; }
  /// Returns v 2^n for n from -2^11 to 0. It takes two factors, each a normal number, so that a
  /// denormal result is rounded once.
  static WEIGHTED_BCE_DEVICE double times_power_of_two(double v, double n) {
    const int64_t whole = static_cast<int64_t>(n), half = whole >> 1;
    return v * power_of_two(half) * power_of_two(whole - half);
  }
  static WEIGHTED_BCE_DEVICE double power_of_two(int64_t n) {
    return from_bits(static_cast<uint64_t>(n + 1023) << 52);
  }
  /// Returns exp(-|x|), with the error of exp_of_negative.
  static WEIGHTED_BCE_DEVICE double exp_minus_abs(double x) {
    return exp_of_negative<Scalar>(max_or_nan(-abs(x), Floating<double>::kLowest));
  }
  static WEIGHTED_BCE_DEVICE Pair<double> exp_minus_abs_pair(double x) {
    return exp_of_negative_pair<Scalar>(max_or_nan(-abs(x), Floating<double>::kLowest));
  }
};

/// A Product is prod(1 + z) - 1 over up to kFactors z in [0, 1], so that their logarithms are one.
/// It keeps its relative accuracy for tiny z.
template <class T>
struct Product {
  static constexpr int kFactors = 96;  // 2^96 times what rounding adds is finite in float
  T value = 0;
  WEIGHTED_BCE_DEVICE void times_one_plus(T z) { value += fused(z, value, z); }
};

}  // namespace weighted_bce::cuda
