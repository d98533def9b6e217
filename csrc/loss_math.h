// The loss and its gradient: the one copy of the formula, for every backend.
//
// For logit x, target y, positive weight p, weight w and label smoothing e:
//
//     y'     = y (1 - e) + e / 2
//     a      = w p y'                      coefficient of the positive term
//     b      = w (1 - y')                  coefficient of the negative term
//     loss   = a softplus(-x) + b softplus(x)
//     dloss  = b sigmoid(x) - a sigmoid(-x)
//
// Everything follows from z = exp(-|x|), which is in [0, 1] and so never overflows:
//
//     softplus(+-x)  = log1p(z) + max(+-x, 0)
//     sigmoid(|x|)   = 1 / (1 + z),     sigmoid(-|x|) = z / (1 + z)
//
// No difference of nearby numbers appears, so each factor keeps its relative accuracy at any x. The
// errors stated below are those of an arithmetic that rounds quotients correctly and whose
// exp(-|x|) is at most 1 ulp off, as on the CPU; cuda/scalar.h says by how much a GPU's are.
//
// The arithmetic is a parameter: a scalar, a SIMD vector, or a CUDA thread's float supplies
// Math::Value, made of Math::Element, with the operators + - * > ==, and set, fma, select, abs,
// max and divide.
#pragma once

#include "series.h"

namespace weighted_bce {

template <class Math>
struct LossMath {
  using V = typename Math::Value;

  struct Coefficients {
    V positive;  // a
    V negative;  // b
  };

  /// keep = 1 - e and shift = e / 2 are computed once by the caller. The weight is left out here:
  /// most calls have none. 1 - y' is (1 - y) keep + shift, which does not cancel where e is small.
  /// Soft targets in [0, 1]; the coefficients are exact for 0 and 1 at e = 0.
  static WEIGHTED_BCE_INLINE Coefficients coefficients(V y, V p, V keep, V shift) {
    const V smoothed = Math::fma(y, keep, shift);
    const auto none = smoothed == Math::set(0);  // whatever p is, infinity included
    return {Math::select(none, smoothed, p * smoothed), Math::fma(Math::set(1) - y, keep, shift)};
  }

  /// Both coefficients times high + low, a factor that is more exact than V: rounded once. 0 stays
  /// 0 under an infinite factor.
  static WEIGHTED_BCE_INLINE Coefficients scaled(Coefficients c, V high, V low) {
    return {scaled(c.positive, high, low), scaled(c.negative, high, low)};
  }
  static WEIGHTED_BCE_INLINE V scaled(V c, V high, V low) {
    return Math::select(c == Math::set(0), c, Math::fma(high, c, low * c));
  }

  /// max(-x, 0) a + max(x, 0) b. A coefficient of 0 gives 0 at an infinite x as well. A NaN in x
  /// may be lost: the log1p term brings it.
  static WEIGHTED_BCE_INLINE V linear_part(V x, Coefficients c) {
    const V coefficient = Math::select(x > Math::set(0), c.negative, c.positive);
    return Math::select(coefficient == Math::set(0), Math::set(0), coefficient * Math::abs(x));
  }

  /// The loss of one element. At most 4 ulp off for coefficients >= 0. A NaN in x gives NaN.
  static WEIGHTED_BCE_INLINE V loss(V x, V z, Coefficients c) {
    return Math::fma(c.positive + c.negative, log1p_unit(z), linear_part(x, c));
  }

  /// The derivative of `loss` with respect to x. At most 4 ulp off where a or b is 0; for soft
  /// targets, where the two terms cancel, 4 ulp of the larger term. A NaN in x gives NaN.
  static WEIGHTED_BCE_INLINE V gradient(V x, V z, Coefficients c) {
    const auto above = x > Math::set(0);
    const V of_large = Math::select(above, c.negative, -c.positive);
    const V of_small = Math::select(above, -c.positive, c.negative);
    const V v = Math::set(1) + z;
    return Math::fma(z, Math::divide(of_small, v), Math::divide(of_large, v));
  }

  /// What is left of it, bit for bit, where one coefficient is 0, as it is for a hard target.
  /// `factor`: b or -a. `wrong`: x is on the side of 0 where the loss is large.
  template <class Mask>
  static WEIGHTED_BCE_INLINE V gradient_of_hard(Mask wrong, V z, V factor) {
    const V large = Math::divide(factor, Math::set(1) + z);
    return Math::select(wrong, large, z * large);
  }

  /// log(1 + z) for z in [0, 1], by log1p(z) = 2 atanh(s) with s = z / (2 + z) in [0, 1/3].
  /// At most 2 ulp off, also for denormal z. A NaN gives NaN.
  static WEIGHTED_BCE_INLINE V log1p_unit(V z) {
    const V s = Math::divide(z, Math::set(2) + z);
    const V twice = s + s;
    const V square = s * s;
    return Math::fma(twice * square, log1p_series<Math>(square), twice);
  }
};

}  // namespace weighted_bce
