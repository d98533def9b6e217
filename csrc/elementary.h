// exp and log1p for the arithmetic of any backend, with their errors.
//
// The arithmetic is a parameter: a scalar, a SIMD vector, or a CUDA thread's float supplies
// Math::Value, made of Math::Element, with the operators + - * > == and, of masks, ! and &; and
// set, fma, select, max, abs, divide, reciprocal, product_remainder, exp_minus_abs,
// exp_minus_abs_pair, times_power_of_two, decomposed and any.
//
// The polynomials are Chebyshev fits. float: (exp(f) - 1 - f) / f^2 on |f| <= log(2) / 2, off by
// 6.5e-8, and (atanh(s) / s - 1) / s^2 on s^2 <= 1/9 as a polynomial in s^2, off by 3.3e-10.
// double: the same, off by 2.6e-18 and 1.9e-17.
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
  static constexpr float kLeast = 0x1p-126f;    // the smallest normal number
  // Their sum is log(2); whole multiples of kLog2High are exact.
  static constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
};
template <>
struct Floating<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -746.0;
  static constexpr double kLeast = 0x1p-1022;
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

/// Returns (exp(f) - 1 - f) / f^2 for |f| <= log(2) / 2.
template <class Math>
WEIGHTED_BCE_INLINE typename Math::Value exp_series(typename Math::Value f) {
  if constexpr (sizeof(typename Math::Element) == 4) {
    return polynomial<Math>(f, 1.39261836e-3f, 8.36317905e-3f, 4.16665546e-2f, 1.66665770e-1f,
                            0.5f);
  } else {
    return polynomial<Math>(f, 2.0914686968086877e-9, 2.5105217004720745e-8, 2.7557273643110295e-7,
                            2.7557255400206424e-6, 2.4801587325547741e-5, 1.9841269874820626e-4,
                            1.3888888888883748e-3, 8.3333333333261351e-3, 4.1666666666666670e-2,
                            1.6666666666666671e-1, 0.5);
  }
}

/// A number of twice the digits, as in double-double arithmetic: the sum of both, of which `low` is
/// what the rounding of `high` has taken.
template <class V>
struct Pair {
  V high, low;
};

/// A positive normal number is mantissa 2^exponent, with a mantissa in [1, 2).
template <class V>
struct Decomposed {
  V mantissa, exponent;
};

/// Returns a number as T, and what that rounding has taken where the result is finite.
template <class T, class Exact>
WEIGHTED_BCE_INLINE Pair<T> split(Exact exact) {
  const T high = static_cast<T>(exact);
  const bool finite = high - high == 0;
  return {high, finite ? static_cast<T>(exact - static_cast<Exact>(high)) : T(0)};
}

/// Returns a + b for |a| >= |b|, or a = 0 (Dekker, 1971).
template <class V>
WEIGHTED_BCE_INLINE Pair<V> sum_of_larger(V a, V b) {
  const V high = a + b;
  return {high, b - (high - a)};
}

/// Returns a + b (Knuth, 1969).
template <class V>
WEIGHTED_BCE_INLINE Pair<V> sum(V a, V b) {
  const V high = a + b, kept = high - b;
  return {high, (a - kept) + (b - (high - kept))};
}

/// Returns a b, at most 4 units of the last place of `low` off.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Pair<V> product(Pair<V> a, Pair<V> b) {
  const V high = a.high * b.high;
  return {high,
          Math::product_remainder(a.high, b.high, high) + Math::fma(a.high, b.low, a.low * b.high)};
}

/// Returns 1 / b where both are normal.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Pair<V> reciprocal(Pair<V> b) {
  const V high = Math::reciprocal(b.high);
  const V left = Math::product_remainder(-b.high, high, Math::set(-1));  // 1 - b.high high
  return {high, high * Math::fma(-b.low, high, left)};
}

