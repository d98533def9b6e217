// exp and log1p for the arithmetic of any backend, with their errors.
//
// The arithmetic is a parameter: a scalar, a SIMD vector, or a CUDA thread's float supplies
// Math::Value, made of Math::Element, with the operators + - * > ==, and set, fma, select, max,
// abs, divide, exp_minus_abs and product_remainder.
//
// The polynomials are Chebyshev fits. float: (exp(f) - 1 - f) / f^2 on |f| <= log(2) / 2, off by
// 6.5e-8, and (atanh(s) / s - 1) / s^2 on s^2 <= 1/9 as a polynomial in s^2, off by 9e-11. double:
// the same, off by 1.4e-18 and 2.5e-23.
#pragma once

#include "problem.h"

namespace weighted_bce {

/// These constants belong to Math::Element.
template <class T>
struct Floating;
template <>
struct Floating<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -104.0f;     // exp of it rounds to 0
  static constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
};
template <>
struct Floating<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -746.0;
  static constexpr double kLog2High = 6.93145751953125e-1, kLog2Low = 1.42860682030941723e-6;
};

/// Returns the polynomial in v of these coefficients, the highest power first.
template <class Math, class... T>
WEIGHTED_BCE_INLINE typename Math::Value polynomial(typename Math::Value v,
                                                    typename Math::Element highest, T... others) {
  typename Math::Value sum = Math::set(highest);
  ((sum = Math::fma(sum, v, Math::set(others))), ...);
  return sum;
}

/// Returns (atanh(s) / s - 1) / s^2 for square = s^2 in [0, 1/9].
template <class Math>
WEIGHTED_BCE_INLINE typename Math::Value log1p_series(typename Math::Value square) {
  if constexpr (sizeof(typename Math::Element) == 4) {
    return polynomial<Math>(square, 1.03941347e-1f, 8.7322699e-2f, 1.11323623e-1f, 1.42851526e-1f,
                            2.00000054e-1f, 3.33333333e-1f);
  } else {
    return polynomial<Math>(square, 7.3674363953967427e-2, 2.1541379173885993e-2,
                            4.3376846035230552e-2, 4.3009325491916152e-2, 4.7663185650909075e-2,
                            5.2628686142674407e-2, 5.8823662301925981e-2, 6.6666662427341935e-2,
                            7.6923077014632928e-2, 9.0909090907812500e-2, 1.1111111111112179e-1,
                            1.4285714285714281e-1, 0.2, 3.3333333333333333e-1);
  }
}

/// Returns exp(f) for |f| <= log(2) / 2.
template <class Math>
WEIGHTED_BCE_INLINE typename Math::Value exp_series(typename Math::Value f) {
  if constexpr (sizeof(typename Math::Element) == 4) {
    return polynomial<Math>(f, 1.39261836e-3f, 8.36317905e-3f, 4.16665546e-2f, 1.66665770e-1f, 0.5f,
                            1.0f, 1.0f);
  } else {
    return polynomial<Math>(f, 2.0914686968086877e-9, 2.5105217004720745e-8, 2.7557273643110295e-7,
                            2.7557255400206424e-6, 2.4801587325547741e-5, 1.9841269874820626e-4,
                            1.3888888888883748e-3, 8.3333333333261351e-3, 4.1666666666666670e-2,
                            1.6666666666666671e-1, 0.5, 1.0, 1.0);
  }
}

/// Returns exp(t) for t from Floating::kLowest to 0, at most 1 ulp off, denormal results included.
/// A NaN gives NaN.
template <class Math>
WEIGHTED_BCE_INLINE typename Math::Value exp_of_negative(typename Math::Value t) {
  using E = typename Math::Element;
  using V = typename Math::Value;
  const V round = Math::set(Floating<E>::kRound);
  const V n = Math::fma(t, Math::set(E(1.4426950408889634)), round) - round;
  V f = Math::fma(n, Math::set(-Floating<E>::kLog2High), t);
  f = Math::fma(n, Math::set(-Floating<E>::kLog2Low), f);
  return Math::times_power_of_two(exp_series<Math>(f), n);
}

/// Returns log(1 + z) for z in [0, 1], by log1p(z) = 2 atanh(s) with s = z / (2 + z) in [0, 1/3].
/// It is at most 2 ulp off, also for denormal z. A NaN gives NaN.
template <class Math>
WEIGHTED_BCE_INLINE typename Math::Value log1p_unit(typename Math::Value z) {
  using V = typename Math::Value;
  const V s = Math::divide(z, Math::set(2) + z);
  const V twice = s + s;
  const V square = s * s;
  return Math::fma(twice * square, log1p_series<Math>(square), twice);
}

/// A number of twice the digits, as in double-double arithmetic: the sum of both, of which `low` is
/// what the rounding of `high` has taken.
template <class V>
struct Pair {
  V high, low;
};

/// Returns a number as T, and what that rounding has taken where the result is finite.
template <class T>
WEIGHTED_BCE_INLINE Pair<T> split(double exact) {
  const T high = static_cast<T>(exact);
  const bool finite = high - high == 0;
  return {high, finite ? static_cast<T>(exact - static_cast<double>(high)) : T(0)};
}

/// Returns log1p_unit with a remainder: their sum is off by at most 1/8 ulp of `high`.
template <class Math>
WEIGHTED_BCE_INLINE Pair<typename Math::Value> log1p_unit_pair(typename Math::Value z) {
  using V = typename Math::Value;
  using E = typename Math::Element;
  const V denominator = Math::set(2) + z;
  const V s = Math::divide(z, denominator);
  // The division left z - s (2 + z), and 1 / (2 + z) is 1 / 2 - z / 6 to a few bits.
  const V product = s * denominator;
  const V left = (z - product) - Math::product_remainder(s, denominator, product) -
                 s * (z - (denominator - Math::set(2)));
  const V s_low = left * (Math::set(E(0.5)) - z * Math::set(E(1.0 / 6)));
  const V twice = s + s;
  const V square = s * s;
  const V rest = Math::fma(twice * square, log1p_series<Math>(square), s_low + s_low);
  const V high = twice + rest;
  return {high, rest - (high - twice)};
}

}  // namespace weighted_bce
