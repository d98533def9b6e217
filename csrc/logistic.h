// The sigmoids and the softplus of a logit, and their powers: what terms are made of.
//
// With z = exp(-|x|), which is in [0, 1] and so never overflows,
//
//     softplus(+-x)  = log1p(z) + max(+-x, 0)
//     sigmoid(|x|)   = 1 / (1 + z),     sigmoid(-|x|) = z / (1 + z)
//
// so that no difference of nearby numbers appears, and each keeps its relative accuracy at any x.
#pragma once

#include "terms.h"

namespace weighted_bce {

/// An exponent gamma >= 0. A power of a small whole one is a product.
template <class Math>
struct Exponent {
  typename Math::Value gamma, low;  // their sum
  int whole;                        // -1: it is none

  WEIGHTED_BCE_INLINE Exponent(typename Math::Element high, typename Math::Element rest)
      : whole(-1) {
    // A larger one makes no difference, and products with it might overflow.
    using E = typename Math::Element;
    constexpr E kMost = 1 / (Floating<E>::kLeast * (1 << 14));
    gamma = Math::set(high < kMost ? high : kMost);
    low = Math::set(high < kMost ? rest : 0);
    for (int n = 0; n <= 4; ++n) {
      if (high == static_cast<E>(n) && rest == 0) whole = n;
    }
  }
};

/// Returns base^n for a base in [0, 1].
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V whole_power(Pair<V> base, int n) {
  if (n == 0) return Math::set(1);
  if (n == 1) return base.high;
  Pair<V> power = base;
  for (; n > 2; --n) power = product<Math>(power, base);
  const V low = Math::fma(power.high, base.low, power.low * base.high);
  return Math::fma(power.high, base.high, low);
}

/// Returns exp(-gamma t) for t >= 0, whose rounding would be a relative error of the power: 60 ulp
/// at gamma = 2.7.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V exp_minus_product(const Exponent<Math>& exponent, Pair<V> t) {
  const V high = exponent.gamma * t.high;
  const V low = Math::product_remainder(exponent.gamma, t.high, high) +
                Math::fma(exponent.low, t.high, exponent.gamma * t.low);
  const V rounded = Math::exp_minus_abs(high);
  return rounded - rounded * low;
}

/// A logit x, of which u is the sigmoid and v that of -x. Members are computed where they are used.
template <class Math>
class Logistic {
  using V = typename Math::Value;
  using E = typename Math::Element;
  using Mask = decltype(V() > V());

  V magnitude_, low_;   // |x|, and what its rounding has taken
  Mask above_, below_;  // x > 0, x < 0
  Pair<V> z_;           // exp(-|x|)
  V larger_;            // sigmoid(|x|)

 public:
  WEIGHTED_BCE_INLINE explicit Logistic(V x)
      : Logistic(x, Math::set(0), Math::exp_minus_abs_pair(x)) {}
  WEIGHTED_BCE_INLINE explicit Logistic(Pair<V> x) : Logistic(x.high) {
    low_ = Math::select(above_, x.low, -x.low);
    const Pair<V> z = sum_of_larger(z_.high, z_.low - z_.high * low_);
    *this = Logistic(x.high, low_, z);
  }

  /// The same of -x.
  WEIGHTED_BCE_INLINE Logistic mirrored() const {
    Logistic other = *this;
    other.above_ = below_;
    other.below_ = above_;
    return other;
  }

  WEIGHTED_BCE_INLINE V u() const { return Math::select(above_, larger_, z_.high * larger_); }
  WEIGHTED_BCE_INLINE V v() const { return Math::select(above_, z_.high * larger_, larger_); }
  WEIGHTED_BCE_INLINE Pair<V> u_pair() const { return either(above_); }
  WEIGHTED_BCE_INLINE Pair<V> v_pair() const { return either(!above_); }

  WEIGHTED_BCE_INLINE V log1p_z() const { return log1p_unit<Math>(z_.high); }
  /// softplus(x) for that logarithm.
  WEIGHTED_BCE_INLINE V softplus(V log1p_z) const {
    return Math::select(above_, magnitude_, Math::set(0)) + log1p_z;
  }
  WEIGHTED_BCE_INLINE Pair<V> log1p_z_pair() const {
    Pair<V> log = log1p_unit_pair<Math>(z_.high);
    log.low = log.low + z_.low * larger_;
    return log;
  }
  /// softplus(-x) = -log(u) for that logarithm; finite, also where it is so large that u is 0.
  WEIGHTED_BCE_INLINE Pair<V> minus_log_u(Pair<V> log1p_z) const {
    const V zero = Math::set(0), most = Math::set(-Floating<E>::kLowest);
    const auto is_most = magnitude_ > most;
    const V relu = Math::select(above_, zero, Math::select(is_most, most, magnitude_));
    const V low = Math::select(above_, zero, Math::select(is_most, zero, low_));
    const Pair<V> all = sum(relu, log1p_z.high);
    return {all.high, all.low + (log1p_z.low + low)};
  }

 private:
  WEIGHTED_BCE_INLINE Logistic(V x, V low, Pair<V> z)
      : magnitude_(Math::abs(x)),
        low_(low),
        above_(x > Math::set(0)),
        below_(Math::set(0) > x),
        z_(z),
        larger_(Math::reciprocal(Math::set(1) + z.high)) {}

  WEIGHTED_BCE_INLINE Pair<V> either(Mask large) const {
    Pair<V> denominator = sum_of_larger(Math::set(1), z_.high);
    denominator.low = denominator.low + z_.low;
    const Pair<V> a = reciprocal<Math>(denominator), b = product<Math>(z_, a);
    return {Math::select(large, a.high, b.high), Math::select(large, a.low, b.low)};
  }
};

/// u^gamma S(x) and its slope, in which the derivative of the power has the factor `gamma`.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Term<V> focal_term(const Logistic<Math>& at, const Exponent<Math>& exponent,
                                       V gamma) {
  V power, log1p_z;
  if (exponent.whole >= 0) {
    power = exponent.whole == 0   ? Math::set(1)
            : exponent.whole == 1 ? at.u()
                                  : whole_power<Math>(at.u_pair(), exponent.whole);
    log1p_z = at.log1p_z();
  } else {
    const Pair<V> log = at.log1p_z_pair();
    power = exp_minus_product<Math>(exponent, at.minus_log_u(log));
    log1p_z = log.high;
  }
  // Where the softplus is larger, v is 0; infinity times 0 would be NaN.
  const V most = Math::set(-Floating<typename Math::Element>::kLowest);
  const V softplus = at.softplus(log1p_z);
  const V bounded = Math::select(softplus > most, most, softplus);
  return {Math::set(0), power * softplus, power * Math::fma(gamma * at.v(), bounded, at.u())};
}

}  // namespace weighted_bce