/// What is left of a number t in [Floating::kLowest, 0] for the series of exp.
template <class V>
struct Reduced {
  V n;        // t is n log(2) + f
  Pair<V> f;  // |f| <= log(2) / 2
};
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Reduced<V> reduced(V t) {
  using E = typename Math::Element;
  const V round = Math::set(Floating<E>::kRound);
  const V n = Math::fma(t, Math::set(E(1.4426950408889634)), round) - round;
  const V most = Math::fma(n, Math::set(-Floating<E>::kLog2High), t);  // exact
  const V f = Math::fma(n, Math::set(-Floating<E>::kLog2Low), most);
  return {n, {f, Math::fma(n, Math::set(-Floating<E>::kLog2Low), most - f)}};
}

/// Returns exp(t) for t from Floating::kLowest to 0, at most 1 ulp off, denormal results included.
/// A NaN gives NaN.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V exp_of_negative(V t) {
  const auto [n, f] = reduced<Math>(t);
  const V one = Math::set(1);
  const V more = Math::fma(exp_series<Math>(f.high), f.high, one);
  return Math::times_power_of_two(Math::fma(more, f.high, one), n);
}

/// Returns the same with a remainder: where the result is normal, their sum is off by at most
/// 1/8 ulp of `high`.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Pair<V> exp_of_negative_pair(V t) {
  const auto [n, f] = reduced<Math>(t);
  const Pair<V> most = sum_of_larger(f.high, f.high * f.high * exp_series<Math>(f.high));
  const Pair<V> all = sum_of_larger(Math::set(1), most.high);
  return {Math::times_power_of_two(all.high, n),
          Math::times_power_of_two(all.low + (most.low + f.low), n)};
}

/// Returns log(1 + z) for z in [0, 1], by log1p(z) = 2 atanh(s) with s = z / (2 + z) in [0, 1/3].
/// It is at most 2 ulp off, also for denormal z. A NaN gives NaN.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V log1p_unit(V z) {
  const V s = z * Math::reciprocal(Math::set(2) + z);
  const V twice = s + s;
  const V square = s * s;
  return Math::fma(twice * square, log1p_series<Math>(square), twice);
}

/// Returns the same with a remainder: their sum is off by at most 1/8 ulp of `high`.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Pair<V> log1p_unit_pair(V z) {
  const Pair<V> denominator = sum_of_larger(Math::set(2), z);
  const V inverse = Math::reciprocal(denominator.high);
  const V s = z * inverse;
  const V product = s * denominator.high;
  const V left =
      (z - product) - Math::product_remainder(s, denominator.high, product) - s * denominator.low;
  const V s_low = left * inverse;
  const V twice = s + s;
  const V square = s * s;
  const V rest = Math::fma(twice * square, log1p_series<Math>(square), s_low + s_low);
  return sum_of_larger(twice, rest);
}

/// Returns log(1 + r) for r from 0 to the largest power of two, at most 4 ulp off. A NaN gives NaN.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V log1p(V r) {
  // 1 + r = 2^k (1 + m), m in [0, 1). Below 1, r itself has more digits than 1 + r.
  const V one = Math::set(1), whole = one + r;
  const auto below = one > r;
  const auto [mantissa, exponent] = Math::decomposed(whole);
  const V k = Math::select(below, Math::set(0), exponent);
  const V m = Math::select(below, r, mantissa - one);
  return Math::fma(k, Math::set(0.693147180559945309), log1p_unit<Math>(m));
}

/// Returns -log(p) for a normal p in (0, 1], as exactly as the logarithm of a factor that a power
/// of p has: to an absolute error of a small part of an ulp of 1.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Pair<V> minus_log(Pair<V> p) {
  using E = typename Math::Element;
  const auto [mantissa, k] = Math::decomposed(p.high);
  const Pair<V> log = log1p_unit_pair<Math>(mantissa - Math::set(1));
  const Pair<V> all = sum_of_larger(k * Math::set(-Floating<E>::kLog2High), -log.high);
  const V low = Math::fma(k, Math::set(Floating<E>::kLog2Low), log.low);
  return sum_of_larger(all.high, all.low - (low + p.low * Math::reciprocal(p.high)));
}

}  // namespace weighted_bce
