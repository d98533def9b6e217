// What the losses have in common: coefficients, and terms. The losses themselves are in losses.h.
//
// For logit x, target y, positive weight p, weight w and label smoothing e, each loss is
//
//     y'    = y (1 - e) + e / 2
//     a     = w p y'                       the coefficient of the positive term
//     b     = w (1 - y')                   the coefficient of the negative term
//     loss  = a P(x) + b N(x)
//     grad  = a P'(x) + b N'(x)
//
// with its own terms P and N.
#pragma once

#include "elementary.h"

namespace weighted_bce {

/// There is one for each of the two terms.
template <class V>
struct Coefficients {
  V positive, negative;
};

/// Returns a and b without the weight, which few calls have. keep = 1 - e and shift = e / 2 are
/// computed once by the caller. 1 - y' is (1 - y) keep + shift, which does not cancel where e is
/// small. Targets are in [0, 1]; the coefficients are exact for 0 and 1 at e = 0.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Coefficients<V> coefficients(V y, V p, V keep, V shift) {
  const V smoothed = Math::fma(y, keep, shift);
  const auto none = smoothed == Math::set(0);  // whatever p is, infinity included
  return {Math::select(none, smoothed, p * smoothed), Math::fma(Math::set(1) - y, keep, shift)};
}

/// Returns c times high + low, a factor that is more exact than V, rounded once. 0 stays 0 under an
/// infinite factor.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V scaled(V c, V high, V low) {
  return Math::select(c == Math::set(0), c, Math::fma(high, c, low * c));
}
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Coefficients<V> scaled(Coefficients<V> c, V high, V low) {
  return {scaled<Math>(c.positive, high, low), scaled<Math>(c.negative, high, low)};
}

/// Returns c v; a term whose coefficient is 0 is 0, also where it is infinite. A NaN stays.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V weighted(V c, V v) {
  return Math::select((c == Math::set(0)) & (v == v), Math::set(0), c * v);
}

/// Tells whether the losses of hard positives may be summed before pos_weight multiplies them: 0 or
/// infinity times a sum might be no number.
template <class T>
WEIGHTED_BCE_INLINE bool multiplies_sums(T pos_weight) {
  return pos_weight > 0 && pos_weight - pos_weight == 0;
}

/// Tells whether a target does not count. A NaN as ignore_index stands for all NaNs.
template <class T>
WEIGHTED_BCE_INLINE bool is_ignored(T y, T ignore_index) {
  return ignore_index != ignore_index ? y != y : y == ignore_index;
}

/// A term at a logit has this value and slope. The value is log1p(logarithm) + rest: the logarithms
/// of many terms can be one, that of the product of all 1 + logarithm.
template <class V>
struct Term {
  V logarithm, rest;
  V slope;  // the derivative, times the factor that was asked for
};

/// A loss L<Math> is a class of its terms at a logit, which derives from this one and hides what it
/// has otherwise. It has
///     struct Parameters                what its terms need, made of CallConstants
///     L(V x, const Parameters&)
///     Term<V> negative(V factor) const, positive(V factor) const
/// of which each gives N or P, and its slope times `factor`. A NaN in x gives NaN, infinities give
/// the limits, and a factor of 0 a slope of 0.
template <template <class> class L, class Math>
class LossTerms {
 protected:
  using V = typename Math::Value;
  using E = typename Math::Element;
  using Constants = CallConstants<E>;

 public:
  static constexpr int kParameters = 0;         // how many the ops take
  static constexpr bool kHasLogarithm = false;  // whether Term::logarithm may be other than 0
  static constexpr bool kIsMirrored = false;    // whether P(x) is N(-x), but for factors

  /// Says what is wrong with the parameters, or returns null.
  static const char* fault(const double*) { return nullptr; }
  /// Computes a constant that follows from the parameters, CallConstants::derived.
  static long double derived(const double*) { return 0; }

  /// P where a target is 1, and N where it is 0. The slope is times `factors`, of which that of P
  /// comes with the opposite sign.
  template <class Mask, class Parameters>
  static WEIGHTED_BCE_INLINE Term<V> hard(V x, Mask positive, Coefficients<V> factors,
                                          const Parameters& parameters) {
    if constexpr (L<Math>::kIsMirrored) {
      return L<Math>(Math::select(positive, -x, x), parameters)
          .negative(Math::select(positive, factors.positive, factors.negative));
    } else {
      const L<Math> terms(x, parameters);
      if constexpr (sizeof(Mask) == 1) {  // of a scalar
        return positive ? terms.positive(-factors.positive) : terms.negative(factors.negative);
      } else {
        const Term<V> p = terms.positive(-factors.positive), n = terms.negative(factors.negative);
        return {Math::select(positive, p.logarithm, n.logarithm),
                Math::select(positive, p.rest, n.rest), Math::select(positive, p.slope, n.slope)};
      }
    }
  }
  /// sum + a rest or sum + b rest, rounded once.
  static WEIGHTED_BCE_INLINE V add_rest(V sum, V, bool positive, Coefficients<V> c,
                                        const Term<V>& term) {
    return Math::fma(positive ? c.positive : c.negative, term.rest, sum);
  }

  /// a P + b N.
  WEIGHTED_BCE_INLINE V value(Coefficients<V> c) const {
    return weighted<Math>(c.positive, whole(terms().positive(c.positive))) +
           weighted<Math>(c.negative, whole(terms().negative(c.negative)));
  }
  /// a P' + b N'. Where a is 0, it has the bits of `negative`.
  WEIGHTED_BCE_INLINE V slope(Coefficients<V> c) const {
    return terms().positive(c.positive).slope + terms().negative(c.negative).slope;
  }
  /// The value of a term.
  static WEIGHTED_BCE_INLINE V whole(const Term<V>& term) {
    if constexpr (!L<Math>::kHasLogarithm) return term.rest;
    return log1p_unit<Math>(term.logarithm) + term.rest;
  }

 private:
  WEIGHTED_BCE_INLINE const L<Math>& terms() const { return static_cast<const L<Math>&>(*this); }
};

}  // namespace weighted_bce
